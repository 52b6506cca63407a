"""Artifact C: the edited denoiser alone, one component with its complete state dict.

The base's tensors are streamed from its files, the edit is added in float64 and rounded once, and
key set, shapes and dtypes of what was written are read back and compared with the base. No adapter
is involved: fusing one and saving without unloading it writes keys that load as random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from editforge.artifacts.lora.header import provenance_header
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.outline import Outline
from editforge.ground.errors import PackageError, did_you_mean
from editforge.ground.files import DTYPES, read_header, write_safetensors
from editforge.package.base import (
    PRECISIONS,
    Weights,
    check_fits,
    check_same,
    copy_file,
    edited_tensors,
)
from editforge.recipe.export import BaseModel

SUFFIXES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
STEM = "diffusion_pytorch_model"


def precision(name: str) -> torch.dtype | None:
    """The dtype a recipe's `package.dtype` names; None keeps the base's."""
    if name not in PRECISIONS:
        raise PackageError("no such dtype", got=name, allowed=did_you_mean(name, PRECISIONS))
    return PRECISIONS[name]


def write_denoiser(
    model: BaseModel, edit: WeightEdit, folder: Path, *, dtype: str = "base"
) -> list[Path]:
    """Write `config.json` and the edited weights of the denoiser into `folder`.

    An unsuffixed file always exists. A suffixed sibling (`.fp16`, `.bf16`) is written as well where
    the dtype was asked for, or where the base was read from one, and then holds that dtype: the
    unsuffixed file has the base's own dtype next to an asked-for one.

    Returns:
        The weight files, unsuffixed first.

    Raises:
        PackageError: a module the base lacks, another shape, a NaN, or a file that reads back
        wrong.
    """
    source, weights = model.folder / model.family.denoiser, Weights.of(model)
    check_fits(edit, weights)
    folder.mkdir(parents=True, exist_ok=True)
    copy_file(source / "config.json", folder / "config.json", model)
    header = provenance_header(edit)
    written = []
    for suffix, stored in weight_plan(weights, precision(dtype)).items():
        path = folder / f"{STEM}{suffix}.safetensors"
        write_safetensors(path, edited_tensors(weights, edit, stored), header)
        check_written(path, weights, stored)
        written.append(path)
    return written


def weight_plan(weights: Weights, dtype: torch.dtype | None) -> Mapping[str, torch.dtype | None]:
    """File suffix to the dtype it is cast to. A suffix is never written over another dtype."""
    present = {weights.dtype(name) for name in weights.where}
    floating = {one for one in present if one.is_floating_point}
    own = next(iter(floating)) if len(floating) == 1 else None
    if dtype in SUFFIXES and dtype != own:
        return {"": None, f".{SUFFIXES[dtype]}": dtype}
    honest = SUFFIXES.get(own) if own is not None and dtype in (None, own) else None
    if honest and (dtype is not None or weights.variant == honest):
        return {"": None, f".{honest}": None}
    return {"": dtype}


def check_written(path: Path, weights: Weights, dtype: torch.dtype | None) -> None:
    """Read the header back: the base's key set and shapes, and the dtype that the name promises."""
    _, table = read_header(path)
    lost = sorted(set(weights.where) ^ set(table))
    if lost:
        raise PackageError(
            f"{path.name} has another key set than the base", got=", ".join(lost[:3])
        )
    for name, stored in weights.stored(dtype).items():
        info = table[name]
        if info.shape != weights.shape(name) or DTYPES[info.dtype] != stored:
            raise PackageError(
                f"{path.name}: {name} was written wrongly",
                got=f"{info.dtype} {info.shape}",
                allowed=f"{stored} {weights.shape(name)}",
            )


def denoiser_facts(
    model: BaseModel, edit: WeightEdit, folder: Path, written: Sequence[Path], dtype: str
) -> dict[str, Any]:
    """What `editforge.json` says of written denoiser files, by their path below `folder`."""
    base = Weights.of(model)
    names = [path.relative_to(folder).as_posix() for path in written]
    stored = weight_plan(base, precision(dtype)).values()
    return {
        "weights": names,
        "dtype": dtype,
        "rounding": {
            name: rounding_error(base, edit, one) for name, one in zip(names, stored, strict=True)
        },
        "kohya_family": model.family.kohya is not None,
    }


def rounding_error(base: Weights, edit: WeightEdit, dtype: torch.dtype | None) -> float:
    """|stored - (W + change)| / |change| over the edited weights: what the file's dtype costs.

    0 for an edit of strength zero, whose files are the base's bits.
    """
    tensors = edited_tensors(base, edit, dtype)
    squares = torch.zeros(2, dtype=torch.float64)
    for key in [*edit.factors, *edit.dense]:
        name = key.partition(".")[2] + (".weight" if key in edit.factors else "")
        change = edit.delta(key)
        gap = tensors[name].load().double() - base.read(name).double() - change
        squares += torch.stack([gap.square().sum(), change.square().sum()])
    return float((squares[0] / squares[1]).sqrt()) if squares[1] > 0 else 0.0


def check_denoiser(model: BaseModel, folder: Path) -> None:
    """Refuse a denoiser's folder that holds other weights than the base's.

    Raises:
        PackageError: with the first that differ.
    """
    check_same(model, Weights.of(model).shapes(), Weights.open(folder, None).shapes())


def denoiser_bytes(model: Outline, dtype: str) -> int:
    """Bytes of the files that `write_denoiser` makes; two where a suffixed one is added."""
    kind = precision(dtype)
    cast = None if kind is None else kind.itemsize
    count = sum(prod(shape) for shape in model.shapes.values())
    own = model.bytes_of(model.family.denoiser)
    return own if cast in (None, own // max(count, 1)) else own + (cast or 0) * count
