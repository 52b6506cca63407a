"""One ridge solve for all layers: UCE, RealEra stage 1 and MACE refinement are recipes of it.

The Gram matrix lives in text space, so it does not depend on the layer: it is factorized once, and
each map costs one thin product B_l = W_l (T - C), read alone from the file. The change B_l A is exactly
low rank and ships as a LoRA without approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from editforge.artifacts.chosen import provenance, templates_of
from editforge.artifacts.concepts import Concept
from editforge.artifacts.system import System
from editforge.artifacts.weight_edit import WeightEdit
from editforge.edit.beyond import beyond_samples, beyond_words
from editforge.edit.checks import Limits, check_solution
from editforge.edit.factors import factors_of
from editforge.edit.held import background
from editforge.edit.mined import (
    MinedOptions,
    check_kappa,
    judged_columns,
    remedies,
    shells_around,
    with_neighbors,
)
from editforge.edit.paired import paired_system
from editforge.edit.vectors import Columns, NullRule, Templates, TokenRule, columns_of
from editforge.families.vocabulary import check_words
from editforge.ground.linalg import rank, solve, truncated
from editforge.recipe.contract import Context, EditInputs, EditOutput
from editforge.recipe.registry import register


class RidgeConfig(MinedOptions):
    """Options of `edit: ridge`. methods.md 1.1, 2.8 and 5.1."""

    tokens: TokenRule = Field("subject", description="Which states of each prompt are edited.")
    templates: Templates | None = Field(
        None, description="With {n} or {a}; null: the family's for the kind. More: higher rank."
    )
    ridge: float = Field(
        6.5e-4,
        ge=0,
        description="Pull to the original weights, relative to the mean squared norm of the "
        "erased vectors. Higher: smaller edit, weaker erasure.",
    )
    ridge_scale: Literal["relative", "absolute"] = Field(
        "relative", description="absolute takes `ridge` as lambda itself."
    )
    erase_weight: float = Field(1.0, ge=0, description="Higher: closer to the target.")
    preserve_weight: float | Literal["inverse_count"] = Field(
        1.0, description="Higher: less drift. inverse_count: max(0.1, 1 / number preserved)."
    )
    preserve_tokens: TokenRule | None = Field(
        None, description="States that are held of each preserved prompt; null: as `tokens`."
    )
    preserve_empty: bool = Field(False, description="Hold the empty prompt like a preserved one.")
    background: str | None = Field(
        None,
        description="Word list held softly as a whole: family, tokenizer or a file; null: none.",
    )
    background_weight: float = Field(
        1.0, ge=0, description="Weight of each background word. Higher: less drift, weaker erasure."
    )
    background_limit: int = Field(
        200, ge=1, description="Longer lists are thinned to this many. Higher: slower, surer."
    )
    null_vector: NullRule = Field("eot", description="What the empty target is.")
    values: Literal["replace", "tensor"] = Field(
        "replace", description="tensor subtracts the target's part along the concept (UCE 2023)."
    )
    max_rank: int | None = Field(
        None,
        ge=1,
        description="A higher rank is truncated, and the error reported; null: always exact.",
    )
    limits: Limits = Field(Limits(), description="When a solve warns, and when it refuses.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A background or caption list that is a file must be there."""
        super().check_early(concepts)
        check_words(self.background)

    def rank_of(self, names: int, templates: int, window: int, neighbors: int) -> int:
        """A column for each name, template and position; K more around each last token."""
        columns = names * templates * columns_of(self.tokens, window)
        if self.neighbor_map == "collapse":
            columns += names * templates * neighbors
        return columns if self.max_rank is None else min(columns, self.max_rank)

    @model_validator(mode="after")
    def _tensor_is_exact(self) -> RidgeConfig:
        if self.values == "tensor" and self.max_rank is not None:
            raise ValueError("max_rank cuts what all maps share; values: tensor differs by map")
        return self


@register("edit", "ridge", paper="https://arxiv.org/abs/2308.14761")
def ridge(inputs: EditInputs, config: RidgeConfig, context: Context) -> EditOutput:
    """Solve all concepts jointly; one factor A for all maps.

    Guarantee: minimizes the weighted squared error of `linalg.solve` for every map. The rank is at
    most the number of erased columns: concepts (aliases included) x templates x positions, and K
    mined neighbors around each last token if these collapse. Without mining this is UCE.

    Raises:
        EditError: a check refuses the solve; RecipeError: a text the encoder cannot read.
    """
    own, centers = paired_system(
        inputs, "ridge", lambda kind: _columns([kind], config, context, config.tokens), context
    )
    shells = shells_around(own, centers, inputs.neighbors)
    own = replace(own, scatter=beyond_samples(own, shells, config, context.seed))
    system = own if inputs.earlier is None else own.joined(inputs.earlier)
    kinds = [str(row["kind"]) for row in system.rows]
    columns = _columns(kinds, config, context, config.preserve_tokens or config.tokens)
    names = [*([""] if config.preserve_empty else []), *system.preserve]
    columns.read_all(names)
    kept = [columns.of(name) for name in names]
    preserve = torch.cat([torch.zeros(own.erased.shape[0], 0, dtype=torch.float64), *kept], dim=1)
    owners = [name for name, X in zip(names, kept, strict=True) for _ in range(X.shape[1])]
    system = with_neighbors(
        system, own, shells, preserve, config, context, erase_weight=config.erase_weight
    )
    hold = config.preserve_weight
    if hold == "inverse_count":
        hold = max(0.1, 1 / max(len(names), 1))
    held = None
    if config.background is not None:
        taken = [*system.preserve, *system.names, *system.kin]
        held = config.background_weight * background(
            columns, config.background, config.background_limit, taken, context, system.names
        )
    parts = [held, system.scatter, beyond_words(columns, system, inputs, config, context)]
    moments = [part for part in parts if part is not None]
    n, m = system.erased.shape[1], preserve.shape[1]
    erase = torch.ones(n, dtype=torch.float64) if system.weight is None else system.weight
    solution = solve(
        system.erased,
        preserve,
        erase_weight=config.erase_weight * erase,
        preserve_weight=torch.full((m,), float(hold), dtype=torch.float64),
        ridge=config.ridge,
        ridge_scale=config.ridge_scale,
        moment=sum(moments[1:], start=moments[0]) if moments else None,
    )
    shift = system.target - system.erased
    # `tensor` scales C by map, so the change has the rank of its columns, not of T - C
    exact = rank(shift if config.values == "replace" else solution.A.T, solution.A)
    left, right, lost = _compressed(shift, solution.A, exact, system, config)
    if lost:
        context.say(f"rank {exact} cut to {config.max_rank}: {lost:.2%} of the change is lost")
    factors, change = factors_of(
        lambda weight: _values(weight, system, config.values, left), right, context
    )
    checks = check_solution(
        solution,
        (system.erased, system.target, preserve),
        (system.erased_owner, owners),
        change,
        config.limits,
        context.say,
        judged_columns(system),
    )
    if system.weight is not None:
        next = remedies(config, shells, config.erase_weight, float(hold))
        checks |= check_kappa(system, preserve, shift, solution.A, next, config, context)
    if lost:
        checks["truncation"] = float(f"{lost:.6g}")
    told = provenance(system, checks)
    return EditOutput(WeightEdit(factors, {}, 1.0, None if lost else exact, told), system)


def _compressed(
    shift: Tensor, A: Tensor, exact: int, system: System, config: RidgeConfig
) -> tuple[Tensor, Tensor, float]:
    """Factors with no more columns than they need or may have, and the share of the change lost."""
    if config.max_rank is not None and exact > config.max_rank:
        return truncated(shift, A, config.max_rank)
    # neighbors that translate are columns without a rank of their own
    if system.weight is not None and config.values == "replace" and exact < A.shape[0]:
        return *truncated(shift, A, exact)[:2], 0.0
    return shift, A, 0.0


def _columns(
    kinds: Sequence[str], config: RidgeConfig, context: Context, tokens: TokenRule
) -> Columns:
    templates = config.templates or templates_of(kinds, context.model.family)
    return Columns(context.model, templates, tokens, config.null_vector)


def _values(weight: Tensor, system: System, values: str, shift: Tensor) -> Tensor:
    """B_l (out, n): W (T - C); for `tensor`, the new value is W T less its part along W C."""
    if values == "replace":
        return weight @ shift
    old, new = weight @ system.erased, weight @ system.target
    B = torch.empty_like(old)
    for owner in dict.fromkeys(system.erased_owner):
        mine = [i for i, name in enumerate(system.erased_owner) if name == owner]
        a, b = old[:, mine], new[:, mine]
        # norm and projection are single scalars over the concept's whole block (methods.md 5.1)
        share = float((a * b).sum() / a.square().sum().clamp(min=1e-30))
        B[:, mine] = b - share * a - a
    return B
