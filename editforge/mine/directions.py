"""Text-side prototypes: what the denoiser must read to think of a cluster, and how to notice it.

*Token* (form A): the empty prompt with t_k at its last position, u_k trained alone,

    t_k = LN(u_k),    max cos(feature(t_k), c_k)

*Prompt* (form B): m free token embeddings, read by the whole encoder, kept as states.

*Selector*: the direction of text states along which a cluster stands out from what people write.
In CLIP's space a cluster is told from words by v_k = (S + lambda I)^-1 c_k, S the covariance of the
words' features, as Fisher's discriminant has it; ridge regression carries <., v_k> over to the
states that the denoiser reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from editforge.mine.tower import Tower

_SHRINKAGE = 0.5  # toward a sphere, chosen on DEV: docs/prototype.md
_RIDGE = 0.3


@dataclass(frozen=True)
class Aligned:
    """Tokens (K, d) or prompts (K, q, d), and the cosine of each with its center (K,)."""

    states: Tensor
    cosine: Tensor


def tokens_for(centers: Tensor, tower: Tower, steps: int, seed: torch.Generator) -> Aligned:
    """Form A, by Adam (3e-2, no decay), from the empty prompt's last state with a little noise.

    Args:
        centers: (K, w), unit length.
        tower: the pipeline's.
        steps: of Adam.
        seed: of the noise.
    """
    start = tower.empty[0, -1].repeat(len(centers), 1)
    noise = 0.05 * torch.randn(start[:, tower.columns].shape, generator=seed)
    u = (start[:, tower.columns] + noise).requires_grad_()

    def token() -> Tensor:
        full = start.clone()
        full[:, tower.columns] = tower.norm(u)
        return full

    def cosine() -> Tensor:
        return (tower.features(token()) * centers).sum(dim=1)

    _climb([u], cosine, 3e-2, steps)
    with torch.no_grad():
        return Aligned(token(), cosine())


def prompts_for(
    centers: Tensor, tower: Tower, steps: int, length: int, seed: torch.Generator
) -> Aligned:
    """Form B, by Adam (5e-2), from m embeddings drawn as wide as the table's.

    Of a pipeline with two encoders the other one's states stay those of the empty prompt.
    """
    table = tower.embeddings
    shape = (len(centers), length, table.shape[1])
    e = (table.mean(dim=0) + table.std() * torch.randn(shape, generator=seed)).requires_grad_()

    def cosine() -> Tensor:
        return (tower.soft(e)[1] * centers).sum(dim=1)

    _climb([e], cosine, 5e-2 * float(table.std()), steps)
    with torch.no_grad():
        states = tower.empty.repeat(len(centers), 1, 1)
        states[..., tower.columns] = tower.soft(e)[0]
        return Aligned(states, cosine())


def selectors_for(centers: Tensor, ends: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """`selector` (K, d) and `center` (d,) for `guards.gate`.

    Args:
        centers: (K, w), unit length.
        ends: (n, d) states at the end of harmless prompts.
        features: (n, w) CLIP's unit features of them.
    """
    mean = features.mean(dim=0)
    away = features - mean
    spread = away.T @ away / len(away)
    told = torch.linalg.solve(_shrunk(spread, _SHRINKAGE), centers.T)  # (w, K)
    wanted = normalize(away, dim=-1) @ told  # (n, K)
    center = ends.mean(dim=0)
    states = normalize(ends - center, dim=-1)
    moment = states.T @ states / len(states)
    ridge = _RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
    selector = torch.linalg.solve(moment + ridge, states.T @ wanted / len(states)).T
    return normalize(selector, dim=-1), center


def name_selectors(names: Tensor, ends: Tensor, center: Tensor) -> Tensor:
    """Selectors (M, d) of names that are listed: what sets their states apart from harmless ones.

    Fisher's discriminant among text states, (S + lambda I)^-1 times the mean of the name's states: a
    cluster of pictures stands for many names, and a gate must not miss one that its user wrote down.

    Args:
        names: (M, t, d) states at the end of each name's prompts.
        ends: (n, d) states at the end of harmless prompts.
        center: (d,), see `selectors_for`.
    """
    states = normalize(ends - center, dim=-1)
    moment = states.T @ states / len(states)
    own = normalize(names - center, dim=-1).mean(dim=1)  # (M, d)
    return normalize(torch.linalg.solve(_shrunk(moment, _SHRINKAGE), own.T).T, dim=-1)


def _shrunk(spread: Tensor, share: float) -> Tensor:
    sphere = spread.diagonal().mean() * torch.eye(len(spread))
    return (1 - share) * spread + share * sphere


def _climb(free: list[Tensor], cosine: Callable[[], Tensor], lr: float, steps: int) -> None:
    optimizer = torch.optim.Adam(free, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (1 - cosine()).sum().backward()
        optimizer.step()
