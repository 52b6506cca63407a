"""From one solve to the factors of every map: a thin product each, and the largest relative change."""

from __future__ import annotations

from torch import Tensor

from editforge.artifacts.low_rank import LowRank
from editforge.edit.checks import relative_change
from editforge.ground.linalg import rank, truncated
from editforge.recipe.contract import Context


def factors_of(shift: Tensor, A: Tensor, context: Context) -> tuple[dict[str, LowRank], float, int]:
    """W_l D A of every map l of the model, as factors with one A for all of them.

    Args:
        shift: D (d, n), float64: where each column goes, less where it was.
        A: (n, d), float64.
        context: the model and its progress bar.

    Returns:
        Factors by path in float32, the largest |W_l D A| / |W_l|, and the rank of D A. With more
        columns than the width has dimensions the factors are first brought to their rank.
    """
    exact = rank(shift, A)
    if A.shape[0] > A.shape[1]:
        shift, A, _ = truncated(shift, A, exact)
    shared, gram, model = A.float(), A @ A.T, context.model
    factors, change = {}, 0.0
    with context.bar(len(model.paths), "solving") as bar:
        for path in model.paths:
            weight = model.weight(path).double()
            B = weight @ shift
            factors[path] = LowRank(B.float(), shared)
            change = max(change, relative_change(B, gram, weight))
            bar.update()
    return factors, change, exact
