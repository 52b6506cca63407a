"""Edit only in directions that what is preserved does not use: SPEED's null space, as a closed form.

A ridge solve lets preserved vectors drift a little; here their span is left out of the change, so they
do not move at all. The price: what an erased concept shares with the preserved ones cannot be edited,
so a long list erases less. The per-layer filter and the noisy copies of the released code are not
built: they make the null space differ by layer, and the change no longer shares one factor.
"""

from __future__ import annotations

import torch
from pydantic import Field

from editforge.artifacts.chosen import provenance, templates_of
from editforge.artifacts.concepts import Concept
from editforge.artifacts.weight_edit import WeightEdit
from editforge.edit.checks import Limits, check_solution
from editforge.edit.factors import shifted
from editforge.edit.held import moments
from editforge.edit.paired import paired_system
from editforge.edit.vectors import Columns, Templates, TokenRule, columns_of
from editforge.families.vocabulary import check_words, thinned, unnamed, word_list
from editforge.ground.linalg import null_space
from editforge.ground.names import fold
from editforge.recipe.contract import Context, EditInputs, EditOutput, StageConfig
from editforge.recipe.registry import register


class NullSpaceConfig(StageConfig):
    """Options of `edit: null-space`. methods.md 5.4."""

    tokens: TokenRule = Field("subject", description="Which states of each prompt are edited.")
    templates: Templates | None = Field(
        ("{n}",), description="With {n} or {a}; null: the family's for the kind. More: higher rank."
    )
    threshold: float = Field(
        1e-3,
        ge=0,
        lt=1,
        description="Directions below it, relative to the most used, are free. Higher: surer erasure, "
        "more drift.",
    )
    ridge: float = Field(
        1e-2, gt=0, description="Relative to the mean squared norm. Higher: smaller edit."
    )
    background: str | None = Field(
        "family", description="Word list preserved besides: family, tokenizer, a file; null: none."
    )
    background_limit: int = Field(
        1000, ge=1, description="Longer lists are thinned to this many. Higher: slower, surer."
    )
    limits: Limits = Field(Limits(), description="When a solve warns, and when it refuses.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A background list that is a file must be there."""
        check_words(self.background)

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int:
        """A column for each name, template and position."""
        return names * templates * columns_of(self.tokens, window)


@register("edit", "null-space", paper="https://arxiv.org/abs/2503.07392")
def edit_null_space(inputs: EditInputs, config: NullSpaceConfig, context: Context) -> EditOutput:
    """Solve all concepts jointly inside the null space of what is preserved.

    Guarantee: see `linalg.null_space`; preserved vectors and the empty prompt's states stay, up to
    the share of them below `threshold`. Rank: at most the number of erased columns.

    Raises:
        EditError: nothing is free, or a check refuses the solve.

    Reference: Li et al., "SPEED", arXiv 2503.07392, without its per-layer filter and copies.
    """
    model = context.model
    system, _ = paired_system(
        inputs, "null-space", lambda kind: _columns([kind], config, context), context
    )
    if inputs.earlier is not None:
        system = system.joined(inputs.earlier)
    columns = _columns([str(row["kind"]) for row in system.rows], config, context)
    taken = {fold(word) for word in (*system.names, *system.kin, *system.preserve)}
    listed = word_list(model, config.background) if config.background else ()
    others = unnamed(model.family, thinned(listed, config.background_limit), system.names)
    others = [word for word in others if fold(word) not in taken]
    names = [*system.preserve, *others]
    with context.bar(len(names), "encoding what is preserved") as bar:
        held, S = moments(columns, names, model.family.text_width, bar)
    empty = model.encoder.encode([""])[0].double()
    fixed = empty[[0, 1, len(empty) // 2, len(empty) - 1]].T
    shift = system.target - system.erased
    solution = null_space(
        system.erased, S / max(len(names), 1), fixed, threshold=config.threshold, ridge=config.ridge
    )
    factors, change, exact = shifted(shift, solution.A, context)
    checks = check_solution(
        solution,
        (system.erased, system.target, torch.cat([held, fixed], dim=1)),
        (system.erased_owner, [*names, *[""] * fixed.shape[1]]),
        change,
        config.limits,
        context.say,
    )
    return EditOutput(WeightEdit(factors, {}, 1.0, exact, provenance(system, checks)), system)


def _columns(kinds: list[str], config: NullSpaceConfig, context: Context) -> Columns:
    templates = config.templates or templates_of(kinds, context.model.family)
    return Columns(context.model, templates, config.tokens)
