"""Did the solve do what it promised, and at what price: the numbers, then a warning or a refusal.

A published solve with its ridge at zero and no preserve vectors moved weights by 12.6 times their norm
and said nothing. Thresholds are ours (methods.md 1.4) and options of the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from editforge.families.model import TextModel
from editforge.ground.errors import EditError
from editforge.ground.linalg import Solution, amplification, moved
from editforge.ground.names import filled

_PIECE = 16  # names encoded at a time


class Limits(BaseModel):
    """When a solve warns and when it refuses. Raising a limit lets a wilder edit pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: tuple[float, float] = Field((1e8, 1e12), description="Of the Gram matrix.")
    change: tuple[float, float] = Field((1.0, 3.0), description="|B A| / |W|, worst map.")
    amplification: tuple[float, float] = Field((10.0, 30.0), description="Spectral norm of E.")
    residual: tuple[float, float] = Field(
        (0.05, 0.5), description="What is left of the way to the target, by concept."
    )
    drift: float = Field(0.05, description="|E p - p| / |p|, worst preserve vector: warns only.")


def relative_change(B: Tensor, gram: Tensor, weight: Tensor) -> float:
    """|B A|_F / |W|_F of one map, from gram = A A^T, which all maps share; B A is never formed."""
    moved = ((B.T @ B) * gram).sum().clamp(min=0).sqrt()
    return float(moved / weight.norm().clamp(min=1e-30))


def check_solution(
    solution: Solution,
    vectors: tuple[Tensor, Tensor, Tensor],
    owners: tuple[Sequence[str], Sequence[str]],
    change: float,
    limits: Limits,
    say: Callable[[str], None],
    judged: Sequence[int] | None = None,
    residual: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure one solve and compare it with its limits.

    Args:
        solution: what `linalg.solve` gave.
        vectors: erased (d, n), target (d, n), preserve (d, m).
        owners: concept of each erased and each preserve column.
        change: the largest |B_l A| / |W_l| of all maps.
        limits: (warn, refuse) of each number.
        say: takes a warning.
        judged: erased columns that must reach their target; None: all. Others are helpers.
        residual: of each concept, if it was measured on states that the solve has not read; None:
            on the columns themselves.

    Returns:
        The numbers, JSON-able, for provenance and card.

    Raises:
        EditError: a number is over its second limit, or not a number.
    """
    erased, target, preserve = (tensor.double() for tensor in vectors)
    if residual is None:
        gap = (erased - target).norm(dim=0).clamp(min=1e-30)
        left = (moved(erased, erased, target, solution.A) - target).norm(dim=0) / gap
        columns = range(len(owners[0])) if judged is None else judged
        residual = _worst_by_owner(left[list(columns)], [owners[0][at] for at in columns])
    after = moved(preserve, erased, target, solution.A)
    drift = _worst_by_owner(
        (after - preserve).norm(dim=0) / preserve.norm(dim=0).clamp(min=1e-30), owners[1]
    )
    numbers = {
        "condition": solution.condition,
        "change": change,
        "amplification": amplification(erased, target, solution.A),
        "residual": max(residual.values(), default=0.0),
        "drift": max(drift.values(), default=0.0),
    }
    hints = {
        "condition": "raise edit.ridge",
        "change": "choose a nearer target, preserve more, or lower --strength",
        "amplification": "raise edit.ridge, or drop preserve concepts that equal an erased one",
        "residual": "lower edit.ridge, raise edit.erase_weight, or preserve less that is like it",
    }
    for name, hint in hints.items():
        value, (warn, refuse) = numbers[name], getattr(limits, name)
        worst = max(residual, key=lambda key: residual[key]) if name == "residual" else ""
        what = f"{name} {value:.3g}" + (f" of {worst!r}" if worst else "")
        if not value <= refuse:
            raise EditError(
                f"the edit is refused: {what}",
                allowed=f"at most {refuse:g}",
                next=f"{hint}; or --set edit.limits.{name}='[{warn:g}, {max(10 * refuse, 2):g}]'",
            )
        if value > warn:
            say(f"warning: {what} is over {warn:g}; {hint}")
    if numbers["drift"] > limits.drift:
        word = max(drift, key=lambda key: drift[key])
        say(f"note: the preserved {word!r} drifts by {numbers['drift']:.3f} of its length")
    rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
    return {**rounded, "residuals": {name: float(f"{v:.6g}") for name, v in residual.items()}}


def way_left(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[str],
    model: TextModel,
    shift: Tensor,
    A: Tensor,
) -> dict[str, float]:
    """Of each concept, the share of the way to its target that the edit leaves, on unseen prompts.

        1 - <E x - x, t - x> / |t - x|^2        x, t: mean state behind the name, and its target's

    1 is not moved at all, 0 has arrived; an edit that goes past its target has 0 left. The worst of
    the concept's names counts.

    Args:
        rows: provenance of the erased concepts.
        prompts: templates with {n} or {a} that the solve has not read.
        model: whose encoder reads them.
        shift: (d, n).
        A: (n, d).
    """
    left: dict[str, float] = {}
    erased = {row["name"]: (row["name"], *row["aliases"], *row.get("mined", ())) for row in rows}
    targets = {row["name"]: str(row["target"]) for row in rows}
    words = [*targets.values(), *(name for names in erased.values() for name in names)]
    states = _behind(prompts, list(dict.fromkeys(words)), model)
    for concept, names in erased.items():
        for name in names:
            x = states[name]
            gap = states[targets[concept]] - x
            share = float(((shift @ (A @ x)) * gap).sum() / gap.square().sum().clamp(min=1e-30))
            worst = left.get(concept, 0.0)
            left[concept] = max(worst, 1 - share) if math.isfinite(share) else math.inf
    return left


def _behind(prompts: Sequence[str], names: Sequence[str], model: TextModel) -> dict[str, Tensor]:
    """(d, prompts) of each name: the mean state behind it, or of the empty prompt."""
    found: dict[str, Tensor] = {}
    for start in range(0, len(names), _PIECE):
        piece = [
            (n, filled(t, n) if n else "") for n in names[start : start + _PIECE] for t in prompts
        ]
        states = model.encoder.encode([text for _, text in piece]).double()
        after = [model.encoder.span(text, name).last + 1 if name else 1 for name, text in piece]
        means = [own[at:].mean(dim=0) for own, at in zip(states, after, strict=True)]
        for at in range(0, len(piece), len(prompts)):
            found[piece[at][0]] = torch.stack(means[at : at + len(prompts)], dim=1)
    return found


def drift_of(moment: Tensor, shift: Tensor, A: Tensor) -> float:
    """Root mean square of |E x - x| / |x| over what `moment` (d, d) was summed from; 0 if nothing."""
    total = float(moment.diagonal().sum())
    E = shift @ A
    gone = float((E @ moment.to(E) * E).sum())
    return float(f"{math.sqrt(max(gone, 0.0) / total):.6g}") if total > 0 else 0.0


def _worst_by_owner(values: Tensor, owners: Sequence[str]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for value, owner in zip(torch.nan_to_num(values, nan=torch.inf).tolist(), owners, strict=True):
        worst[owner] = max(worst.get(owner, 0.0), value)
    return worst
