"""The arithmetic of a push: which differences count, how large a result may grow (methods.md 4.4)."""

from __future__ import annotations

from torch import Tensor


def masked(away: Tensor, mask: float) -> Tensor:
    """M * away, m = 1 where |away| exceeds `mask`, else 0."""
    return away * (away.abs() > mask)


def rescaled(g: Tensor, plain: Tensor, phi: float | Tensor) -> Tensor:
    """Phi g std(plain) / std(g) + (1 - phi) g, deviations of each sample over all but the batch axis.

    Args:
        g: (n, c, h, w), steered.
        plain: of the same samples.
        phi: a share, or one for each sample, (n, 1, 1, 1).
    """
    over = list(range(1, g.ndim))
    share = plain.std(dim=over, keepdim=True) / g.std(dim=over, keepdim=True)
    return phi * g * share + (1 - phi) * g
