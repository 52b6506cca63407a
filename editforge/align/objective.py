"""What is aligned with what: the rows of one sample, and a pure function over their predictions.

An `Objective` names the rows of one sample that the frozen teacher and the trained student predict, as
(branch, condition): the branch says which noisy latent, the condition which text. The training loop
makes one teacher batch and one student batch of them and hands the predictions to `parts`. A method
is a file with its config and its objective; the loop is the same for all.

Predictions are the model's own output, noise or velocity, times `scale`: every loss here combines
outputs linearly. A `Turn` says whose step it is, for methods in which two sides play a game.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Row = tuple[str, str]
Predictions = Mapping[Row, Tensor]  # (n, c, h, w) each, float32
Parts = dict[str, Tensor]  # scalars; `loss` is what is minimized

# Conditions: the erased prompt, the same displaced to a neighbor, its target, what guidance leads away
# from where there is no negative prompt; what is kept; a mixture of candidate targets.
ERASED, NEIGHBOR, TARGET, EMPTY, KEPT = "erased", "neighbor", "target", "empty", "kept"
MIXED = "mixed"
# Branches: latents of the erased prompt, of a kept one, of the mixture's leading candidate.
ERASE, KEEP, LEADING = "erase", "keep", "leading"
# Players: the model, which is trained, and the mixture that chooses what it is trained towards.
WEIGHTS, MIXTURE = "weights", "mixture"


@dataclass(frozen=True)
class Objective:
    """Rows to predict, and the loss over them.

    Args:
        teacher: predicted by the frozen base, without gradient.
        student: predicted by the model in training.
        parts: `parts(teacher, student)`: named scalars, means over rows, `loss` among them.
        names: the keys of `parts`, in order.
        scale: what the predictions of rows at times (n,) are multiplied by; None: 1.
    """

    teacher: tuple[Row, ...]
    student: tuple[Row, ...]
    parts: Callable[[Predictions, Predictions], Parts]
    names: tuple[str, ...] = ("loss",)
    scale: Callable[[Tensor], Tensor] | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """The latents it needs."""
        return tuple(dict.fromkeys(branch for branch, _ in (*self.teacher, *self.student)))


@dataclass(frozen=True)
class Turn:
    """Whose step it is.

    Args:
        objective: the rows and parts that this side sees.
        player: `weights` or `mixture`; the other one does not move.
        ascends: it raises the loss instead of lowering it.
        teacher: rows of the frozen base through which its gradient reaches the mixture.
        student: the same of the model in training.
    """

    objective: Objective
    player: str = WEIGHTS
    ascends: bool = False
    teacher: frozenset[Row] = frozenset()
    student: frozenset[Row] = frozenset()


def toward(
    row: Row, goal: Callable[[Predictions], Tensor], reads: tuple[Row, ...], mu: float
) -> Objective:
    """One erased row predicts a goal made of frozen predictions; what is kept stays.

        L = mean |student[row] - goal(teacher)|^2  +  mu mean |student[kept] - teacher[kept]|^2

    Args:
        row: of the student.
        goal: of the teacher's predictions.
        reads: the teacher's rows that `goal` needs.
        mu: weight of what is kept. Higher: less drift, weaker erasure. 0 leaves the branch out.
    """
    keep: tuple[Row, ...] = ((KEEP, KEPT),) if mu > 0 else ()

    def parts(teacher: Predictions, student: Predictions) -> Parts:
        erase = (student[row] - goal(teacher)).square().mean()
        if not keep:
            return {"loss": erase}
        kept = (student[KEEP, KEPT] - teacher[KEEP, KEPT]).square().mean()
        return {"loss": erase + mu * kept, "erase": erase, "keep": kept}

    names = ("loss", "erase", "keep") if keep else ("loss",)
    return Objective((*reads, *keep), (row, *keep), parts, names)
