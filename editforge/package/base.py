"""What our exporters need of a base model: its weights, one tensor at a time, and what fits them.

Weights are read where they lie (single file, variant or shards) and never all at once. A tensor
with a NaN or an infinity is an error, not data; pickled weights are refused by `weight_files`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editforge.artifacts.lora.factors import refuse_other_components
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import weight_files
from editforge.ground.disk import read_json, write_text
from editforge.ground.errors import FamilyError, PackageError, did_you_mean
from editforge.ground.files import DTYPES, LazyTensor, TensorInfo, check_finite, read_header
from editforge.recipe.export import BaseModel, Exportable

_LOCAL = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|\.{1,2}[\\/])")
PRECISIONS = {
    "base": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def check_offered(model: Exportable, export: str) -> None:
    """Refuse an export of ours that the family does not name.

    Raises:
        PackageError: with those it does.
    """
    offered = model.family.exports
    if export not in offered:
        raise PackageError(
            f"family {model.family.name} cannot export this",
            got=export,
            allowed=did_you_mean(export, offered),
        )


@dataclass(frozen=True)
class Weights:
    """The tensor tables of one component's files. Memory: the headers alone."""

    component: str
    variant: str | None
    where: dict[str, tuple[Path, TensorInfo]]

    @classmethod
    def of(cls, model: BaseModel) -> Weights:
        """The base's denoiser."""
        return cls.open(model.folder / model.family.denoiser, model.variant)

    @classmethod
    def open(cls, folder: Path, variant: str | None) -> Weights:
        """The component's weights: those of `variant`, else the unsuffixed ones, as loaders do.

        Raises:
            FamilyError: no safetensors weights; pickled ones are named and refused.
            PackageError: damaged files, or one tensor in two shards.
        """
        used = variant
        try:
            files = weight_files(folder, variant)
        except FamilyError:
            if variant is None:
                raise
            files, used = weight_files(folder, None), None
        where: dict[str, tuple[Path, TensorInfo]] = {}
        for path in files:
            for name, info in read_header(path)[1].items():
                if name in where:
                    raise PackageError(f"two shards of {folder.name} hold {name}", got=path.name)
                where[name] = (path, info)
        return cls(folder.name, used, where)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in the file."""
        return DTYPES[self.where[name][1].dtype]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file."""
        return self.where[name][1].shape

    def read(self, name: str) -> Tensor:
        """One tensor, checked to be finite."""
        path, info = self.where[name]
        with path.open("rb") as file:
            file.seek(info.start)
            data = bytearray(file.read(info.end - info.start))
        dtype = DTYPES[info.dtype]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        check_finite(flat, f"{path.name}: {name}")
        return flat.reshape(info.shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors in the files."""
        return {name: info.shape for name, (_, info) in self.where.items()}

    def stored(self, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
        """The dtype of each tensor after a cast to `dtype`; integers stay, None casts nothing."""
        return {
            name: self.dtype(name)
            if dtype is None or not self.dtype(name).is_floating_point
            else dtype
            for name in self.where
        }


def edited_tensors(
    weights: Weights, edit: WeightEdit | None, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    """All tensors of a component with the edit added, produced when they are written.

    Guarantee: the edit is added in float64 and rounded once, to the dtype that is stored. A tensor
    the edit does not touch, and every tensor at strength zero without a cast, is the base's bits.
    """
    tensors = {}
    for name, stored in weights.stored(dtype).items():
        load = partial(_load, weights, edit, name, stored)
        tensors[name] = LazyTensor(stored, weights.shape(name), load)
    return tensors


def _load(weights: Weights, edit: WeightEdit | None, name: str, stored: torch.dtype) -> Tensor:
    weight = weights.read(name)
    key = f"{weights.component}.{name}"
    module = key.removesuffix(".weight")
    touched = edit is not None and (module in edit.factors or key in edit.dense)
    if not touched or edit is None:
        return weight.to(stored)
    key = module if module in edit.factors else key
    if stored == weight.dtype:
        return edit.edited(key, weight)
    return edit.edited(key, weight.double()).to(stored)  # one rounding, not two


def check_fits(edit: WeightEdit, weights: Weights) -> None:
    """Refuse an edit of another component, an unknown module or another shape; nothing is written.

    Raises:
        PackageError: with near matches. An edit of fewer layers than it names does not exist.
    """
    refuse_other_components(edit, weights.component)
    parameters = {f"{weights.component}.{name}" for name in weights.where}
    modules = {name.removesuffix(".weight") for name in parameters if name.endswith(".weight")}
    _check(edit.factors, modules, lambda n: weights.shape(_inner(f"{n}.weight")), edit)
    _check(edit.dense, parameters, lambda n: weights.shape(_inner(n)), edit)


def _inner(name: str) -> str:
    return name.partition(".")[2]


def _check(
    names: object, known: set[str], shape: Callable[[str], tuple[int, ...]], edit: WeightEdit
) -> None:
    for name in sorted(names):  # type: ignore[call-overload]
        if name not in known:
            raise PackageError(
                f"the base model has no {name}",
                got=f"{len(known)} weights",
                allowed=did_you_mean(name, known)[:300],
                next="package the edit with the base it was made for",
            )
        got = edit.factors[name].shape if name in edit.factors else tuple(edit.dense[name].shape)
        if tuple(got) != shape(name):
            raise PackageError(
                f"the edit of {name} has another shape than the base's weight",
                got=tuple(got),
                allowed=shape(name),
                next="package the edit with the base it was made for",
            )


Shapes = Mapping[str, tuple[int, ...]]


def check_same(model: BaseModel, want: Shapes, have: Shapes) -> None:
    """Refuse a denoiser that has other weights than the base's.

    Raises:
        PackageError: with the first that differ.
    """
    wrong = sorted(name for name in {*want, *have} if want.get(name) != have.get(name))
    if wrong:
        raise PackageError(
            f"its denoiser has other weights than the base's: {len(wrong)} differ",
            got=", ".join(wrong[:3]),
            allowed=f"the {len(want)} weights of {model.label}",
            next="name its own base: --model",
        )


def copy_file(source: Path, target: Path, model: BaseModel) -> None:
    """Copy bytes; in a JSON file of a local base a path in `_name_or_path` becomes the label."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".json" and model.local:
        value: Any = read_json(source)
        keys = ("_name_or_path", "name_or_path") if isinstance(value, dict) else ()
        local = {key: model.label for key in keys if _LOCAL.match(str(value.get(key, "")))}
        if local:
            text = json.dumps({**value, **local}, indent=2, ensure_ascii=False)
            write_text(target, text + "\n")
            return
    shutil.copyfile(source, target)
