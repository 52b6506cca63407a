"""The weights of one repository folder, by export name, and what the card says about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from editforge.artifacts.lora.factors import lora_factors
from editforge.artifacts.lora.kohya import has_kohya, write_kohya
from editforge.artifacts.lora.write import write_factors
from editforge.artifacts.weight_edit import WeightEdit
from editforge.package.base import BaseModel, Weights, edited_tensors
from editforge.package.denoiser import precision, weight_plan, write_denoiser
from editforge.package.header import ORIGINAL, modelspec_header
from editforge.package.pipeline import write_pipeline
from editforge.package.single_file import write_single_file

Artifact = dict[str, Any]


def write_artifact(
    model: BaseModel, edit: WeightEdit, folder: Path, export: str, title: str, dtype: str
) -> tuple[Artifact, list[str]]:
    """Write the weight files of one export.

    Returns:
        Facts for `editforge.json`, and sentences for the user.
    """
    if export == "lora":
        return _lora(model, edit, folder, title)
    base = Weights.open(model.folder / model.family.denoiser, model.variant)
    if export == "single-file":
        path = write_single_file(model, edit, folder, title, dtype=dtype)
        rounding = {path.name: rounding_error(base, edit, precision(dtype))}
        return {"weights": [path.name], "dtype": dtype, "rounding": rounding}, []
    write = write_pipeline if export == "pipeline" else write_denoiser
    written = write(model, edit, folder, dtype=dtype)
    names = [path.relative_to(folder).as_posix() for path in written]
    rounding = {
        name: rounding_error(base, edit, stored)
        for name, stored in zip(names, weight_plan(base, precision(dtype)).values(), strict=True)
    }
    readable = model.family.kohya is not None
    facts = {"weights": names, "dtype": dtype, "rounding": rounding, "kohya_family": readable}
    return facts, []


def _lora(
    model: BaseModel, edit: WeightEdit, folder: Path, title: str
) -> tuple[Artifact, list[str]]:
    factors = lora_factors(edit, component=model.family.denoiser)
    family, prediction = model.family, model.prediction_type
    spec = modelspec_header(model, title, edit, lora=True, implementation="diffusers")
    plain = write_factors(factors, edit, folder, spec)
    notes, kohya = [], None
    if has_kohya(family, prediction):
        path = folder / "kohya" / f"{title}.safetensors"
        spec = modelspec_header(model, title, edit, lora=True, implementation=ORIGINAL)
        write_kohya(factors, edit, path, family, prediction, spec)
        kohya = f"kohya/{path.name}"
    elif family.kohya is not None:
        notes.append(f"no kohya file: family {family.name} has no kohya base for {prediction}")
    facts = {
        "weights": [plain.name, *([kohya] if kohya else [])],
        "kohya": kohya,
        "rank": factors.rank,
        "dtype": str(factors.dtype).removeprefix("torch."),
        "exact": edit.exact_rank is not None,
        "relative_error": factors.error,
    }
    return facts, notes


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
