"""A finished eraser from wherever it lies: a run, a package, a file of its own, a LoRA."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from editforge.artifacts.eraser import Eraser
from editforge.artifacts.lora.read import read_lora
from editforge.artifacts.lora.write import NAME as LORA
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header
from editforge.package.facts import provenance_beside, read_facts, repository
from editforge.recipe import registry
from editforge.recipe.layers import resolve
from editforge.recipe.line import LINE

_ERASING = [step.name for step in LINE if step.erases]


def load_edit(path: str | Path) -> Any:
    """Read an eraser: a run folder, a package, a LoRA folder or file, a weight_edit.safetensors.

    A run gives its final eraser at the recipe's strength, by whichever of its folders or files it is
    named; a package gives the same change, with the strength inside its factors and the whole provenance
    of its `editforge.json`. What an earlier stage of a run made, and a stage's file outside of its run,
    is the method's own edit at strength 1, as its repr says.

    Returns:
        A WeightEdit; of a recipe that guides, the kind of eraser that its implementation makes.

    Raises:
        PackageError: nothing there that holds an eraser, an unfinished run, or a damaged file.
    """
    place = Path(path)
    run = _run_of(place)
    if run is not None:
        return _of_run(run)
    for file in [place] if place.is_file() else _inside(place):
        if file.is_file():
            kind = kind_of(file)
            if kind is not None:
                return kind.load(file)
            edit = read_lora(file)
            return replace(edit, provenance=provenance_beside(file) or edit.provenance)
    raise PackageError("no edit here", got=place, allowed="a run, a package, or a LoRA file")


def kind_of(file: Path) -> type[Eraser] | None:
    """The class of the eraser that a file holds by its own account; None for a LoRA.

    Raises:
        PackageError: no safetensors file.
    """
    metadata, _ = read_header(file)
    return next((kind for kind in kinds() if kind.header in metadata), None)


def _run_of(place: Path) -> Path | None:
    """The run that a place is, or whose last erasing stage it is, or that stage's file."""
    if (place / "recipe.yaml").is_file():
        return place
    stage = (place.parent if place.is_file() else place).resolve()
    if stage.name not in _ERASING or not (stage.parent / "recipe.yaml").is_file():
        return None
    recipe = resolve(str(stage.parent / "recipe.yaml"))
    last = recipe.erasing[-1]
    named = place.is_dir() or place.name == recipe.eraser_class(last).file
    return stage.parent if named and stage.name == last.name else None


def _of_run(folder: Path) -> Eraser:
    recipe = resolve(str(folder / "recipe.yaml"))
    step = recipe.erasing[-1]
    kind = recipe.eraser_class(step)
    file = folder / step.name / kind.file
    if not file.is_file():
        own = shlex.quote(str(folder))
        raise PackageError(
            f"this run is not finished: its {step.name} is not there",
            got=str(folder),
            next=f"editforge run {shlex.quote(str(folder / 'recipe.yaml'))} --output {own}",
        )
    return kind.load(file).scaled(recipe.strength)


def _inside(folder: Path) -> Iterator[Path]:
    """Where an eraser may lie in a folder, the most finished first."""
    stages = _ERASING[::-1]
    for stage in (*stages, ""):
        yield folder / stage / WeightEdit.file
    for place in ("package/lora", "lora", ""):
        yield folder / place / LORA
    for kind in registry.guides():
        yield from (folder / stage / kind.file for stage in (*stages, ""))
    found = repository(folder)
    if found is not None:
        file = found / read_facts(found).artifact.weights[0]
        if kind_of(file) is not None:
            yield file


def kinds() -> Iterator[type[Eraser]]:
    """Every class of eraser, our own first; those of guides are imported when they are asked for."""
    yield WeightEdit
    yield from registry.guides()
