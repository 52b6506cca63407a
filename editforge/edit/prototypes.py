"""The closed form of `mean-shift` with a concept's prototypes as further erased columns.

A prototype is a text state that says what no name does: the denoiser that reads it draws a cluster of
the concept. Erased with the names, it takes prompts with it that nobody listed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from editforge.artifacts.chosen import becomes
from editforge.edit.mean_shift import MeanShiftConfig, mean_system, solved
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled
from editforge.recipe.contract import Context, EditInputs, EditOutput
from editforge.recipe.registry import register


class PrototypesConfig(MeanShiftConfig):
    """Options of `edit: prototypes`: those of `mean-shift`."""

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int:
        """Four a name, and at most 16 prototypes."""
        return super().rank_of(names, templates, window, neighbors) + 16


@register("edit", "prototypes", paper="https://arxiv.org/abs/2603.08271")
def prototypes(inputs: EditInputs, config: PrototypesConfig, context: Context) -> EditOutput:
    """Solve `mean-shift` with K more columns a concept: t_k becomes the target's last padding state.

    A prototype stands where padding stands, so that is what it is mapped to; a soft prompt is the mean
    of its states. The rank grows by K at most.

    Raises:
        RecipeError: no prototype was mined. EditError: a check refuses the solve.
    """
    found = inputs.neighbors.prototypes
    if found is None:
        raise RecipeError(
            "there are no prototypes to erase",
            allowed="mine: [{use: prototypes}]",
            next="--set edit.use=mean-shift",
        )
    system = mean_system(inputs, config, context)
    erased, target, owners = [system.erased], [system.target], list(system.erased_owner)
    for concept in inputs.concepts:
        rows = found.rows_of(concept.name)
        if found.form == "token":
            columns = found.tensors["token"][rows]
        else:
            columns = found.tensors["prompt_embeds"][rows][:, 1:].mean(dim=1)
        template = context.model.family.templates.get(concept.kind, ("{n}",))[-1]
        goal = context.model.encoder.encode([filled(template, becomes(concept, inputs))])[0, -1]
        erased.append(columns.double().T)
        target.append(goal.double()[:, None].expand(-1, len(columns)))
        owners += [concept.name] * len(columns)
    system = replace(
        system,
        erased=torch.cat(erased, dim=1),
        target=torch.cat(target, dim=1),
        erased_owner=tuple(owners),
        method="prototypes",
    )
    return solved(system, inputs, config, context)
