"""A finished edit from wherever it lies: a run, a package, a LoRA file."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from editforge.artifacts.lora.read import read_lora
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header
from editforge.package.facts import provenance_beside
from editforge.recipe.layers import resolve


def load_edit(path: str | Path) -> WeightEdit:
    """Read an edit: a run folder, a package, a LoRA folder or file, a weight_edit.safetensors.

    A run gives its final edit at the recipe's strength; a package gives the same change, with the
    strength inside its factors and the whole provenance of its `editforge.json`.

    Raises:
        PackageError: nothing there that holds an edit, an unfinished run, or a damaged file.
    """
    place = Path(path)
    if (place / "recipe.yaml").is_file():
        return _of_run(place)
    inside = (
        "align/weight_edit.safetensors",
        "edit/weight_edit.safetensors",
        "weight_edit.safetensors",
        "package/lora/pytorch_lora_weights.safetensors",
        "lora/pytorch_lora_weights.safetensors",
        "pytorch_lora_weights.safetensors",
    )
    files = [place] if place.is_file() else [place / name for name in inside]
    for file in files:
        if file.is_file():
            metadata, _ = read_header(file)
            if "editforge.weight_edit" in metadata:
                return WeightEdit.load(file)
            edit = read_lora(file)
            return replace(edit, provenance=provenance_beside(file) or edit.provenance)
    raise PackageError("no edit here", got=place, allowed="a run, a package, or a LoRA file")


def _of_run(folder: Path) -> WeightEdit:
    recipe = resolve(str(folder / "recipe.yaml"))
    stage = "edit" if recipe.align is None else "align"
    file = folder / stage / "weight_edit.safetensors"
    if not file.is_file():
        own = shlex.quote(str(folder))
        raise PackageError(
            f"this run is not finished: its {stage} is not there",
            got=str(folder),
            next=f"editforge run {shlex.quote(str(folder / 'recipe.yaml'))} --output {own}",
        )
    return WeightEdit.load(file).scaled(recipe.strength)
