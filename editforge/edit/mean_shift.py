"""Move the concept's mean state exactly to its target's, with the least drift of everything else.

A prompt does not carry a concept in one state: the name's last token, the end of text and every
padding position behind it hold some of it, and each depends on the words around. A ridge solve that
maps one such state to one target leaves the others, and one that maps them all has the rank of all of
them. Here the states of one concept form three groups (last token, end, padding) over several
templates; each group is moved by one vector, from its mean to the target's mean. What the words around
add to a state stays in it. The rank is three per name, whatever the number of templates, and exact.

The factor A is the minimum-variance solution with a linear constraint (Capon's beamformer): among all
A that answer the concept's means with one, the one that answers everything held the least.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from editforge.artifacts.chosen import (
    becomes,
    erased_names,
    kin,
    preserved_names,
    provenance,
    provenance_rows,
    templates_of,
)
from editforge.artifacts.concepts import Concept
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.system import System
from editforge.artifacts.weight_edit import WeightEdit
from editforge.edit.checks import Limits, check_solution, relative_change
from editforge.edit.held import background, moments
from editforge.edit.vectors import Columns, Templates
from editforge.families.vocabulary import check_words
from editforge.ground.linalg import constrained, rank
from editforge.recipe.contract import Context, EditInputs, EditOutput, StageConfig
from editforge.recipe.registry import register


class MeanShiftConfig(StageConfig):
    """Options of `edit: mean-shift`."""

    templates: Templates | None = Field(
        None, description="With {n} or {a}; null: the family's for the kind. More: surer erasure."
    )
    pads: int = Field(4, ge=1, description="Padding positions read per prompt. More: slower.")
    reach: float = Field(
        1.0, gt=0, description="How far towards the target; over 1 goes past it. Higher: stronger."
    )
    preserve_weight: float = Field(1.0, ge=0, description="Higher: named preserves drift less.")
    background: str | None = Field(
        "family", description="Word list held as a whole: family, tokenizer, a file; null: none."
    )
    background_weight: float = Field(1.0, ge=0, description="Higher: other words drift less.")
    background_limit: int = Field(
        200, ge=1, description="Longer lists are thinned to this many. Higher: slower, surer."
    )
    ridge: float = Field(
        1e-2, gt=0, description="Relative to the mean squared norm. Higher: smaller factors."
    )
    limits: Limits = Field(Limits(), description="When a solve warns, and when it refuses.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A background list that is a file must be there."""
        check_words(self.background)

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int:
        """Three groups a name, whatever the number of templates."""
        return 3 * names


@register("edit", "mean-shift")
def mean_shift(inputs: EditInputs, config: MeanShiftConfig, context: Context) -> EditOutput:
    """Solve all concepts jointly.

        M = mean states (d, k) of the groups of all erased names; S = their targets' means
        G = lam I + sum over held and erased names of w * mean of x x^T
        A = (M^T G^-1 M)^-1 M^T G^-1,   A M = I          the least sum of w |A x|^2 that does it
        W'_l = W_l + W_l (reach (S - M)) A

    Guarantee: the mean state of each group goes exactly to its target (reach 1); the rank is the
    number of groups, three per erased name; what is orthogonal to G^-1 M does not move.

    Raises:
        EditError: a check refuses, or two erased names are one to the encoder.
    """
    model, width = context.model, context.model.family.text_width
    readers = {c.kind: _columns([str(c.kind)], config, context) for c in inputs.concepts}
    means, goals, owners = [], [], []
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for concept in inputs.concepts:
        columns, goal = readers[concept.kind], becomes(concept, inputs)
        names = erased_names(concept, inputs)
        columns.read_all([*names, goal])
        aim = _group_means(columns, columns.of(goal))
        for name in names:
            X = columns.of(name)
            means.append(_group_means(columns, X))
            goals.append(aim)
            owners += [concept.name] * 3
            scatter.addmm_(X, X.T, alpha=1 / X.shape[1])
        columns.forget()
    system = System(
        erased=torch.cat(means, dim=1),
        target=torch.cat(goals, dim=1),
        scatter=scatter,
        erased_owner=tuple(owners),
        preserve=tuple(preserved_names(inputs)),
        rows=provenance_rows(inputs),
        base_sha256=model.base_sha256,
        method="mean-shift",
        kin=kin(inputs),
    )
    if inputs.earlier is not None:
        system = system.joined(inputs.earlier)
    columns = _columns([str(row["kind"]) for row in system.rows], config, context)
    taken = [*system.preserve, *system.names, *system.kin]
    others = background(columns, config.background, config.background_limit, taken, context)
    with context.bar(len(system.preserve), "encoding what is preserved") as bar:
        held, preserved = moments(columns, system.preserve, width, bar)
    G = others.mul_(config.background_weight).add_(preserved, alpha=config.preserve_weight)
    if system.scatter is not None:
        G += system.scatter
    solution = constrained(system.erased, G, ridge=config.ridge)
    shift = config.reach * (system.target - system.erased)
    A = solution.A.float()  # one tensor, shared by all maps
    gram = solution.A @ solution.A.T
    factors, change = {}, 0.0
    with context.bar(len(model.paths), "solving") as bar:
        for path in model.paths:
            weight = model.weight(path).double()
            B = weight @ shift
            factors[path] = LowRank(B.float(), A)
            change = max(change, relative_change(B, gram, weight))
            bar.update()
    vectors = (system.erased, system.erased + shift, held)
    checks = check_solution(
        solution,
        vectors,
        (system.erased_owner, system.preserve),
        change,
        config.limits,
        context.say,
    )
    exact = rank(shift, solution.A)
    return EditOutput(WeightEdit(factors, {}, 1.0, exact, provenance(system, checks)), system)


def _columns(kinds: Sequence[str], config: MeanShiftConfig, context: Context) -> Columns:
    templates = config.templates or templates_of(kinds, context.model.family)
    return Columns(context.model, templates, "phrase", pads=config.pads)


def _group_means(columns: Columns, X: Tensor) -> Tensor:
    """(d, 3): the mean of each group of one name's columns."""
    return torch.stack([X[:, group].mean(dim=1) for group in columns.groups], dim=1)
