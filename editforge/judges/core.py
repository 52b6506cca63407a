"""Judges: frozen classifiers that label an image, with a class for *none of these*.

Rule 4, judge disagreement never helps a method: an erased concept is present if either judge says
so, a kept one is there only if all agree, and a drawing is recognizable if all give it the same
label, and that is not `none`. A judge that fails raises; it never counts as absent. Who cannot tell
a thing is not asked about it, and who looks for one thing alone does not name what a picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from editforge.ground.errors import EditforgeError

NONE = "none"


@runtime_checkable
class Judge(Protocol):
    """A frozen classifier. `labels` ends with `none`; `sha256` is of its weights."""

    name: str
    sha256: str
    labels: tuple[str, ...]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, height, width, 3) uint8 RGB to (n, len(labels)) rows that sum to 1."""

    def threshold(self, labels: tuple[str, ...]) -> float:
        """From which summed probability on any of `labels` counts as present."""

    def features(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]] | None:
        """Feature maps (n, channels, h, w) for perceptual distances; None if it has none."""


@runtime_checkable
class Foreign(Judge, Protocol):
    """A judge that learned from other pictures than this model's: believed only once it is calibrated.

    It may have `names_things`, False where it looks for one thing alone, and `source`, what a report
    says about where it came from.
    """

    def fitted(self, images: NDArray[np.uint8], labels: Sequence[tuple[str, ...]]) -> Judge:
        """The same judge, set by the base's own pictures and what each was asked to show."""


def names_things(judge: Judge) -> bool:
    """Whether a judge names what a picture shows, and so can say that it shows nothing."""
    return bool(getattr(judge, "names_things", True))


def tells(judge: Judge, labels: tuple[str, ...]) -> bool:
    """Whether a judge knows these labels, and its calibration did not refuse them."""
    refused = getattr(judge, "cannot_tell", {})
    return bool(labels) and set(labels) <= set(judge.labels) and labels not in refused


@dataclass(frozen=True)
class Judged:
    """What the judges say of n images asked for n sets of labels; each (n,).

    `label` is what all judges call the image, or empty: then it is not recognizable. `named` is False
    where no judge names things: then labels are empty, and that means nothing.
    """

    present: NDArray[np.bool_]
    retained: NDArray[np.bool_]
    label: NDArray[np.str_]
    named: bool = True

    @property
    def recognizable(self) -> NDArray[np.bool_]:
        """Whether all judges agree on what the image shows."""
        return self.label != ""


def judge_images(
    images: NDArray[np.uint8], labels: Sequence[tuple[str, ...]], judges: Sequence[Judge]
) -> Judged:
    """Apply rule 4.

    Args:
        images: (n, height, width, 3) uint8 RGB.
        labels: for each image the labels that count as its concept, twins included; none: then it
            is neither present nor retained.
        judges: at least one. With one, present and retained are that judge's word alone. Each is
            asked about the labels that it can tell.
    """
    n = len(images)
    present, retained = np.zeros(n, bool), np.ones(n, bool)
    asked = np.zeros(n, bool)
    seen: list[NDArray[np.str_]] = []
    for judge in judges:
        rows = judge.probabilities(images)
        if rows.shape != (n, len(judge.labels)) or not np.isfinite(rows).all():
            raise EditforgeError(
                f"judge {judge.name} failed",
                got=f"probabilities of shape {rows.shape}, or NaN",
                next="check the judge's weights; a failing judge is no evidence of absence",
            )
        index = {label: position for position, label in enumerate(judge.labels)}
        best = rows.argmax(axis=1)
        if names_things(judge):
            called = [label if label != NONE else "" for label in judge.labels]
            seen.append(np.array(called)[best])
        for row, wanted in enumerate(labels):
            if not tells(judge, wanted):
                continue
            columns = [index[label] for label in wanted]
            asked[row] = True
            present[row] |= rows[row, columns].sum() >= judge.threshold(wanted)
            retained[row] &= best[row] in columns
    empty = np.zeros(n, dtype="<U1")
    agreed = np.all([one == seen[0] for one in seen], axis=0) if seen else np.zeros(n, bool)
    label = np.where(agreed, seen[0] if seen else empty, "")
    return Judged(present, retained & asked, label, named=bool(seen))
