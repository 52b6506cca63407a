"""One call for each stage: from a recipe and the artifacts it reads to the one it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from editforge.artifacts.concepts import Concept
from editforge.artifacts.eraser import Acting, Eraser
from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.report import Report
from editforge.artifacts.system import System
from editforge.artifacts.targets import Targets
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import TextModel
from editforge.recipe import registry
from editforge.recipe.contract import (
    AlignInputs,
    Context,
    EditInputs,
    EditOutput,
    GuideInputs,
    MineInputs,
    TargetInputs,
)
from editforge.recipe.recipe import Recipe
from editforge.run.hand import Hand
from editforge.run.public import provenance_of


def mine(recipe: Recipe, context: Context) -> Neighbors:
    """Run every miner of the recipe and merge what they found; earlier ones win."""
    found = Neighbors()
    for position, config in enumerate(recipe.mine or ()):
        one = _call("mine", config, MineInputs(recipe.concepts), context)
        found = one if position == 0 else found.merged(one)
    return found


def choose(recipe: Recipe, neighbors: Neighbors, context: Context) -> Targets:
    """Choose targets and the preserve list."""
    preserve = None if recipe.preserve == "auto" else recipe.preserve
    inputs = TargetInputs(recipe.concepts, neighbors, preserve)
    targets: Targets = _call("target", recipe.target, inputs, context)
    return targets


def edit(
    recipe: Recipe,
    targets: Targets,
    neighbors: Neighbors,
    context: Context,
    hand: Hand | None = None,
) -> EditOutput:
    """Compute the closed form at strength 1, with provenance; empty if the recipe has none."""
    if recipe.edit is None:
        output = EditOutput(WeightEdit({}, exact_rank=0))
    else:
        path = recipe.continue_from
        earlier = System.load(Path(path).expanduser()) if path else None
        inputs = EditInputs(recipe.concepts, targets, neighbors, earlier)
        output = _call("edit", recipe.edit, inputs, context)
        output = output if isinstance(output, EditOutput) else EditOutput(output)
    facts = provenance_of(recipe, targets, context, hand or {})
    return replace(output, edit=output.edit.explained(facts))


def align(
    recipe: Recipe, start: WeightEdit, targets: Targets, neighbors: Neighbors, context: Context
) -> WeightEdit:
    """Train on top of an edit; the result holds both."""
    inputs = AlignInputs(recipe.concepts, targets, neighbors, start)
    result: WeightEdit = _call("align", recipe.align, inputs, context)
    return result.explained(start.provenance)


def guide(
    recipe: Recipe,
    targets: Targets | None,
    neighbors: Neighbors,
    context: Context,
    hand: Hand | None = None,
) -> Eraser:
    """Make what steers sampling, with provenance; it is no WeightEdit."""
    inputs = GuideInputs(recipe.concepts, targets or Targets(concepts=()), neighbors)
    result: Eraser = _call("guide", recipe.guide, inputs, context)
    return result.explained(provenance_of(recipe, targets, context, hand or {}))


def gate(
    model: TextModel,
    context: Context,
    final: Acting,
    concepts: Sequence[Concept],
    targets: Mapping[str, str],
    preserve: Sequence[str],
    judge: str | None,
) -> Report:
    """Judge an eraser, or an artifact as its user loads it, with the `gate` tier.

    A family without lists of its own takes the preserved words as near names.
    """
    from editforge.evaluate.gate import evaluate_gate

    family = model.family
    return evaluate_gate(
        model.pipeline(),
        final,
        concepts,
        family_name=family.name,
        judge=judge,
        near=None if family.judge else [word for word in preserve if word][:8],
        targets=targets,
        strength=final.strength,
        seed=context.seed,
        sampler=model.sampler,
        progress=context.progress,
        workdir=context.work,
        workdir_of=model.digest if context.work else None,
        base=model.drawn_by,
        team=context.team,
    )


def _call(stage: str, config: Any, inputs: Any, context: Context) -> Any:
    return registry.get(stage, config.use).function(inputs, config, context)
