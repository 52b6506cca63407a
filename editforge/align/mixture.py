"""A learned target: logits over candidates, whose text states mix as a Gumbel-softmax says.

    y = softmax((pi + a g) / temperature),  g = -log(-log u)        T = y . M

M holds what the encoder makes of every candidate in one template, at all positions. `hard` takes one
candidate forward and lets the gradient pass as if it were soft; otherwise the `topk` largest shares
stay. A mean of unlike states is shorter than they are, so each position gets its parts' mean length
back. Jang et al., arXiv 1611.01144; as AGE's target, arXiv 2501.18950; methods.md 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editforge.align.denoiser import Encoded
from editforge.ground.keyed import keyed


@dataclass(frozen=True)
class Candidates:
    """What one erased concept may become.

    Args:
        words: n of them, nearest first.
        states: per template (n, q, d).
        pooled: per template (n, p); empty for models without pooled states.
    """

    words: tuple[str, ...]
    states: tuple[Tensor, ...]
    pooled: tuple[Tensor, ...] = ()

    def encoded(self, word: int, template: int) -> Encoded:
        """One candidate in one template."""
        pooled = self.pooled[template][word] if self.pooled else None
        return Encoded(self.states[template][word], pooled)


class Mixture(nn.Module):
    """The logits of all concepts, and the states that they mix.

    Args:
        candidates: by concept.
        temperature: lower: nearer to one candidate, rarer gradients.
        hard: one candidate at a time.
        topk: of a soft mixture: candidates that count.
        seed: of the Gumbel noise, keyed by the global sample index.
        device: of the logits.
    """

    def __init__(
        self,
        candidates: Mapping[str, Candidates],
        *,
        temperature: float,
        hard: bool,
        topk: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.candidates = dict(candidates)
        self._temperature, self._hard, self._topk, self._seed = temperature, hard, topk, seed
        self.logits = nn.ParameterList(
            nn.Parameter(torch.zeros(len(own.words), device=device)) for own in candidates.values()
        )
        self._at = {name: at for at, name in enumerate(candidates)}

    def pi(self, concept: str) -> Tensor:
        """The logits of one concept, (n,)."""
        return self.logits[self._at[concept]]

    def shares(self, concept: str, sample: int, noise: float) -> Tensor:
        """y, (n,): sums to 1; with gradient to the logits.

        Args:
            concept: whose candidates.
            sample: global index; keys the noise.
            noise: a, from 0 to 1.
        """
        pi = self.pi(concept)
        u = torch.rand(len(pi), generator=keyed(self._seed, "gumbel", concept, sample))
        gumbel = -(-u.clamp(1e-9, 1 - 1e-7).log()).log()
        return ((pi + noise * gumbel.to(pi.device)) / self._temperature).softmax(dim=0)

    def mixed(self, concept: str, template: int, sample: int, noise: float) -> Encoded:
        """T: the states (q, d) of a sample's mixture, with gradient to the logits."""
        y, own = self.shares(concept, sample, noise), self.candidates[concept]
        states, pooled = own.states[template], own.pooled[template] if own.pooled else None
        if self._hard:
            best = int(y.argmax())
            slope = y - y.detach()  # zero, and the gradient of the soft mixture

            def mix(rows: Tensor) -> Tensor:
                return rows[best] + torch.tensordot(slope, rows.to(slope), dims=1).to(rows)

        else:
            top = y.topk(min(self._topk, len(y)))
            weights = top.values / top.values.sum()

            def mix(rows: Tensor) -> Tensor:
                parts = rows[top.indices.to(rows.device)].to(weights)
                mean = torch.tensordot(weights, parts, dims=1)
                wanted = torch.tensordot(weights, parts.norm(dim=-1), dims=1)
                return mean * (wanted / mean.norm(dim=-1).clamp(min=1e-12))[..., None]

        return Encoded(mix(states), None if pooled is None else mix(pooled))

    @torch.no_grad()
    def leader(self, concept: str) -> int:
        """The candidate with the largest logit; of equals the nearest."""
        return int(self.pi(concept).argmax())

    @torch.no_grad()
    def settled(self, concept: str) -> Tensor:
        """The shares without noise, (n,)."""
        return (self.pi(concept) / self._temperature).softmax(dim=0).cpu()

    def leading(self, concept: str, count: int = 5) -> list[tuple[str, float]]:
        """The words with the largest shares, largest first."""
        top = self.settled(concept).topk(min(count, len(self.pi(concept))))
        words = self.candidates[concept].words
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [(words[at], round(share, 6)) for at, share in pairs]
