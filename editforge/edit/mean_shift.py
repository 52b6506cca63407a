"""Move the concept's mean state towards its target's, with the least drift of everything else.

A prompt does not carry a concept in one state: the name's last token, the words behind it, the end of
text and every padding position hold some of it, and each depends on the words around. A ridge solve
that maps one such state to one target leaves the others, and one that maps them all has the rank of all
of them. Here the states of one concept form groups (last token, words behind, end, padding) over
several templates; each group is moved by one vector, from its mean to the target's mean. What the words
around add to a state stays in it. The rank is the number of groups, whatever the number of templates.

How far a mean goes is weighed against what everything held would drift. Many names share the d
dimensions of a text state: asked to move all of them exactly, any linear map tears up the rest
(docs/decisions.md has the law). So the weight is finite, and the way that is left is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from editforge.artifacts.chosen import (
    becomes,
    erased_names,
    provenance,
    system_of,
    templates_of,
)
from editforge.artifacts.concepts import Concept
from editforge.artifacts.system import System
from editforge.artifacts.weight_edit import WeightEdit
from editforge.edit.checks import Limits, check_solution, drift_of, way_left
from editforge.edit.factors import shifted
from editforge.edit.held import background, empty_prompt, moments
from editforge.edit.vectors import END, Columns, Templates
from editforge.families.vocabulary import check_words
from editforge.ground.linalg import constrained, solve
from editforge.recipe.contract import Context, EditInputs, EditOutput, StageConfig
from editforge.recipe.registry import register

_UNSEEN = ("this is {a}", "{a} in a picture")  # prompts that no solve reads


class MeanShiftConfig(StageConfig):
    """Options of `edit: mean-shift`."""

    templates: Templates | None = Field(
        None, description="With {n} or {a}; null: the family's for the kind. More: surer erasure."
    )
    pads: int = Field(4, ge=1, description="Padding positions read per prompt. More: slower.")
    reach: float = Field(
        1.0, gt=0, description="How far towards the target; over 1 goes past it. Higher: stronger."
    )
    erase_weight: float | None = Field(
        None,
        gt=0,
        description="Of each name, shared among them. Higher: surer erasure, more drift; null: all "
        "the way, whatever drifts.",
    )
    least_weight: float = Field(
        4.0, gt=0, description="Of each name, however many share. Higher: surer, more drift."
    )
    preserve_weight: float = Field(
        10.0, ge=0, description="Of each name preserved. Higher: it drifts less."
    )
    empty_weight: float = Field(
        1000.0, ge=0, description="Of begin of text and of the empty prompt: in every picture."
    )
    background: str | None = Field(
        "family", description="Word list held as a whole: family, tokenizer, a file; null: none."
    )
    background_weight: float = Field(1.0, ge=0, description="Of each word. Higher: it drifts less.")
    background_limit: int = Field(
        200, ge=1, description="Longer lists are thinned to this many. Higher: slower, surer."
    )
    ridge: float = Field(
        1e-2, gt=0, description="Relative to the mean squared norm. Higher: smaller factors."
    )
    limits: Limits = Field(
        Limits(change=(1.5, 5.0), residual=(0.7, 0.95)),
        description="When a solve warns, and when it refuses.",
    )

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A background list that is a file must be there."""
        check_words(self.background)

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int:
        """Four groups a name, whatever the number of templates."""
        return 4 * names

    def foreseen(self, names: int, width: int) -> dict[str, float]:
        """The background's drift by the law that docs/decisions.md measures; a bound of the condition.

        Random directions in d dimensions share 1 / sqrt(d) of each other, so n names that each move
        by about the length of a state move everything else by about sqrt(n / d) of its own.
        """
        held = self.background_limit * self.background_weight + 2 * self.empty_weight
        held += 16 * names * self.preserve_weight + names * (self.erase_weight or 1.0)
        return {
            "background_drift": 0.9 * (names / width) ** 0.5,
            "condition": 1 + held / self.ridge,
        }


@register("edit", "mean-shift")
def mean_shift(inputs: EditInputs, config: MeanShiftConfig, context: Context) -> EditOutput:
    """Solve all concepts jointly.

        M = mean states (d, k) of the groups of all erased names; S = their targets' means
        G = lam I + sum over everything held of weight * mean of x x^T
        w = max(erase_weight / number of names, least_weight)
        A = (M^T G^-1 M + I / w)^-1 M^T G^-1
        W'_l = W_l + W_l (reach (S - M)) A

    Guarantee: the least sum of w |A m_i - e_i|^2 and weight |A x|^2; erase_weight null: A M = I.
    The rank is at most the number of groups, four per erased name; what is orthogonal to G^-1 M does
    not move.

    Raises:
        EditError: a check refuses, or two erased names are one to the encoder.
    """
    return solved(mean_system(inputs, config, context), inputs, config, context)


def solved(
    system: System, inputs: EditInputs, config: MeanShiftConfig, context: Context
) -> EditOutput:
    """The solve of `mean_shift` for columns that are read already; see there."""
    model = context.model
    if inputs.earlier is not None:
        system = system.joined(inputs.earlier)
    columns = _columns([str(row["kind"]) for row in system.rows], config, context)
    taken = [*system.preserve, *system.names, *system.kin]
    others = background(
        columns, config.background, config.background_limit, taken, context, system.names
    )
    with context.bar(len(system.preserve), "encoding what is preserved") as bar:
        held, preserved = moments(columns, system.preserve, model.family.text_width, bar)
    G = config.background_weight * others + config.preserve_weight * preserved
    G += config.empty_weight * empty_prompt(model)
    if config.erase_weight is None:
        solution = constrained(system.erased, G, ridge=config.ridge)
    else:
        weight = max(config.erase_weight / len(system.names), config.least_weight)
        solution = solve(
            system.erased,
            system.erased[:, :0],
            erase_weight=torch.full(system.erased.shape[1:], weight, dtype=torch.float64),
            preserve_weight=torch.zeros(0, dtype=torch.float64),
            ridge=config.ridge,
            moment=G,
        )
    shift = config.reach * (system.target - system.erased)
    factors, change, exact = shifted(shift, solution.A, context)
    checks = check_solution(
        solution,
        (system.erased, system.erased + shift, held),
        (system.erased_owner, system.preserve),
        change,
        config.limits,
        context.say,
        residual=way_left(system.rows, _UNSEEN, model, shift, solution.A),
    )
    checks["background_drift"] = drift_of(others + preserved, shift, solution.A)
    return EditOutput(WeightEdit(factors, {}, 1.0, exact, provenance(system, checks)), system)


def mean_system(inputs: EditInputs, config: MeanShiftConfig, context: Context) -> System:
    """Means of every group of every erased name, and of its target's same group."""
    readers = {c.kind: _columns([str(c.kind)], config, context) for c in inputs.concepts}
    means: list[Tensor] = []
    goals: list[Tensor] = []
    owners: list[str] = []
    for concept in inputs.concepts:
        columns, goal = readers[concept.kind], becomes(concept, inputs)
        names = erased_names(concept, inputs)
        columns.read_all([*names, goal])
        for name in names:
            groups = [at for at, group in enumerate(columns.groups(name)) if group]
            means.append(_means(columns, name, groups))
            goals.append(_means(columns, goal, groups))
            owners += [concept.name] * len(groups)
        columns.forget()
    base = context.model.base_sha256
    return system_of(inputs, "mean-shift", base, (means, goals, owners))


def _columns(kinds: Sequence[str], config: MeanShiftConfig, context: Context) -> Columns:
    templates = config.templates or templates_of(kinds, context.model.family)
    return Columns(context.model, templates, "phrase", pads=config.pads)


def _means(columns: Columns, name: str, wanted: Sequence[int]) -> Tensor:
    """(d, groups): the mean of each wanted group of one name's columns, of its ends if it has none.

    The empty prompt has no words behind a name.
    """
    X, groups = columns.of(name), columns.groups(name)
    own = [groups[at] or groups[END] for at in wanted]
    return torch.stack([X[:, group].mean(dim=1) for group in own], dim=1)
