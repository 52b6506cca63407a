"""What is aligned with what: the rows of one sample, and a pure function over their predictions.

An `Objective` names the rows of one sample that the frozen teacher and the trained student predict, as
(branch, condition): the branch says which noisy latent, the condition which text. The training loop
makes one teacher batch and one student batch of them and hands the predictions to `parts`. A method
is a file with its config and its objective; the loop is the same for all.

Predictions are the model's own output, noise or velocity: every loss here combines outputs linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Row = tuple[str, str]
Predictions = Mapping[Row, Tensor]  # (n, c, h, w) each, float32
Parts = dict[str, Tensor]  # scalars; `loss` is what is minimized

# Conditions: the erased prompt, the same displaced to a neighbor, its target, what guidance leads away
# from where there is no negative prompt; what is kept.
ERASED, NEIGHBOR, TARGET, EMPTY, KEPT = "erased", "neighbor", "target", "empty", "kept"
# Branches: latents of the erased prompt, and of a kept one.
ERASE, KEEP = "erase", "keep"


@dataclass(frozen=True)
class Objective:
    """Rows to predict, and the loss over them.

    Args:
        teacher: predicted by the frozen base, without gradient.
        student: predicted by the model in training.
        parts: `parts(teacher, student)`: named scalars, means over rows, `loss` among them.
        names: the keys of `parts`, in order.
    """

    teacher: tuple[Row, ...]
    student: tuple[Row, ...]
    parts: Callable[[Predictions, Predictions], Parts]
    names: tuple[str, ...] = ("loss",)

    @property
    def branches(self) -> tuple[str, ...]:
        """The latents it needs."""
        return tuple(dict.fromkeys(branch for branch, _ in (*self.teacher, *self.student)))


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
