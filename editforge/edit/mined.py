"""Mined neighbors as further erased columns of a closed form, and what they cost.

Neighbors that collapse onto one target shrink every direction x orthogonal to the erased state e, by

    kappa = x^T E x / x^T x = (lam + s_b) / (lam + s_b + l1 K rho^2 / (d - 1))

with s_b the mass held per direction and rho the neighbors' distance, where K is well above d. Real words
are not isotropic, so kappa is measured, on random directions and on what is preserved. Neighbors that
translate shrink nothing, and do nothing that e alone would not: E n = n + (A n) (t - e). So they enter
as their expectation, and no seed moves the edit.
methods.md 2.4 and 2.5; Liu et al., "RealEra", arXiv 2410.09140.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import MinedShell, Neighbors
from editforge.artifacts.system import System
from editforge.ground.errors import EditError, RecipeError
from editforge.ground.keyed import keyed
from editforge.ground.shell import moments_of, nearest_is_own, neighbors_of
from editforge.recipe.contract import Context, StageConfig

_PROBES = 256  # random directions


class MinedOptions(StageConfig):
    """Options of an edit that uses mined shells; without a shell they do nothing. methods.md 2.8."""

    neighbor_map: Literal["collapse", "translate", "none"] = Field(
        "collapse",
        description="Mined neighbors go to the target, keep their distance to it, or are left out.",
    )
    neighbor_weight: float | None = Field(
        None, ge=0, description="Of each neighbor; null: 1/K. Higher: less residue, more shrinkage."
    )
    beyond: Literal["none", "perturbation", "siblings", "captions", "all"] = Field(
        "perturbation",
        description="What is held outside: mined samples and words, named neighbors with role "
        "preserve, the lines of `captions`, or all of these.",
    )
    captions: str | None = Field(
        None, description="A text file, one caption a line, held if asked."
    )
    beyond_weight: float = Field(
        1.0,
        ge=0,
        description="Of each word and caption held. Higher: less drift, weaker erasure.",
    )
    sample_weight: float = Field(
        1.0, ge=0, description="Of each drawn sample. Higher: less shrinkage, weaker erasure."
    )
    samples: Literal["expected", "drawn"] = Field(
        "expected",
        description="Samples, and neighbors that translate, enter as their expectation, exactly: no "
        "seed. drawn: as points of the seed; neighbors that collapse always are, or rank is lost.",
    )
    beyond_hold: Literal["displacement", "point"] = Field(
        "displacement",
        description="Of a sample e + eta: eta, or all of it. point: few samples only, they hold e.",
    )
    kappa_min: tuple[float, float] = Field(
        (0.95, 0.5), description="Below these a solve warns, and refuses. 1: nothing shrinks."
    )

    @model_validator(mode="after")
    def _captions_are_named(self) -> MinedOptions:
        if self.beyond == "captions" and self.captions is None:
            raise ValueError("no captions to hold: --set edit.captions=FILE")
        return self

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """Captions that are asked for must be there."""
        if self.beyond in ("captions", "all"):
            caption_lines(self.captions)


@dataclass(frozen=True)
class Around:
    """A shell around one erased column: the concept's `at`-th last token keys what is drawn."""

    concept: str
    at: int
    column: int
    mined: MinedShell


def with_neighbors(
    system: System,
    own: System,
    shells: Sequence[Around],
    preserve: Tensor,
    options: MinedOptions,
    context: Context,
    *,
    erase_weight: float = 1.0,
) -> System:
    """`system` with the neighbors around columns of `own`, and their weights.

        collapse: n_i -> t        translate: n_i = e + eta_i -> t + eta_i        weight w = 1/K each

    Collapsing ones, and `samples: drawn`, are columns of the seed; neighbors more like a preserved
    column than like their own are left out. Translating ones enter as the expectation of their sum,
    with m, S mean and covariance of eta, and none left out:

        one column  e + m -> t + m of weight K w,  and  K w S  in the Gram matrix

    which is exact since all move by t - e. The owner is no concept: the checks judge the concepts. The
    same seed gives the same columns, wherever a concept stands.
    """
    d = system.erased.shape[0]
    erased, target, weights, owners = [], [], [], []
    scatter, dropped = torch.zeros(d, d, dtype=torch.float64), 0
    for one in shells:
        drawn = one.mined.num_neighbors
        if options.neighbor_map == "none" or drawn == 0:
            continue
        e, t = own.erased[:, one.column], own.target[:, one.column]
        along = one.mined.away(context.model.encoder, one.concept)
        if options.neighbor_map == "translate" and options.samples == "expected":
            whole = 1.0 if options.neighbor_weight is None else drawn * options.neighbor_weight
            found = moments_of(e, one.mined, along)
            scatter += erase_weight * whole * found.covariance
            near, weight = (e + found.mean)[:, None], whole
        else:
            near = neighbors_of(e, one.mined, along, drawn, context.seed, one.concept, one.at)
            near = near[:, nearest_is_own(e, near, preserve)]
            dropped += drawn - near.shape[1]
            each = 1 / max(near.shape[1], 1)
            weight = each if options.neighbor_weight is None else options.neighbor_weight
        moves = t[:, None].expand_as(near)
        erased.append(near)
        target.append(moves if options.neighbor_map == "collapse" else near - e[:, None] + moves)
        owners += [near_owner(one.concept)] * near.shape[1]
        weights += [weight] * near.shape[1]
    if dropped:
        context.say(f"{dropped} neighbors left out: more like what is preserved")
    if not owners:
        return system
    ones = torch.ones(system.erased.shape[1], dtype=torch.float64)
    before = ones if system.weight is None else system.weight
    held = scatter if system.scatter is None else system.scatter + scatter
    return replace(
        system,
        erased=torch.cat([system.erased, *erased], dim=1),
        target=torch.cat([system.target, *target], dim=1),
        erased_owner=(*system.erased_owner, *owners),
        weight=torch.cat([before, torch.tensor(weights, dtype=torch.float64)]),
        scatter=held if bool(scatter.any()) else system.scatter,
    )


def near_owner(concept: str) -> str:
    """What owns the mined neighbors of a concept."""
    return f"{concept} (mined neighbors)"


def kappa(vectors: Tensor, shift: Tensor, A: Tensor) -> Tensor:
    """x^T E x / x^T x for columns x (d, k): 1 keeps its length along itself, 0 loses it."""
    x = vectors.double()
    sizes = x.square().sum(dim=0).clamp(min=1e-30)
    return 1 + ((x.T @ shift) * (A @ x).T).sum(dim=1) / sizes


def check_kappa(
    system: System,
    preserve: Tensor,
    shift: Tensor,
    A: Tensor,
    next: dict[str, list[str]],
    options: MinedOptions,
    context: Context,
) -> dict[str, float]:
    """Kappa of random directions orthogonal to the erased states (mean), and of preserves (least).

    A warning and a refusal name `next`, settings that raise it: those of `remedies`.

    Raises:
        EditError: either is below the second limit.
    """
    basis, _ = torch.linalg.qr(system.erased[:, judged_columns(system)])
    d = len(basis)
    x = torch.randn(d, _PROBES, generator=keyed(context.seed, "kappa"), dtype=torch.float64)
    x = x - basis @ (basis.T @ x)
    found = {"kappa_random": float(kappa(x, shift, A).mean())}
    if preserve.shape[1]:
        found["kappa_preserved"] = float(kappa(preserve, shift, A).min())
    warn, refuse = options.kappa_min
    low = math.floor(min(0, *found.values()))
    for what, value in found.items():
        hint = "; or ".join(f"--set {one}" for one in next[what])
        if not value >= refuse:
            raise EditError(
                f"the neighbors shrink what they should not: {what} {value:.3g}",
                allowed=f"at least {refuse:g}",
                next=f"{hint}; or accept it: --set edit.kappa_min='[{warn:g}, {low}]'",
            )
        if value < warn:
            context.say(f"warning: {what} {value:.3g} is under {warn:g}; {hint}")
    return {what: float(f"{value:.6g}") for what, value in found.items()}


def remedies(
    options: MinedOptions, shells: Sequence[Around], erase_weight: float, preserve_weight: float
) -> dict[str, list[str]]:
    """Settings that raise each kappa and are not set yet, each a cure by itself, the best first.

    Random directions shrink where neighbors collapse, and where no samples hold them. What is
    preserved loses to the concept itself: samples and translating make that no better.
    """
    cures, held = [], []
    if options.neighbor_map == "collapse":
        cures.append("edit.neighbor_map=translate")
    if not any(round(s.mined.num_beyond * s.mined.beyond_shell_fraction) for s in shells):
        held += [
            "mine.perturbation.num_beyond=1000",
            "mine.perturbation.beyond_shell_fraction=0.25",
        ]
    if options.beyond not in ("perturbation", "all"):
        held.append("edit.beyond=all")
    if not held or not options.sample_weight:
        held.append(f"edit.sample_weight={10 * options.sample_weight or 1:g}")
    cures.append(" --set ".join(held))
    kept = [f"edit.preserve_weight={10 * preserve_weight or 1:g}"]
    return {
        "kappa_random": cures,
        "kappa_preserved": [*kept, f"edit.erase_weight={erase_weight / 10:g}"],
    }


def caption_lines(path: str | None) -> list[str]:
    """The captions of a file, each once; none without a file.

    Raises:
        RecipeError: no such file, or no text.
    """
    if path is None:
        return []
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError("no such caption file", got=f"{path}: {reason}") from None
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in dict.fromkeys(lines) if line]


def judged_columns(system: System) -> list[int]:
    """The columns that belong to concepts, not to mined neighbors."""
    concepts = [row["name"] for row in system.rows]
    return [at for at, owner in enumerate(system.erased_owner) if owner in concepts]


def shells_around(own: System, centers: Sequence[int], neighbors: Neighbors) -> list[Around]:
    """The shell of each column in `centers` whose concept has one."""
    found, seen = [], dict.fromkeys(own.erased_owner, 0)
    for column in centers:
        name = own.erased_owner[column]
        mined = neighbors.of(name).shell
        if mined is not None:
            found.append(Around(name, seen[name], column, mined))
        seen[name] += 1
    return found
