"""The shell around an erased state from which unnamed neighbors are drawn: pure tensor geometry.

A neighbor n = e + eta must satisfy three bounds, |eta| <= distance and cos_lo <= cos(e, n) <= cos_hi. In
high dimension noise of a fixed size is nearly orthogonal to e and nearly of one length, so a Gaussian
is accepted always or never. Here direction and radius are drawn apart, and every draw fits:

    z ~ N(0, I), made orthogonal to e, |z| = 1;   r ~ U(r_lo, r_hi);   n = e + r z
    cos(e, n) = 1 / sqrt(1 + (r / |e|)^2)
    r_lo = |e| sqrt(1 / cos_hi^2 - 1)       r_hi = min(distance, |e| sqrt(1 / cos_lo^2 - 1))

That is the law `tangent_shell`. Two more displace e along given states p_1..p_k instead of at random:

    words         eta = r u_i,  u_i the unit tangent of p_i - e,  i uniform,  r as above
    paraphrases   eta = sum_i a_i (p_i - e),  a uniform on the simplex: a convex mixture of the p_i

Of all three, mean and covariance are closed forms (`moments_of`), so a linear solve needs no sample.

Everything is float64 on the CPU and drawn from a `torch.Generator`: the same key, the same points,
on any number of processes. methods.md 2.3; the bounds are those of Liu et al., "RealEra", arXiv
2410.09140, the law of eta is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from editforge.ground.errors import EditError
from editforge.ground.keyed import keyed

Law = Literal["tangent_shell", "words", "paraphrases"]  # of a neighbor's displacement
FALLBACK = (0.70, 0.95)  # cos_lo, cos_hi where a word list is too short to calibrate them
_FEW_WORDS = 20
_SLACK = 1e-12  # rounding of a cosine that sits on its bound


class InfeasibleShell(EditError):
    """No neighbor can satisfy all three bounds."""


@dataclass(frozen=True)
class Shell:
    """The bounds around one state and the radii they imply.

    `radius` is |e|; `distance` None is "whatever cos_lo allows".
    """

    radius: float
    r_lo: float
    r_hi: float
    cos_lo: float
    cos_hi: float
    distance: float | None = None


class Bounds(Protocol):
    """The bounds and law found around one state; its shell moves with it, see `shell_at`."""

    @property
    def law(self) -> Law: ...  # noqa: D102
    @property
    def radius(self) -> float: ...  # noqa: D102
    @property
    def cos_lo(self) -> float: ...  # noqa: D102
    @property
    def cos_hi(self) -> float: ...  # noqa: D102
    @property
    def distance(self) -> float | None: ...  # noqa: D102
    @property
    def out_lo(self) -> float: ...  # noqa: D102
    @property
    def out_hi(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a displacement eta."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Drawn:
    """Accepted points (d, count), and how many were drawn for them."""

    points: Tensor
    drawn: int


def shell_of(e: Tensor, distance: float | None, cos_lo: float, cos_hi: float) -> Shell:
    """The shell around `e` (d,) that the three bounds leave.

    Args:
        e: the erased state.
        distance: the largest |eta|, None for what cos_lo implies. Raising it: farther neighbors.
        cos_lo: the smallest cosine with e. Lowering it: farther neighbors.
        cos_hi: the largest. Lowering it leaves a wider core to the concept itself.

    Raises:
        InfeasibleShell: r_lo >= r_hi; names the bounds that would work.
        EditError: a state of length zero, or no angle.
    """
    size = float(e.double().norm())
    if e.ndim != 1 or len(e) < 2 or not (math.isfinite(size) and size > 0):
        raise EditError("no shell around this state", got=f"{tuple(e.shape)}, length {size:.3g}")
    if not (0 < cos_lo <= 1 and 0 < cos_hi <= 1):
        raise EditError("a cosine bound is out of range", got=(cos_lo, cos_hi), allowed="0 to 1")
    r_lo, by_angle = (size * math.sqrt(1 / cos**2 - 1) for cos in (cos_hi, cos_lo))
    r_hi = by_angle if distance is None else min(distance, by_angle)
    if not r_lo < r_hi:
        raise InfeasibleShell(
            "no neighbor satisfies all three bounds",
            got=f"cos_lo {cos_lo:.4g}, cos_hi {cos_hi:.4g}, distance {distance}: "
            f"radii from {r_lo:.4g} to {r_hi:.4g}",
            allowed=f"cos_lo (S1) below {cos_hi:.4g} and distance (D1) above {r_lo:.4g}",
            next="lower cos_lo, raise distance, or raise cos_hi",
        )
    return Shell(size, r_lo, r_hi, cos_lo, cos_hi, distance)


def sample_shell(e: Tensor, shell: Shell, count: int, generator: torch.Generator) -> Tensor:
    """`count` neighbors of `e`, (d, count) float64; each satisfies all three bounds of the shell."""
    return draw_shell(e, shell, count, generator).points


def sample_beyond(
    e: Tensor, shell: Shell, out_lo: float, out_hi: float, count: int, generator: torch.Generator
) -> Tensor:
    """`count` points outside the neighborhood, (d, count): radii in [out_lo, out_hi] * r_hi."""
    if not 1 < out_lo < out_hi:
        raise EditError(
            "beyond samples would lie inside the shell",
            got=f"out_lo {out_lo}, out_hi {out_hi}",
            allowed="1 < out_lo < out_hi",
        )
    return _tangents(e, out_lo * shell.r_hi, out_hi * shell.r_hi, count, generator)


def draw_shell(e: Tensor, shell: Shell, count: int, generator: torch.Generator) -> Drawn:
    """As `sample_shell`, with the number of draws: acceptance is count / drawn, 1 up to rounding."""
    parts, found, drawn = [], 0, 0
    while found < count:
        points = _tangents(e, shell.r_lo, shell.r_hi, count - found, generator)
        drawn += points.shape[1]
        if drawn > 100 * count:
            raise EditError(
                "the shell belongs to another state", got=f"length {float(e.norm()):.4g}"
            )
        parts.append(points[:, inside(e, shell, points)])
        found += parts[-1].shape[1]
    points = torch.cat(parts, dim=1) if parts else torch.zeros(len(e), 0, dtype=torch.float64)
    return Drawn(points, drawn)


def inside(e: Tensor, shell: Shell, points: Tensor) -> Tensor:
    """Which columns of `points` (d, k) satisfy all three bounds: (k,) booleans."""
    center, points = e.double(), points.double()
    distance = (points - center[:, None]).norm(dim=0)
    cosine = center @ points / (center.norm() * points.norm(dim=0)).clamp(min=1e-300)
    near = distance <= (shell.distance or math.inf) * (1 + _SLACK)
    return near & (cosine >= shell.cos_lo - _SLACK) & (cosine <= shell.cos_hi + _SLACK)


def shell_at(e: Tensor, mined: Bounds) -> Shell:
    """The mined bounds around a state of the same concept in another prompt or position."""
    size = float(e.double().norm())
    distance = None if mined.distance is None else mined.distance * size / mined.radius
    return shell_of(e, distance, mined.cos_lo, mined.cos_hi)


def neighbors_of(
    e: Tensor, mined: Bounds, along: Tensor, count: int, seed: int, *key: object
) -> Tensor:
    """Neighbors (d, count) of one state; the same for the same seed and key, wherever it is called.

    Args:
        e: (d,), the erased state at one position.
        mined: `Neighbors.of(concept).shell`.
        along: (d, k), what the law displaces along, from the concept's own state, `MinedShell.away`;
            not read by `tangent_shell`.
        count: how many. Fewer is not a prefix of more.
        seed: the recipe's.
        key: concept name, then the position or the global sample index.
    """
    shell, generator = shell_at(e, mined), keyed(seed, "neighbor", *key)
    if mined.law == "tangent_shell":
        return sample_shell(e, shell, count, generator)
    ways = _ways(e, mined, along)
    if mined.law == "words":
        at = torch.randint(ways.shape[1], (count,), generator=generator)
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        eta = ways[:, at] * (shell.r_lo + share * (shell.r_hi - shell.r_lo))
    else:
        flat = torch.rand(ways.shape[1], count, generator=generator, dtype=torch.float64)
        parts = -torch.log1p(-flat)  # exponential, so their shares are uniform on the simplex
        eta = ways @ (parts / parts.sum(dim=0).clamp(min=1e-300))
    return e.double()[:, None] + eta


def moments_of(e: Tensor, mined: Bounds, along: Tensor) -> Moments:
    """Mean and covariance of the displacement that `neighbors_of` draws, exactly.

        tangent_shell   0,  E[r^2] / (d - 1) (I - e e^T / |e|^2)
        words           E[r] mean u,  E[r^2] mean u u^T - mean mean^T
        paraphrases     mean p - e,  sum (p_i - mean)(p_i - mean)^T / (k (k + 1))

    with E[r^2] = (r_lo^2 + r_lo r_hi + r_hi^2) / 3, the moment of a uniform radius.
    """
    shell = shell_at(e, mined)
    if mined.law == "tangent_shell":
        return Moments(torch.zeros_like(e.double()), _isotropic(e, shell.r_lo, shell.r_hi))
    ways = _ways(e, mined, along)
    mean, k = ways.mean(dim=1), ways.shape[1]
    if mined.law == "words":
        mean = mean * (shell.r_lo + shell.r_hi) / 2
        second = _square(shell.r_lo, shell.r_hi) * (ways @ ways.T) / k
        return Moments(mean, second - mean[:, None] * mean)
    apart = ways - mean[:, None]
    return Moments(mean, apart @ apart.T / (k * (k + 1)))


def beyond_moment(e: Tensor, mined: Bounds) -> Tensor:
    """E[eta eta^T] (d, d) of the displacements that `beyond_of` draws; their mean is zero."""
    shell = shell_at(e, mined)
    return _isotropic(e, mined.out_lo * shell.r_hi, mined.out_hi * shell.r_hi)


def beyond_of(e: Tensor, mined: Bounds, count: int, seed: int, *key: object) -> Tensor:
    """Samples (d, count) outside the neighborhood of one state; keyed as `neighbors_of`."""
    generator = keyed(seed, "beyond", *key)
    return sample_beyond(e, shell_at(e, mined), mined.out_lo, mined.out_hi, count, generator)


def nearest_is_own(e: Tensor, near: Tensor, preserve: Tensor) -> Tensor:
    """Which neighbors (d, K) are at least as like e as like any preserved column (d, m): (K,)."""
    if preserve.shape[1] == 0:
        return torch.ones(near.shape[1], dtype=torch.bool)
    unit = preserve / preserve.norm(dim=0).clamp(min=1e-30)
    return (e / e.norm()) @ near >= (unit.T @ near).max(dim=0).values


def calibrated_bounds(cosines: Tensor | Sequence[float]) -> tuple[float, float]:
    """(cos_lo, cos_hi) from the cosines of e with a vocabulary, without spelling variants of e.

    "Associated" is closer than 95 % of the words; the core that is the concept itself begins midway
    between the nearest word and e. Falls back to 0.70 and 0.95 for fewer than 20 words, or for a
    vocabulary that points away from e or sits on it.
    """
    values = torch.as_tensor(cosines, dtype=torch.float64)
    if len(values) < _FEW_WORDS:
        return FALLBACK
    low, high = float(torch.quantile(values, 0.95)), (1 + float(values.max())) / 2
    return (low, high) if 0 < low < high < 1 else FALLBACK


def _tangents(e: Tensor, lo: float, hi: float, count: int, generator: torch.Generator) -> Tensor:
    center = e.double()
    z = torch.randn(count, len(center), generator=generator, dtype=torch.float64)  # a row a point
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    axis = center / center.norm()
    for _ in range(2):  # the second pass removes what rounding of the first left along e
        z = z - (z @ axis)[:, None] * axis
    z = z / z.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return center[:, None] + (z * (lo + share * (hi - lo))[:, None]).T


def _ways(e: Tensor, mined: Bounds, along: Tensor) -> Tensor:
    """(d, k): unit tangents at `e` for words, displacements in the scale of `e` for paraphrases."""
    if along.shape[1] == 0:
        raise EditError("no states to displace along", got=f"law {mined.law}")
    if mined.law == "paraphrases":
        return along.double() * float(e.double().norm()) / mined.radius
    axis = e.double() / e.double().norm()
    ways = along.double() - axis[:, None] * (axis @ along.double())
    return ways / ways.norm(dim=0).clamp(min=1e-300)


def _square(lo: float, hi: float) -> float:
    return (lo * lo + lo * hi + hi * hi) / 3


def _isotropic(e: Tensor, lo: float, hi: float) -> Tensor:
    axis = e.double() / e.double().norm()
    plane = torch.eye(len(axis), dtype=torch.float64) - axis[:, None] * axis
    return _square(lo, hi) / (len(axis) - 1) * plane
