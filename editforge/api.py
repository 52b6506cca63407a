"""The three lines of Python: erase a concept from a loaded pipeline, load a saved edit."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.errors import PackageError
from editforge.families.live import LiveModel
from editforge.recipe import resolve
from editforge.run import solve_in_memory
from editforge.stages import Context


def erase(
    pipe: Any,
    concepts: str | Sequence[str | dict[str, Any]],
    *,
    method: str = "default",
    target: str | None = None,
    preserve: Sequence[str] | None = None,
    strength: float | None = None,
    seed: int | None = None,
    options: Sequence[str] = (),
    family: str | None = None,
    progress: bool = True,
) -> WeightEdit:
    """Compute the edit that erases `concepts` jointly. `pipe` is read and left as it is.

    Args:
        pipe: a diffusers pipeline of a known family, without adapters.
        concepts: a name, or names, or mappings with name, aliases and kind.
        method: a method name or a recipe file.
        target: what they become; None chooses.
        preserve: what must not move besides the target; None preserves what lies nearest.
        strength: 1 is the method's own edit; higher is stronger. None: the recipe's.
        seed: of methods that draw. None: the recipe's.
        options: `stage.key=value` texts, as `--set` takes them.
        family: None detects it from the pipeline.
        progress: bars on stderr.

    Returns:
        A WeightEdit. `edit.apply(pipe)`, `edit.remove(pipe)`, `edit.save_lora(folder)`.

    Raises:
        EditforgeError: an unreadable name, an unknown architecture, a refused solve.
    """
    listed = [concepts] if isinstance(concepts, str) else list(concepts)
    overrides: dict[str, Any] = {
        "concepts": [{"name": row} if isinstance(row, str) else row for row in listed],
    }
    overrides |= {k: v for k, v in (("strength", strength), ("seed", seed)) if v is not None}
    if target is not None:
        overrides["target"] = {"use": "fixed", "text": target}
    if preserve is not None:
        overrides["preserve"] = list(preserve)
    recipe = resolve(method, overrides, options)
    context = Context(LiveModel(pipe, family), recipe.seed, progress)
    return solve_in_memory(recipe, context)


def load_edit(path: str | Path) -> WeightEdit:
    """Read an edit: a run folder, a package, a LoRA folder or file, a weight_edit.safetensors.

    A run gives its final edit at the recipe's strength; a package gives the same change, with the
    strength inside its factors and the whole provenance of its `editforge.json`.

    Raises:
        PackageError: nothing there that holds an edit, an unfinished run, or a damaged file.
    """
    from editforge.files import read_header
    from editforge.package.facts import provenance_beside
    from editforge.package.lora import read_lora

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
