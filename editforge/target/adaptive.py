"""The nearest target that is no synonym; of several, the one with the least predicted damage around it.

A word u is moved by W_l (t - c)(A u): by how far the target is, times how much of the concept's
movement the word shares (its *leak*). So unrelated targets do harm, a synonym erases nothing, and the
best choice lies between. AGE finds such targets by training; here the same finding is linear algebra
over the words that `mine` ranked, and no picture is drawn. methods.md 3.8, steps 4 and 7.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from editforge.artifacts.neighbors import Neighbor, Neighborhood
from editforge.artifacts.targets import Candidate, Target, Targets
from editforge.families.vocabulary import Vocabulary, load_vocabulary
from editforge.ground.errors import EditError
from editforge.ground.names import fold
from editforge.recipe.contract import Context, StageConfig, TargetInputs
from editforge.recipe.registry import register
from editforge.target.preserve import preserve_list


class AdaptiveConfig(StageConfig):
    """Options of `target: adaptive`."""

    ridge: float = Field(
        6.5e-4, gt=0, description="As in the edit to come. Higher: locality matters less."
    )
    preserve_weight: float = Field(1.0, ge=0, description="As in the edit to come.")
    num_affected: int = Field(
        50, ge=1, description="Most affected words the damage is averaged over. Higher: less local."
    )
    num_nearest: int = Field(
        1,
        ge=1,
        description="The damage decides among this many nearest. Higher: farther targets, less of them.",
    )
    num_listed: int = Field(
        10, ge=1, description="Nearest candidates written to targets.yaml. Higher: slower."
    )


@register("target", "adaptive")
def adaptive(inputs: TargetInputs, config: AdaptiveConfig, context: Context) -> Targets:
    """Choose, of the `num_nearest` most similar candidates, the one with the least damage J.

        G_0     = lam I + c c^T + sum of preserved u u^T + mean mean^T
        leak(u) = c^T G_0^-1 u                              A_0 u, before v is preserved
        A_v u   = leak(u) - w leak(v) (v^T G_0^-1 u) / (1 + w v^T G_0^-1 v)
        J(v)    = displacement(v)^2 * mean over the most affected u of (A_v u)^2

    Ties go to the larger leak, then to the name. At 1 the nearest that is no synonym is taken, which
    is the same rule wherever A does not depend on the target, as in `edit: mean-shift`: there the
    second factor is the same for all, and the first grows with the distance. J is computed where it
    decides or is listed: of the `num_nearest` and of the `num_listed` nearest. Measured:
    docs/decisions.md.

    Raises:
        EditError: no candidate is left, with the counts of what was passed over.
    """
    known = load_vocabulary(context.model, inputs.neighbors.source, context.bar)
    centers = context.model.encoder.encode_words([c.name for c in inputs.concepts]).double()
    position = {word: index for index, word in enumerate(known.words)}
    mean = known.vectors.mean(dim=0)
    problems = [
        _Problem(center, inputs.neighbors.of(concept.name), known, position, mean, config)
        for center, concept in zip(centers, inputs.concepts, strict=True)
    ]
    # leak of every word for every concept: one product, (V, concepts); ranks words, so float32 will do
    leaks = known.vectors @ torch.stack([problem.direction for problem in problems]).T.float()
    chosen = []
    with context.bar(len(problems), "choosing targets") as bar:
        for index, (concept, problem) in enumerate(zip(inputs.concepts, problems, strict=True)):
            ranked = problem.ranked(leaks[:, index])
            nearest = sorted(ranked, key=lambda item: -item.similarity)[: config.num_nearest]
            best = min(nearest, key=ranked.index)
            rule = (
                "the nearest"
                if len(nearest) == 1
                else f"least predicted damage of the {len(nearest)} nearest"
            )
            reason = (
                f"{rule} of {problem.count} candidates; "
                f"similarity {best.similarity:.2f}, leak {best.leak:.3f}"
            )
            others = [item for item in ranked if item is not best][: config.num_listed - 1]
            chosen.append(
                Target(
                    concept=concept.name,
                    target=best.word,
                    reason=reason,
                    candidates=(best, *others),
                )
            )
            bar.update()
    return Targets(concepts=tuple(chosen), preserve=preserve_list(inputs, chosen))


class _Problem:
    """One concept's candidates and the inverse that predicts what choosing each would do."""

    def __init__(
        self,
        center: Tensor,
        near: Neighborhood,
        known: Vocabulary,
        position: dict[str, int],
        mean: Tensor,
        config: AdaptiveConfig,
    ) -> None:
        self._near, self._known, self._position, self._config = near, known, position, config
        self._center = center
        self._rows = [row for row in near.words if row.candidate and row.word in position]
        self.count = len(self._rows)
        if not self._rows:
            counts = ", ".join(f"{count} {why}" for why, count in near.passed_over.items())
            raise EditError(
                f"no target is left for {near.concept!r}",
                got=counts or "an empty word list",
                allowed="a word of the list that is neither the concept nor a synonym",
                next="name one (--target TEXT), or give a longer list (--set mine.words=FILE)",
            )
        kept = [position[word] for word in near.having("preserve") if word in position]
        held = torch.cat([known.vectors[kept], mean[None]]).double() * config.preserve_weight**0.5
        Y = torch.cat([center[None], held]).T
        self._inverse = _Inverse(Y, config.ridge * float(center @ center))
        self.direction = self._inverse.of(center[:, None])[:, 0]  # G_0^-1 c

    def ranked(self, leaks: Tensor) -> list[Candidate]:
        """The nearest candidates, best first, from the leak of every word."""
        U, c, rows, position = self._known.vectors, self._center, self._nearest(), self._position
        affected = self._affected(leaks)
        at = [position[row.word] for row in rows]
        candidates, words = U[at].double(), U[affected].double()  # (k, d), (<= num_affected + 1, d)
        solved = self._inverse.of(candidates.T)  # G_0^-1 v, (d, k)
        own = (candidates * solved.T).sum(dim=1)  # v^T G_0^-1 v
        leak_v, leak_u = solved.T @ c, self._inverse.of(words.T).T @ c
        weight = self._config.preserve_weight
        shared = leak_v / (1 + weight * own)
        moved = (leak_u[None] - weight * shared[:, None] * (solved.T @ words.T)).square()
        ranked = []
        for index, row in enumerate(rows):
            others = [j for j, word in enumerate(affected) if word != at[index]][
                : self._config.num_affected
            ]
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

    def _nearest(self) -> list[Neighbor]:
        """Those that J decides among or is listed for, and every one as near as the last of them."""
        similar = sorted((row.similarity for row in self._rows), reverse=True)
        wanted = max(self._config.num_nearest, self._config.num_listed)
        last = similar[min(wanted, self.count) - 1]
        return [row for row in self._rows if row.similarity >= last]

    def _affected(self, leaks: Tensor) -> list[int]:
        """The words that leak most, without the concept and what was passed over; one to spare."""
        out = {fold(row.word) for row in self._near.words if row.role == "erase" or row.reason}
        out.add(fold(self._near.concept))
        wanted = self._config.num_affected + 1
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
