"""How far apart two texts are for the denoiser: the mean metric of the maps that read text.

    M = (1/L) sum_l W_l^T W_l / |W_l|_F^2        |x|_M^2 = x^T M x

Each map counts alike, whatever its size. M is (d, d), computed once per model in float32: it only
ranks words, so rounding does not matter, and at d = 2048 with 140 maps float64 would take a minute.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from editforge.families.model import TextModel

_known: WeakKeyDictionary[TextModel, Tensor] = WeakKeyDictionary()


def text_metric(model: TextModel) -> Tensor:
    """M (d, d), float32, of all text-consuming maps; computed once per opened model."""
    if model not in _known:
        width = model.family.text_width
        total = torch.zeros(width, width)
        for path in model.paths:
            weight = model.weight(path).float()
            total.addmm_(weight.T, weight, alpha=1 / float(weight.square().sum().clamp(min=1e-30)))
        _known[model] = total / len(model.paths)
    return _known[model]


def metric_cosines(left: Tensor, right: Tensor, metric: Tensor) -> Tensor:
    """(a, b): the cosine under M of every row of `left` (a, d) with every row of `right` (b, d)."""
    a, b = left @ metric, right @ metric
    sizes = [(x * y).sum(dim=1).clamp(min=1e-30).sqrt() for x, y in ((a, left), (b, right))]
    return (a @ right.T) / (sizes[0][:, None] * sizes[1])
