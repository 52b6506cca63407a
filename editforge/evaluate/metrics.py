"""Records to estimates: rates, ratios and means with 95 % intervals. Numpy alone, no model.

Single rates have Wilson intervals, and the exact one-sided bound where nothing was counted. Ratios
and means are resampled over names, then over the images of a name; base and edited share each
draw, because they share prompt and noise. Nothing depends on batches or on the order of rows
beyond the order of names. An empty set is undefined, and a NaN raises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from editforge.artifacts.report import Estimate
from editforge.ground.errors import EditforgeError

DRAWS = 2000
_Floats = NDArray[np.float64]
_Z = 1.959963984540054  # the normal quantile of 0.975
_TWO_LEVELS = "names, then images"


def rate(hits: ArrayLike, unit: str = "images", reason: str = "no images") -> Estimate:
    """The share of true entries with its Wilson interval; at zero hits hi = 1 - 0.05^(1/n).

    Args:
        hits: (n,), bool or 0/1.
        unit: what one entry is.
        reason: said if n is 0.
    """
    values = _finite(hits)
    n = len(values)
    if n == 0:
        return Estimate.undefined(reason, unit)
    share = float(values.mean())
    if share == 0:
        return Estimate(value=0, lo=0, hi=1 - 0.05 ** (1 / n), n=n, unit=unit)
    denominator = 1 + _Z**2 / n
    center = (share + _Z**2 / (2 * n)) / denominator
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / denominator
    lo, hi = max(0.0, center - half), 1.0 if share == 1 else min(1.0, center + half)
    return Estimate(value=share, lo=lo, hi=hi, n=n, unit=unit)


def kept(
    base: Sequence[ArrayLike],
    edited: Sequence[ArrayLike],
    *,
    seed: int = 0,
    unit: str = _TWO_LEVELS,
) -> Estimate:
    """min(1, sum edited / sum base), paired bootstrap over names, then images.

    Args:
        base: one array of 0/1 a name, an entry an image.
        edited: the same shape; entry i shares prompt and noise with entry i of `base`.
        seed: of the resampling.
        unit: what was resampled.
    """
    pairs = _pairs(base, edited)
    n = sum(len(before) for before, _ in pairs)
    if n == 0:
        return Estimate.undefined("no images", unit)
    total = sum(before.sum() for before, _ in pairs)
    if total == 0:
        return Estimate.undefined("the base model draws none of these names", unit, n)
    sums = _resampled_sums(pairs, seed)
    drawn = sums[sums[:, 0] > 0]
    if len(drawn) < 0.95 * len(sums):
        return Estimate.undefined("the base model draws too few of these names", unit, n)
    lo, hi = np.percentile(drawn[:, 1] / drawn[:, 0], [2.5, 97.5])
    value = sum(after.sum() for _, after in pairs) / total
    return Estimate(value=min(1.0, value), lo=min(1.0, lo), hi=min(1.0, hi), n=n, unit=unit)


def ratio(above: ArrayLike, below: ArrayLike, *, seed: int = 0) -> Estimate:
    """min(1, mean above / mean below) of two sets of 0/1 that do not pair up, each resampled.

    Args:
        above: (n,) bool or 0/1.
        below: (m,) bool or 0/1.
        seed: of the resampling.
    """
    upper, lower = _finite(above), _finite(below)
    if not len(upper) or not len(lower):
        return Estimate.undefined("no images", "images", len(upper))
    if not lower.any():
        return Estimate.undefined("the base shows nothing recognizable there", "images", len(upper))
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = [
        generator.binomial(len(values), values.mean(), DRAWS) / len(values)
        for values in (upper, lower)
    ]
    possible = drawn[1] > 0
    lo, hi = np.percentile(drawn[0][possible] / drawn[1][possible], [2.5, 97.5])
    value = upper.mean() / lower.mean()
    bounds = [min(1.0, float(number)) for number in (value, lo, hi)]
    return Estimate(value=bounds[0], lo=bounds[1], hi=bounds[2], n=len(upper), unit="images")


def mean(groups: Sequence[ArrayLike], *, seed: int = 0, unit: str = _TWO_LEVELS) -> Estimate:
    """The mean of all entries, bootstrap over names, then images.

    Args:
        groups: one array a name, an entry an image.
        seed: of the resampling.
        unit: what was resampled.
    """
    pairs = _pairs([np.ones(len(np.asarray(group))) for group in groups], groups)
    n = sum(len(ones) for ones, _ in pairs)
    if n == 0:
        return Estimate.undefined("no images", unit)
    sums = _resampled_sums(pairs, seed)
    lo, hi = np.percentile(sums[:, 1] / sums[:, 0], [2.5, 97.5])
    return Estimate(value=sum(v.sum() for _, v in pairs) / n, lo=lo, hi=hi, n=n, unit=unit)


def medoid_share(images: NDArray[np.uint8], tolerance: float) -> float:
    """The share of images whose mean absolute difference to their medoid is under `tolerance`.

    Differences are of pixels in [0, 1]. The medoid itself counts, so one image says nothing: 0.
    """
    if len(images) < 2:
        return 0.0
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    distances = np.stack([np.abs(flat - row).mean(axis=1) for row in flat])  # (n, n)
    return float((distances[distances.sum(axis=1).argmin()] < tolerance).mean())


def _resampled_sums(pairs: list[tuple[_Floats, _Floats]], seed: int) -> _Floats:
    """(DRAWS, 2): the sums of both columns over resampled names and their resampled images."""
    generator = np.random.Generator(np.random.PCG64(seed))
    choice = generator.integers(0, len(pairs), size=(DRAWS, len(pairs)))
    sums = np.zeros((DRAWS, 2))
    for index, (before, after) in enumerate(pairs):
        draws, _ = np.nonzero(choice == index)
        rows = generator.integers(0, len(before), size=(len(draws), len(before)))
        for column, values in enumerate((before, after)):
            own = values[rows].sum(axis=1)  # (rows,), one sum each time a draw took this name
            sums[:, column] += np.bincount(draws, weights=own, minlength=DRAWS)
    return sums


def _pairs(base: Sequence[ArrayLike], edited: Sequence[ArrayLike]) -> list[tuple[_Floats, _Floats]]:
    pairs = [(_finite(b), _finite(e)) for b, e in zip(base, edited, strict=True)]
    if any(len(before) != len(after) for before, after in pairs):
        raise EditforgeError("base and edited images do not pair up", next="this is a bug")
    return [pair for pair in pairs if len(pair[0])]


def _finite(values: ArrayLike) -> _Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise EditforgeError(
            "a score is NaN or infinite",
            got=f"{int((~np.isfinite(array)).sum())} of {array.size}",
            next="an image or a judge is broken: check the weights",
        )
    return array
