"""safetensors files: the same bytes for the same content, and nothing used before it is checked.

safetensors 0.8 writes header entries in random order, so equal tensors give unequal files. Our writer
sorts the header, pads it to eight bytes and streams one tensor at a time: peak memory is one tensor,
and `SHA256SUMS` means something. Reading checks what a stranger's file may get wrong before a single
value is used: the header's size, offsets, dtypes, shapes, and that all numbers are finite.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editforge.ground.disk import write_atomic
from editforge.ground.errors import PackageError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIZES = {name: torch.empty((), dtype=dtype).element_size() for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit, in bytes
_PIECE = 2**22  # values looked at at a time


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in a safetensors file, in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """The metadata and the tensor table of a safetensors file; no tensor is read.

    Raises:
        PackageError: not a safetensors file, a truncated one, or a table that lies.
    """
    fix = "download or write the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size):
                raise PackageError(
                    f"{path.name} is not a safetensors file, or is cut short",
                    got=f"{size} bytes",
                    next=fix,
                )
            header = json.loads(file.read(length))
    except (FileNotFoundError, IsADirectoryError):
        raise PackageError(f"no file {path.name}", got=path.parent) from None
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of ten thousand digits
        raise PackageError(f"the header of {path.name} is not JSON", next=fix) from None
    if not isinstance(header, dict):
        raise PackageError(f"the header of {path.name} is not a mapping", next=fix)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise PackageError(f"the metadata of {path.name} is not text", next=fix)
    table = {name: _tensor_info(path, name, row, 8 + length) for name, row in header.items()}
    position = 8 + length
    for name, info in sorted(table.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise PackageError(f"{path.name} has a gap or an overlap before {name}", next=fix)
        position = info.end
    if position != size:
        raise PackageError(
            f"{path.name} is cut short or has bytes to spare",
            got=f"{size} bytes",
            allowed=f"{position} bytes, says its header",
            next=fix,
        )
    return metadata, table


def _tensor_info(path: Path, name: str, row: object, base: int) -> TensorInfo:
    try:
        dtype, shape, (start, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]  # type: ignore[index]
        count = 1
        for side in shape:
            if not isinstance(side, int) or side < 0:
                raise ValueError
            count *= side
        if not isinstance(start, int) or not isinstance(end, int) or start < 0:
            raise ValueError
        if end - start != count * _SIZES[dtype]:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise PackageError(
            f"{path.name} describes {name} wrongly", got=str(row)[:120], allowed=", ".join(DTYPES)
        ) from None
    return TensorInfo(dtype, shape, base + start, base + end)


def read_tensors(
    path: Path,
    names: Iterable[str] | None = None,
    table: Mapping[str, TensorInfo] | None = None,
) -> dict[str, Tensor]:
    """Read some tensors (all by default) of a checked safetensors file.

    Args:
        path: the file.
        names: which tensors.
        table: what `read_header` gave for this file; a large header costs more than a small tensor.

    Raises:
        PackageError: a missing name, a damaged file, or a NaN or infinity in what was read.
    """
    table = read_header(path)[1] if table is None else table
    wanted = list(table) if names is None else list(names)
    missing = [name for name in wanted if name not in table]
    if missing:
        raise PackageError(f"{path.name} lacks {len(missing)} tensors", got=", ".join(missing[:3]))
    tensors = {}
    with path.open("rb") as file:
        for name in wanted:
            info = table[name]
            file.seek(info.start)
            data = bytearray(info.end - info.start)  # read in place: no second copy in memory
            file.readinto(data)
            flat = torch.frombuffer(data, dtype=DTYPES[info.dtype]) if data else torch.empty(0)
            tensors[name] = flat.to(DTYPES[info.dtype]).reshape(info.shape)
            check_finite(tensors[name], f"{path.name}: {name}")
    return tensors


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise PackageError if a floating tensor holds a NaN or an infinity."""
    if not tensor.is_floating_point():
        return
    if tensor.itemsize == 1:  # eight bits have no isfinite; float16 holds all of their values
        tensor = tensor.to(torch.float16)
    # in pieces: isfinite makes a copy of what it looks at
    bad = sum(int((~torch.isfinite(part)).sum()) for part in tensor.reshape(-1).split(_PIECE))
    if bad:
        raise PackageError(
            f"{name} holds {bad} values that are NaN or infinite",
            next="the file is damaged or overflowed in 16 bits: take another copy or dtype",
        )


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's dtype and shape now, its values when it is written: nothing is held twice."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file whose bytes depend on the content alone.

    Header keys are sorted, the header is padded to eight bytes, tensors follow in name order and
    are produced one at a time. `format: pt` is always in the metadata.

    Raises:
        PackageError: a NaN or infinity, or a lazy tensor that is not what it announced.
    """
    table: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **metadata}.items()))}
    position = 0
    for name in sorted(tensors):
        dtype, shape = _NAMES[tensors[name].dtype], tuple(tensors[name].shape)
        size = _SIZES[dtype]
        for side in shape:
            size *= side
        offsets = [position, position + size]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position += size
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(file: Any) -> None:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in sorted(tensors):
            promised = tensors[name]
            tensor = promised if isinstance(promised, Tensor) else promised.load()
            if tuple(tensor.shape) != tuple(promised.shape) or tensor.dtype != promised.dtype:
                raise PackageError(f"{name} changed shape or dtype while it was written")
            check_finite(tensor, name)
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")

    write_atomic(path, write)
