"""Intervals that a graph needs beside those of `evaluate/metrics.py`. Numpy alone.

A damage is a mean of paired differences in {-1, 0, 1}. A bootstrap of values that are all equal gives
an interval of no width, which claims more than a few pictures can know; there the exact one-sided
bound stands in, as for a rate that counts nothing: 1 - 0.05^(1/n) to both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from editforge.artifacts.report import Estimate
from editforge.evaluate import metrics
from editforge.evaluate.metrics import DRAWS

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
_FEW_ROWS = 3


def change(base: ArrayLike, edited: ArrayLike, *, seed: int = 0) -> Estimate:
    """mean(base - edited) of n paired pictures, bootstrap over the pairs.

    Args:
        base: (n,) 0/1.
        edited: (n,) 0/1, entry i on the prompt and noise of entry i of `base`.
        seed: of the resampling.
    """
    lost = np.asarray(base, dtype=float) - np.asarray(edited, dtype=float)
    if len(lost) and (lost == lost[0]).all():
        return _unanimous(float(lost[0]), len(lost), "paired images")
    return metrics.mean([lost], seed=seed, unit="paired images")


def crossed(lost: Floats, *, seed: int = 0) -> Estimate:
    """The mean of a table (erasures, pictures), both resampled: all rows share the base's pictures.

    A luckily drawn base picture lifts every row alike, so rows that were resampled on their own would
    look more certain than they are.
    """
    rows, columns = lost.shape
    if lost.size == 0:
        return Estimate.undefined("nothing else was erased", "erasures and images")
    if (lost == lost.flat[0]).all():
        return _unanimous(float(lost.flat[0]), lost.size, "erasures and images")
    generator = np.random.Generator(np.random.PCG64(seed))
    by_row = generator.multinomial(rows, np.full(rows, 1 / rows), DRAWS)
    by_column = generator.multinomial(columns, np.full(columns, 1 / columns), DRAWS)
    drawn = ((by_row @ lost) * by_column).sum(axis=1) / lost.size
    lo, hi = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value=lost.mean(), lo=lo, hi=hi, n=lost.size, unit="erasures and images")


def over_rows(
    statistic: Callable[[Indices], float | None], rows: int, unit: str, n: int, *, seed: int = 0
) -> Estimate:
    """A statistic of a table, its rows resampled.

    Args:
        statistic: from chosen rows to a number; None where they leave it undefined.
        rows: of the table.
        unit: what a row is, in the plural.
        n: what the statistic counts.
        seed: of the resampling.
    """
    value = statistic(np.arange(rows)) if rows >= _FEW_ROWS else None
    if value is None:
        why = f"fewer than {_FEW_ROWS} {unit}" if rows < _FEW_ROWS else "nothing differs"
        return Estimate.undefined(why, unit, n)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = [statistic(generator.integers(0, rows, rows)) for _ in range(DRAWS)]
    known = [one for one in drawn if one is not None]
    if len(known) < 0.95 * DRAWS:
        return Estimate.undefined(f"too few {unit} show anything", unit, n)
    lo, hi = np.percentile(known, [2.5, 97.5])
    return Estimate(value=value, lo=lo, hi=hi, n=n, unit=unit)


def spearman(x: Floats, y: Floats) -> float | None:
    """Rank correlation of two (n,) arrays, ties at their mean rank; None if one is constant."""
    if len(x) < 3:
        return None
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else None


def apart(one: Estimate, other: Estimate) -> tuple[float, float]:
    """The 95 % interval of `one - other`, two independent estimates, from their own intervals.

    Reference: Zou and Donner, "Construction of confidence limits about effect measures", Statistics
    in Medicine 27, 2008; with Wilson intervals it is Newcombe's.
    """
    numbers = [one.value, one.lo, one.hi, other.value, other.lo, other.hi]
    x, lo_x, hi_x, y, lo_y, hi_y = (float(number or 0) for number in numbers)
    below = math.hypot(x - lo_x, hi_y - y)
    above = math.hypot(hi_x - x, y - lo_y)
    return x - y - below, x - y + above


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _unanimous(value: float, n: int, unit: str) -> Estimate:
    bound = 1 - 0.05 ** (1 / n)
    lo, hi = max(-1.0, value - bound), min(1.0, value + bound)
    return Estimate(value=value, lo=lo, hi=hi, n=n, unit=unit)
