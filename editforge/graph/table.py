"""The table that findings are made of: outcomes and text side by side, and the damage of each pair.

A pair counts if its two concepts are not one thing to the judge and the base draws the measured one at
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editforge.artifacts.report import Estimate
from editforge.graph.intervals import Floats, change, crossed, pooled

UNRELIABLE = 0.8  # base presence under which a concept is flagged, methods.md 3.3


@dataclass(frozen=True)
class Table:
    """What findings are made of.

    Args:
        names: of n concepts.
        base: (n, k) 0/1, the base's pictures show their concept.
        lost: (n, n, k): base minus edited; row erased, column measured.
        same: (n, n) bool: one thing to the judge, the diagonal included.
        similarity: (n, n) of the texts.
        leak: (n, n) of the texts.
        unheld: (n, n) of the texts, with nothing preserved.
        groups: of each concept; None: unknown.
    """

    names: tuple[str, ...]
    base: Floats
    lost: Floats
    same: NDArray[np.bool_]
    similarity: Floats
    leak: Floats
    unheld: Floats
    groups: Sequence[str | None]

    @property
    def counts(self) -> NDArray[np.bool_]:
        """(n, n): the pairs that are compared."""
        return ~self.same & (self.base.mean(axis=1) > 0)[None]

    @property
    def reliable(self) -> NDArray[np.bool_]:
        """Those of them whose measured concept the base draws well."""
        return self.counts & (self.base.mean(axis=1) >= UNRELIABLE)[None]

    def incoming(self, measured: int, seed: int) -> Estimate:
        """What a concept loses on average over the erasures of others."""
        return crossed(self.lost[~self.same[:, measured], measured], seed=seed)

    def outgoing(self, erased: int, seed: int) -> Estimate:
        """What the concepts that the base draws lose on average when this one is erased."""
        others = self.lost[erased, self.counts[erased]]
        return pooled(list(others), seed=seed, unit="concepts, then images")


def edges(table: Table, seed: int) -> dict[tuple[int, int], Estimate]:
    """(erased, measured) to damage, for all that are two things; each pair has a key of its own."""
    n = len(table.names)
    return {
        (e, v): change(table.lost[e, v], np.zeros_like(table.lost[e, v]), seed=seed + e * n + v)
        for e in range(n)
        for v in range(n)
        if not table.same[e, v]
    }
