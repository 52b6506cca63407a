"""One ridge solve for all layers: UCE, RealEra stage 1 and MACE refinement are recipes of it.

The Gram matrix lives in text space, so it does not depend on the layer: it is factorized once, and
each map costs one thin product B_l = W_l (T - C), read alone from the file. The change B_l A is exactly
low rank and ships as a LoRA without approximation.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from editforge.artifacts.concepts import fold
from editforge.artifacts.system import System
from editforge.artifacts.weight_edit import LowRank, WeightEdit
from editforge.edit.checks import Limits, check_solution
from editforge.edit.vectors import Columns, NullRule, TokenRule
from editforge.families.vocabulary import word_list
from editforge.linalg import rank, solve
from editforge.registry import register
from editforge.stages import Context, EditInputs, EditOutput, StageConfig


class RidgeConfig(StageConfig):
    """Options of `edit: ridge`. methods.md 1.1 and 5.1."""

    tokens: TokenRule = Field("subject", description="Which states of each prompt are edited.")
    templates: tuple[str, ...] | None = Field(
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
    background: str | None = Field(
        None, description="Word list held softly as a whole: family, tokenizer or a file; null: none."
    )
    background_weight: float = Field(
        1.0, ge=0, description="Weight of each background word. Higher: less drift, weaker erasure."
    )
    null_vector: NullRule = Field("eot", description="What the empty target is.")
    values: Literal["replace", "tensor"] = Field(
        "replace", description="tensor subtracts the target's part along the concept (UCE 2023)."
    )
    limits: Limits = Field(Limits(), description="When a solve warns, and when it refuses.")


@register("edit", "ridge", paper="https://arxiv.org/abs/2308.14761")
def ridge(inputs: EditInputs, config: RidgeConfig, context: Context) -> EditOutput:
    """Solve all concepts jointly; one factor A for all maps.

    Guarantee: minimizes the weighted squared error of `linalg.solve` for every map. The rank is at
    most the number of erased columns: concepts (aliases included) x templates x positions.

    Raises:
        EditError: a check refuses the solve; RecipeError: a text the encoder cannot read.
    """
    system = _system(inputs, config, context)
    if inputs.earlier is not None:
        system = system.joined(inputs.earlier)
    moment = _background(inputs, config, context, system)
    solution = solve(
        system.erased,
        system.preserve,
        erase_weight=system.erase_weight,
        preserve_weight=system.preserve_weight,
        ridge=config.ridge,
        ridge_scale=config.ridge_scale,
        moment=moment,
    )
    A = solution.A.float()  # one tensor, shared by all maps
    shift = system.target - system.erased
    factors, change = {}, 0.0
    with context.bar(len(context.model.paths), "solving") as bar:
        for path in context.model.paths:
            weight = context.model.weight(path)
            B = _values(weight.double(), system, config.values, shift)
            factors[path] = LowRank(B.float(), A)
            change = max(change, _norm(B, solution.A) / max(float(weight.double().norm()), 1e-30))
            bar.update()
    checks = check_solution(
        solution,
        (system.erased, system.target, system.preserve),
        (system.erased_owner, system.preserve_owner),
        change,
        config.limits,
        context.say,
    )
    names = [str(row["name"]) for row in system.rows]
    provenance = {
        "erased": list(system.rows),
        "combined": "one concept" if len(names) == 1 else "joint",
        "preserve": list(dict.fromkeys(system.preserve_owner)),
        "checks": checks,
    }
    exact = rank(shift, solution.A)
    return EditOutput(WeightEdit(factors, {}, 1.0, exact, provenance), system)


def _system(inputs: EditInputs, config: RidgeConfig, context: Context) -> System:
    """Erased columns of every name, alias and neighbor marked `erase`; preserve columns of the rest."""
    kinds = {concept.kind for concept in inputs.concepts}
    columns = {kind: _columns(kind, config, context) for kind in sorted(kinds)}
    erased, target, owners, rows = [], [], [], []
    for concept in inputs.concepts:
        goal = inputs.targets.of(concept.name).target
        marked = inputs.neighbors.of(concept.name).having("erase")
        texts = {fold(text): text for text in (*reversed(marked), *reversed(concept.names))}
        columns[concept.kind].read_all([*texts.values(), goal])
        for text in dict.fromkeys((*concept.names, *texts.values())):
            C, T = columns[concept.kind].pair(text, goal)
            erased.append(C)
            target.append(T)
            owners += [concept.name] * C.shape[1]
        others = [text for text in texts.values() if text != concept.name]
        rows.append(
            {"name": concept.name, "aliases": others, "kind": concept.kind, "target": goal}
        )
    gone = {fold(text) for concept in inputs.concepts for text in concept.names}
    names = [word for word in inputs.targets.preserved if fold(word) not in gone]
    main = columns[inputs.concepts[0].kind]
    main.read_all(names)
    kept = [(name, main.of(name)) for name in names]
    d = context.model.family.text_width
    P = torch.cat([block for _, block in kept], 1) if kept else torch.zeros(d, 0)
    weight = config.preserve_weight
    if isinstance(weight, str):
        weight = max(0.1, 1 / max(len(names), 1))
    C = torch.cat(erased, dim=1)
    return System(
        erased=C,
        target=torch.cat(target, dim=1),
        preserve=P.double(),
        erase_weight=torch.full((C.shape[1],), config.erase_weight, dtype=torch.float64),
        preserve_weight=torch.full((P.shape[1],), weight, dtype=torch.float64),
        erased_owner=tuple(owners),
        preserve_owner=tuple(name for name, block in kept for _ in range(block.shape[1])),
        rows=tuple(rows),
        base_sha256=context.model.base_sha256,
    )


def _columns(kind: str, config: RidgeConfig, context: Context) -> Columns:
    templates = config.templates or context.model.family.templates.get(kind, ("{n}",))
    return Columns(context.model, templates, config.tokens, config.null_vector)


def _background(
    inputs: EditInputs, config: RidgeConfig, context: Context, system: System
) -> Tensor | None:
    """Sum of w x x^T over the background words that are neither erased, preserved, nor too alike."""
    if config.background is None or config.background_weight == 0:
        return None
    listed = {fold(word) for word in (*system.erased_owner, *system.preserve_owner)}
    for concept in inputs.concepts:
        near = inputs.neighbors.of(concept.name).words
        listed |= {fold(word) for word in concept.names}
        listed |= {fold(row.word) for row in near if row.reason or row.role == "erase"}
    words = [w for w in word_list(context.model, config.background) if fold(w) not in listed]
    columns = _columns(inputs.concepts[0].kind, config, context)
    d = context.model.family.text_width
    moment = torch.zeros(d, d, dtype=torch.float64)
    with context.bar(len(words), "encoding the background") as bar:
        for first in range(0, len(words), 256):
            part = words[first : first + 256]
            columns.read_all(part)
            X = torch.cat([columns.of(word) for word in part], dim=1)
            moment.addmm_(X, X.T, alpha=config.background_weight)
            bar.update(len(part))
    return moment


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


def _norm(B: Tensor, A: Tensor) -> float:
    """|B A|_F without forming it."""
    return float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt())
