"""How bytes reach the disk: whole or not at all, and the same bytes for the same content.

safetensors 0.8 writes header entries in random order, so equal tensors give unequal files. Our writer
sorts the header, pads it to eight bytes and streams one tensor at a time: peak memory is one tensor,
and `SHA256SUMS` means something. Reading checks what a stranger's file may get wrong before a single
value is used: the header's size, offsets, dtypes, shapes, and that all numbers are finite.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from editforge.errors import PackageError, RecipeError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
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


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in a safetensors file, in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex digest of a value's canonical JSON: sorted keys, no white space, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Give `write` a binary file beside `path`, flush it to the disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """Write sorted, indented JSON with a final newline; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        PackageError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PackageError(f"no file {path.name}", got=path.parent) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PackageError(f"{path.name} is not valid JSON", got=str(error)) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain data alone: no tags, no anchors (a nest of them fills the memory), no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"the key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> Any:
    """Parse a user's YAML: plain data only.

    Raises:
        RecipeError: over 1 MB, malformed, nested over any sane depth, an alias, a tag, a key twice.
    """
    if len(text) > 1_000_000:
        raise RecipeError(f"{source} is too large for YAML", got=f"{len(text)} characters")
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        got = " ".join(str(error).split())[:300]
        raise RecipeError(
            f"{source} is not readable YAML",
            got=got,
            allowed="plain mappings, lists, text and numbers",
        ) from None


def read_yaml(path: Path) -> Any:
    """Read and parse a user's YAML file; see `parse_yaml`."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError("no such file", got=str(path)) from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text") from None


def dump_yaml(value: object) -> str:
    """YAML in the order given, unaliased, 100 columns."""

    class _Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(
        value, Dumper=_Plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


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
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
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
        if end - start != count * _SIZES[dtype] or start < 0:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise PackageError(
            f"{path.name} describes {name} wrongly", got=str(row)[:120], allowed=", ".join(DTYPES)
        ) from None
    return TensorInfo(dtype, shape, base + start, base + end)


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read some tensors (all by default) of a checked safetensors file.

    Raises:
        PackageError: a missing name, a damaged file, or a NaN or infinity in what was read.
    """
    _, table = read_header(path)
    wanted = list(table) if names is None else list(names)
    missing = [name for name in wanted if name not in table]
    if missing:
        raise PackageError(f"{path.name} lacks {len(missing)} tensors", got=", ".join(missing[:3]))
    tensors = {}
    with path.open("rb") as file:
        for name in wanted:
            info = table[name]
            file.seek(info.start)
            data = bytearray(file.read(info.end - info.start))
            flat = torch.frombuffer(data, dtype=DTYPES[info.dtype]) if data else torch.empty(0)
            tensors[name] = flat.to(DTYPES[info.dtype]).reshape(info.shape)
            check_finite(tensors[name], f"{path.name}: {name}")
    return tensors


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise PackageError if a floating tensor holds a NaN or an infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
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
