"""Intervals that a graph needs beside those of `evaluate/metrics.py`. Numpy alone.

A damage is a mean of paired differences in {-1, 0, 1}. A bootstrap of values that are all equal gives
an interval of no width, which claims more than a few pictures can know; there the exact one-sided
bound stands in, as for a rate that counts nothing: 1 - 0.05^(1/n) to both sides.

Simulated with no true damage, 0.03 to 0.3 of the pictures changing either way, 8 to 32 pictures, 1500
tables each: `change` lies above 0 in 0 to 3.3 % of them, `apart` excludes 0 in 0 to 6.7 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from editforge.artifacts.report import Estimate
from editforge.evaluate import metrics
from editforge.evaluate.metrics import DRAWS

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
_FEW_ROWS = 6  # of fewer a bootstrap knows too little to say anything


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


def pooled(groups: Sequence[Floats], *, unit: str, pictures: int = 1, seed: int = 0) -> Estimate:
    """The mean of all entries: groups are resampled, then their entries.

    Args:
        groups: of entries, one array each.
        unit: what was resampled.
        pictures: that each entry is the mean of.
        seed: of the resampling.
    """
    values = np.concatenate([np.ravel(group) for group in groups]) if groups else np.empty(0)
    if len(values) and (values == values[0]).all():
        return _unanimous(float(values[0]), len(values) * pictures, unit)
    return metrics.mean(groups, seed=seed, unit=unit)


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


def apart(one: Floats, other: Floats, *, seed: int = 0) -> Estimate:
    """mean(one) - mean(other) of two samples that share no noise, each resampled on its own."""
    n = len(one) + len(other)
    value, unit = float(one.mean() - other.mean()), "images"
    if (one == one[0]).all() and (other == other[0]).all():
        bound = 1 - 0.05 ** (1 / min(len(one), len(other)))
        return Estimate(value=value, lo=value - bound, hi=value + bound, n=n, unit=unit)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = [
        sample[generator.integers(0, len(sample), (DRAWS, len(sample)))].mean(axis=1)
        for sample in (one, other)
    ]
    lo, hi = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return Estimate(value=value, lo=lo, hi=hi, n=n, unit=unit)


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _unanimous(value: float, n: int, unit: str) -> Estimate:
    bound = 1 - 0.05 ** (1 / n)
    lo, hi = max(-1.0, value - bound), min(1.0, value + bound)
    return Estimate(value=value, lo=lo, hi=hi, n=n, unit=unit)
