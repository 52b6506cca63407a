"""What a table of outcomes says: is damage local, is it one-sided, who is weak, could text have told?

Pure functions of the table; no model and no picture.

Known failure: concepts are resampled as erased ones alone, so the intervals speak of other erasures of
these concepts, not of other concepts. A concept that the base draws seldom cannot lose much; pairs with
one are compared all the same, and `reliable` gives the correlation without them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from editforge.artifacts.report import Estimate
from editforge.graph.findings import Asymmetry, Bin, Findings, Locality, OneSided, Proxy, Weak
from editforge.graph.intervals import Floats, Indices, apart, over_rows, pooled, spearman
from editforge.graph.table import Table

DROPS = 0.1  # a loss that counts as one
_BINS = 5
_PERMUTATIONS = 1000
_LISTED = 10
_ERASED = "erased concepts"


def find(table: Table, damages: dict[tuple[int, int], Estimate], seed: int) -> Findings:
    """All findings.

    Args:
        table: the outcomes.
        damages: what `edges` gave.
        seed: of resampling and shuffling.
    """
    clear = [
        damages[e, v] for e, v in damages if table.counts[e, v] and (damages[e, v].lo or 0) > 0
    ]
    return Findings(
        pairs=int(table.counts.sum()),
        damage=_mean(table, table.counts, seed),
        clear=len(clear),
        locality=_locality(table, seed),
        asymmetry=_asymmetry(table, seed),
        weak=_weak(table, seed),
        proxy=Proxy(
            correlation=_correlation(table, np.abs(table.leak), table.counts, seed),
            reliable=_correlation(table, np.abs(table.leak), table.reliable, seed),
            unheld=_correlation(table, np.abs(table.unheld), table.counts, seed),
        ),
    )


def _locality(table: Table, seed: int) -> Locality:
    alike = [[g is not None and g == other for other in table.groups] for g in table.groups]
    known = np.array([group is not None for group in table.groups])
    same = np.array(alike, bool) & table.counts
    other = ~np.array(alike, bool) & table.counts & known[:, None] & known
    return Locality(
        correlation=_correlation(table, table.similarity, table.counts, seed),
        reliable=_correlation(table, table.similarity, table.reliable, seed),
        bins=_bins(table, seed),
        same_group=_mean(table, same, seed, "no two concepts of one known group"),
        other_group=_mean(table, other, seed, "no two known groups"),
        gap=_gap(table, same, other, seed),
    )


def _bins(table: Table, seed: int) -> tuple[Bin, ...]:
    """Pairs in order of distance, cut into about equally many."""
    distance = 1 - table.similarity
    pairs = np.argwhere(table.counts)
    order = pairs[np.argsort(distance[tuple(pairs.T)], kind="stable")]
    found = []
    for own in np.array_split(order, min(_BINS, len(order) // 2 or 1)):
        if not len(own):
            continue
        mask = np.zeros_like(table.counts)
        mask[tuple(own.T)] = True
        near, far = distance[mask].min(), distance[mask].max()
        damage = _mean(table, mask, seed)
        found.append(Bin(nearest=near, farthest=far, pairs=len(own), damage=damage))
    return tuple(found)


def _asymmetry(table: Table, seed: int) -> Asymmetry:
    n = len(table.names)
    pairs = [
        (e, v)
        for e in range(n)
        for v in range(e + 1, n)
        if table.counts[e, v] and table.counts[v, e]
    ]
    sided = []
    for e, v in pairs:
        if table.lost[v, e].sum() > table.lost[e, v].sum():
            e, v = v, e
        gap = apart(table.lost[e, v], table.lost[v, e], seed=seed + e * n + v)
        sided.append(
            OneSided(
                hurts=table.names[e],
                hurt=table.names[v],
                difference=gap.value or 0,
                lo=gap.lo or 0,
                hi=gap.hi or 0,
            )
        )
    clear = [one for one in sided if one.lo > 0]
    clear.sort(key=lambda one: (-one.difference, one.hurts, one.hurt))
    mean = chance = most = p = None
    if pairs:
        mean, chance, most, p = _shuffled(table, pairs, seed)
    return Asymmetry(
        pairs=len(pairs),
        mean=mean,
        by_chance=chance,
        by_chance_most=most,
        p=p,
        clear=len(clear),
        strongest=tuple(clear[:_LISTED]),
    )


def _shuffled(
    table: Table, pairs: list[tuple[int, int]], seed: int
) -> tuple[float, float, float, float]:
    """Mean |a - b|, its mean and 97.5 % quantile under exchange within pairs, and the test's p."""
    e, v = np.array(pairs).T
    both = np.concatenate([table.lost[e, v], table.lost[v, e]], axis=1)  # (pairs, 2k)
    k = both.shape[1] // 2

    def mean_gap(rows: Floats) -> float:
        return float(np.abs(rows[:, :k].mean(axis=1) - rows[:, k:].mean(axis=1)).mean())

    generator = np.random.Generator(np.random.PCG64(seed))
    own = mean_gap(both)
    drawn = np.array([mean_gap(generator.permuted(both, axis=1)) for _ in range(_PERMUTATIONS)])
    p = (1 + int((drawn >= own - 1e-12).sum())) / (1 + _PERMUTATIONS)
    return own, float(drawn.mean()), float(np.percentile(drawn, 97.5)), p


def _weak(table: Table, seed: int) -> Weak:
    drawn = np.flatnonzero(table.base.mean(axis=1) > 0)
    found = []
    for v in drawn:
        incoming = table.incoming(int(v), seed)
        own = table.lost[~table.same[:, v], v].mean(axis=1)  # (erasures,)
        often = len(own) > 0 and (own >= DROPS).mean() >= 0.5
        if often and (incoming.lo or 0) > 0:
            found.append((-(incoming.value or 0), table.names[v]))
    presence = table.base[drawn].mean(axis=1)
    means = np.array([table.lost[~table.same[:, v], v].mean() for v in drawn])

    def correlated(rows: Indices) -> float | None:
        return spearman(presence[rows], means[rows])

    return Weak(
        concepts=tuple(name for _, name in sorted(found)),
        correlation=over_rows(correlated, len(drawn), "concepts", len(drawn), seed=seed),
    )


def _correlation(table: Table, x: Floats, mask: NDArray[np.bool_], seed: int) -> Estimate:
    """Spearman over the pairs of a mask, erased concepts resampled."""
    damage = table.lost.mean(axis=2)
    rows = np.flatnonzero(mask.any(axis=1))
    xs, ys = [x[e, mask[e]] for e in rows], [damage[e, mask[e]] for e in rows]

    def correlated(chosen: Indices) -> float | None:
        return spearman(*(np.concatenate([own[i] for i in chosen]) for own in (xs, ys)))

    return over_rows(correlated, len(rows), _ERASED, int(mask.sum()), seed=seed)


def _mean(table: Table, mask: NDArray[np.bool_], seed: int, why: str = "no pairs") -> Estimate:
    """Mean damage over the pairs of a mask; erased concepts are resampled, then their pairs."""
    damage = table.lost.mean(axis=2)
    rows = [damage[e, mask[e]] for e in np.flatnonzero(mask.any(axis=1))]
    unit = f"{_ERASED}, then pairs"
    if not rows:
        return Estimate.undefined(why, unit)
    return pooled(rows, unit=unit, pictures=table.lost.shape[2], seed=seed)


def _gap(table: Table, same: NDArray[np.bool_], other: NDArray[np.bool_], seed: int) -> Estimate:
    damage = table.lost.mean(axis=2)
    totals = np.stack([(damage * mask).sum(axis=1) for mask in (same, other)])  # (2, n)
    counts = np.stack([mask.sum(axis=1) for mask in (same, other)])

    def gap(rows: Indices) -> float | None:
        pairs = counts[:, rows].sum(axis=1)
        if not pairs.all():
            return None
        means = totals[:, rows].sum(axis=1) / pairs
        return float(means[0] - means[1])

    found = over_rows(gap, len(table.names), _ERASED, int((same | other).sum()), seed=seed)
    if found.value is None and not (same.any() and other.any()):
        return Estimate.undefined("no two known groups with two concepts", _ERASED)
    return found
