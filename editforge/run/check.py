"""What can be refused before anything is mined. A run and its `--dry-run` both begin here.

`check` reads the recipe and small files beside it, `check_model` a model's configs and tokenizers;
neither reads a weight. What these two let pass and a stage refuses later, only a computation can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from editforge.families.open import chosen_device
from editforge.families.schema import load_family
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled, fold
from editforge.ground.places import is_hub_id
from editforge.judges import check_judge
from editforge.package.exports import check_dense, check_exports
from editforge.recipe.line import LINE

if TYPE_CHECKING:
    from editforge.families.model import Described
    from editforge.recipe.contract import StageConfig
    from editforge.recipe.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Refuse what no model can mend: a device, a judge, an earlier edit, a file that is not there.

    Raises:
        EditforgeError: the first fault found.
    """
    chosen_device(recipe.model.device)
    if recipe.model.family is not None:
        load_family(recipe.model.family)
    _check_configs(recipe.model.config)
    if recipe.evaluate is not None:
        check_judge(recipe.evaluate.judge, [(one.name, one.kind) for one in recipe.concepts])
    _check_earlier(recipe)
    for config in stages_of(recipe):
        config.check_early(recipe.concepts)
        if config.leaves_dense:
            check_dense(recipe.package.export)


def check_model(recipe: Recipe, model: Described) -> None:
    """Refuse what this model cannot do: an export, a name or a text that its encoder cannot read.

    Raises:
        EditforgeError: the first fault found.
    """
    check_exports(model, recipe.package.export)
    reader = model.reader
    for concept in recipe.concepts:
        own = getattr(recipe.edit, "templates", None)
        for name in concept.names:
            reader.check(name)
            for template in own or model.family.templates.get(concept.kind, ("{n}",)):
                reader.check(filled(template, name))
    for word in () if recipe.preserve == "auto" else recipe.preserve:
        reader.check(word)
    for config in stages_of(recipe):
        config.check_model(model)


def stages_of(recipe: Recipe) -> Iterator[StageConfig]:
    """The options of every stage that the recipe has, in order."""
    for step in LINE:
        yield from step.uses(recipe)


def _check_configs(place: str | None) -> None:
    if place is not None and not Path(place).expanduser().is_dir() and not is_hub_id(place):
        raise RecipeError(
            "no configs for a single file there",
            got=f"model.config = {place}",
            allowed="a pipeline folder, or a Hub id (owner/name)",
        )


def _check_earlier(recipe: Recipe) -> None:
    path = recipe.continue_from
    if path is None:
        return
    place = Path(path).expanduser()
    if not place.is_file() and not (place / "edit" / "solve.safetensors").is_file():
        raise RecipeError(
            "no earlier edit to continue from",
            got=path,
            allowed="a run folder with edit/solve.safetensors, or that file",
            next="name a finished run of this model: --from runs/OTHER",
        )
    from editforge.artifacts.system import System

    earlier = System.load(place)
    if recipe.edit is not None and earlier.method != recipe.edit.use:
        raise RecipeError(
            "the earlier edit has another method", got=earlier.method, allowed=recipe.edit.use
        )
    gone = {fold(name) for name in earlier.names}
    twice = [n for concept in recipe.concepts for n in concept.names if fold(n) in gone]
    if twice:
        raise RecipeError("the earlier edit erases this already", got=", ".join(twice))
