"""Erase a concept from a pipeline that is loaded already: the same stages, and no folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from editforge.artifacts.concept_file import read_concepts
from editforge.artifacts.doubtful import refuse_doubtful
from editforge.artifacts.eraser import Eraser
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.live import LiveModel
from editforge.recipe.contract import Context, EditOutput
from editforge.recipe.layers import resolve
from editforge.recipe.line import LINE
from editforge.recipe.recipe import Recipe
from editforge.run.job import Job
from editforge.run.said import say_lists, to_logger


def erase(
    pipe: Any,
    concepts: str | Path | Sequence[str | dict[str, Any]],
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

    The logger `editforge` says what each concept becomes and what is preserved (INFO), and what the
    checks of the edit warn of (WARNING). Both go to stderr if the program has no handlers of its own;
    `logging.getLogger("editforge").setLevel("WARNING")` leaves the warnings, `"ERROR"` nothing.

    Args:
        pipe: a diffusers pipeline of a known family, without adapters.
        concepts: a name, or names, or mappings with name, aliases and kind; a Path is a file of them
            (`artifacts/concept_file.py`). A mapping's name is taken as written, commas and all.
        method: a method name or a recipe file.
        target: what they become; None chooses.
        preserve: what must not move besides the target; None preserves what lies nearest.
        strength: 1 is the method's own edit; higher is stronger. None: the recipe's.
        seed: of methods that draw. None: the recipe's.
        options: `stage.key=value` texts, as `--set` takes them.
        family: None detects it from the pipeline.
        progress: bars on stderr, for what takes over a second.

    Returns:
        A WeightEdit; its repr names the targets. `edit.apply(pipe)`, `edit.remove(pipe)`,
        `edit.save_lora(folder)`. A method that guides gives its own kind of eraser, which has
        `applied(pipe)`.

    Raises:
        EditforgeError: an unreadable name, one that is perhaps several (`"a, b"`), an unknown
            architecture, a refused solve.
    """
    if isinstance(concepts, Path):
        listed: list[Any] = list(read_concepts(concepts))
    else:
        listed = [concepts] if isinstance(concepts, str) else list(concepts)
    refuse_doubtful(
        [row for row in listed if isinstance(row, str)],
        lambda _, others: f"editforge.erase(pipe, {others!r})",
        lambda name: f"editforge.erase(pipe, [{{'name': {name!r}}}])",
    )
    overrides: dict[str, Any] = {
        "concepts": [{"name": row} if isinstance(row, str) else row for row in listed],
    }
    overrides |= {k: v for k, v in (("strength", strength), ("seed", seed)) if v is not None}
    if target is not None:
        overrides["target"] = {"use": "fixed", "text": target}
    if preserve is not None:
        overrides["preserve"] = list(preserve)
    recipe = resolve(method, overrides, options)
    told = recipe.model
    model = LiveModel(
        pipe, family, clip_skip=told.clip_skip, steps=told.steps, guidance=told.guidance
    )
    context = Context(model, recipe.seed, progress, say=to_logger)
    return cast(WeightEdit, solve_in_memory(recipe, context))


def solve_in_memory(recipe: Recipe, context: Context) -> Eraser:
    """Down the line as far as something erases, without a folder; at the recipe's strength."""
    job = Job(recipe)
    for step in LINE:
        if step.inputs and step.config(recipe) is not None:
            if step.erases and not any(other.erases and other.name in job.made for other in LINE):
                say_lists(job, context.say)
            made = job.make(step, context)
            job.made[step.name] = made.edit if isinstance(made, EditOutput) else made
    return job.eraser
