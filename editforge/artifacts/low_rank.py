"""LowRank: the change of one map as two thin factors, and what of an edit its users read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from editforge.ground.errors import EditError
from editforge.ground.linalg import truncated


@dataclass(frozen=True)
class LowRank:
    """The change B @ A of one map: `B` (out, r), `A` (r, in), both float32."""

    B: Tensor
    A: Tensor

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            got = f"B {tuple(self.B.shape)}, A {tuple(self.A.shape)}"
            raise EditError("factors do not fit", got=got, allowed="B (out, r), A (r, in)")

    @property
    def rank(self) -> int:
        """Columns of B: an upper bound of the rank of the change."""
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the map."""
        return self.B.shape[0], self.A.shape[1]


class Change(Protocol):
    """A change of weights, as far as it is written and added: `WeightEdit` is one."""

    @property
    def factors(self) -> Mapping[str, LowRank]: ...  # noqa: D102
    @property
    def dense(self) -> Mapping[str, Tensor]: ...  # noqa: D102
    @property
    def strength(self) -> float: ...  # noqa: D102
    @property
    def exact_rank(self) -> int | None: ...  # noqa: D102
    @property
    def provenance(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def rank(self) -> int: ...  # noqa: D102
    def delta(self, name: str) -> Tensor: ...  # noqa: D102


def summed(a: LowRank | None, scale_a: float, b: LowRank | None, scale_b: float) -> LowRank:
    """The sum of both, each scaled: factors side by side. One may be missing.

    Raises:
        EditError: two shapes.
    """
    pairs = [(pair, scale) for pair, scale in ((a, scale_a), (b, scale_b)) if pair is not None]
    if len({pair.shape for pair, _ in pairs}) > 1:
        raise EditError(
            "the two edits belong to different base models",
            got=" and ".join(str(pair.shape) for pair, _ in pairs),
            next="edit one base with both concepts: editforge erase X Y",
        )
    left = torch.cat([pair.B.double() * scale for pair, scale in pairs], dim=1)
    right = torch.cat([pair.A.double() for pair, _ in pairs], dim=0)
    return LowRank(left, right)


def reduced(pair: LowRank, tolerance: float) -> LowRank:
    """The same change with no idle columns; see `WeightEdit.reduced`."""
    left, right, _ = truncated(pair.B, pair.A, tolerance=tolerance)
    return LowRank(left.float(), right.float())
