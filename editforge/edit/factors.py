"""From one solve to the factors of every map: a thin product each, and the largest relative change."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from editforge.artifacts.low_rank import LowRank
from editforge.edit.checks import relative_change
from editforge.ground.linalg import rank, truncated
from editforge.recipe.contract import Context


def factors_of(
    column: Callable[[Tensor], Tensor], A: Tensor, context: Context
) -> tuple[dict[str, LowRank], float]:
    """B_l A of every map l of the model, as float32 factors, and the largest |B_l A| / |W_l|.

    Args:
        column: from a map W_l (o, d), float64, to its B_l (o, n).
        A: (n, d), float64: one tensor, shared by all maps.
        context: the model and its progress bar.
    """
    shared, gram, model = A.float(), A @ A.T, context.model
    factors, change = {}, 0.0
    with context.bar(len(model.paths), "solving") as bar:
        for path in model.paths:
            weight = model.weight(path).double()
            B = column(weight)
            factors[path] = LowRank(B.float(), shared)
            change = max(change, relative_change(B, gram, weight))
            bar.update()
    return factors, change


def shifted(shift: Tensor, A: Tensor, context: Context) -> tuple[dict[str, LowRank], float, int]:
    """`factors_of` for B_l = W_l D with D = shift (d, n), and the rank of D A.

    With more columns than the width has dimensions the factors are first brought to their rank.
    """
    exact = rank(shift, A)
    if A.shape[0] > A.shape[1]:
        shift, A, _ = truncated(shift, A, exact)
    factors, change = factors_of(lambda weight: weight @ shift, A, context)
    return factors, change, exact
