"""Erase a concept from a pipeline that is loaded already: the same stages, and no folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.live import LiveModel
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.recipe.recipe import Recipe
from editforge.run.order import align, choose, edit, mine


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


def solve_in_memory(recipe: Recipe, context: Context) -> WeightEdit:
    """Mine to align without a folder; the edit has the recipe's strength."""
    neighbors = mine(recipe, context)
    targets = choose(recipe, neighbors, context)
    result = edit(recipe, targets, neighbors, context).edit
    if recipe.align is not None:
        result = align(recipe, result, targets, neighbors, context)
    return result.scaled(recipe.strength)
