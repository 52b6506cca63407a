"""How much else would move if a word became the target: predicted, from text states alone.

A word u is moved by W_l (t - c)(A u): by how far the target is, times how much of the concept's
movement the word shares (its *leak*). methods.md 3.8, step 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editforge.artifacts.neighbors import Neighbor, Neighborhood
from editforge.artifacts.targets import Candidate
from editforge.families.vocabulary import Vocabulary
from editforge.ground.names import fold


class Damage:
    """One concept's J, with the inverse that it needs: see `adaptive` for the formulas.

    Args:
        center: (d,) float64, the state of the concept.
        near: its neighborhood; what it preserves is held.
        known: the word list.
        mean: (d,) of the list.
        ridge: as in the edit to come. Higher: locality matters less.
        weight: of what is preserved, as in the edit to come.
        affected: words the damage is averaged over. Higher: less local.
    """

    def __init__(
        self,
        center: Tensor,
        near: Neighborhood,
        known: Vocabulary,
        mean: Tensor,
        ridge: float,
        weight: float,
        affected: int,
    ) -> None:
        self._center, self._near, self._known = center, near, known
        self._weight, self._count = weight, affected
        self._position = {word: at for at, word in enumerate(known.words)}
        kept = [self._position[w] for w in near.having("preserve") if w in self._position]
        held = torch.cat([known.vectors[kept], mean[None]]).double() * weight**0.5
        Y = torch.cat([center[None], held]).T
        self._inverse = _Inverse(Y, ridge * float(center @ center))
        self.direction = self._inverse.of(center[:, None])[:, 0]  # G_0^-1 c

    def of(self, rows: Sequence[Neighbor], leaks: Tensor) -> list[Candidate]:
        """Some words as targets, the least damage first.

        Args:
            rows: of the list that `known` is.
            leaks: of every word of the list, (V,).
        """
        U, c, position = self._known.vectors, self._center, self._position
        affected = self._affected(leaks)
        at = [position[row.word] for row in rows]
        candidates, words = U[at].double(), U[affected].double()  # (k, d), (<= num_affected + 1, d)
        solved = self._inverse.of(candidates.T)  # G_0^-1 v, (d, k)
        own = (candidates * solved.T).sum(dim=1)  # v^T G_0^-1 v
        leak_v, leak_u = solved.T @ c, self._inverse.of(words.T).T @ c
        weight = self._weight
        shared = leak_v / (1 + weight * own)
        moved = (leak_u[None] - weight * shared[:, None] * (solved.T @ words.T)).square()
        ranked = []
        for index, row in enumerate(rows):
            others = [j for j, word in enumerate(affected) if word != at[index]][: self._count]
            damage = float(moved[index, others].mean()) if others else 0.0
            ranked.append(
                Candidate(
                    word=row.word,
                    score=_digits(row.displacement**2 * damage),
                    similarity=row.similarity,
                    displacement=row.displacement,
                    leak=_digits(float(leak_v[index])),
                )
            )
        return sorted(ranked, key=lambda item: (item.score, -abs(item.leak), item.word))

    def _affected(self, leaks: Tensor) -> list[int]:
        """The words that leak most, without the concept and what was passed over; one to spare."""
        out = {fold(row.word) for row in self._near.words if row.role == "erase" or row.reason}
        out.add(fold(self._near.concept))
        wanted = self._count + 1
        order = leaks.abs().topk(min(len(leaks), wanted + len(out))).indices.tolist()
        return [at for at in order if fold(self._known.words[at]) not in out][:wanted]


class _Inverse:
    """G_0^-1 x for G_0 = lam I + Y Y^T, through the small (k, k) system: Woodbury."""

    def __init__(self, Y: Tensor, lam: float) -> None:
        self._Y, self._lam = Y, lam
        small = Y.T @ Y
        small.diagonal().add_(lam)
        self._factor = torch.linalg.cholesky(small)

    def of(self, x: Tensor) -> Tensor:
        return (x - self._Y @ torch.cholesky_solve(self._Y.T @ x, self._factor)) / self._lam


def _digits(value: float) -> float:
    """Six significant digits: what a person compares, and what does not change with rounding."""
    return float(f"{value:.6g}")
