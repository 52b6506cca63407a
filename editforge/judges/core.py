"""Judges: frozen classifiers that label an image, with a class for *none of these*.

Rule 4, judge disagreement never helps a method: an erased concept is present if either judge says
so, a kept one is there only if all agree, and a drawing is recognizable if all give it the same
label, and that is not `none`. A judge that fails raises; it never counts as absent.
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


@dataclass(frozen=True)
class Judged:
    """What the judges say of n images asked for n sets of labels; each (n,).

    `label` is what all judges call the image, or empty: then it is not recognizable.
    """

    present: NDArray[np.bool_]
    retained: NDArray[np.bool_]
    label: NDArray[np.str_]

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
        judges: at least one. With one, present and retained are that judge's word alone.
    """
    n = len(images)
    present, retained = np.zeros(n, bool), np.ones(n, bool)
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
        seen.append(np.array([label if label != NONE else "" for label in judge.labels])[best])
        for row, wanted in enumerate(labels):
            columns = [index[label] for label in wanted]
            present[row] |= bool(wanted) and rows[row, columns].sum() >= judge.threshold(wanted)
            retained[row] &= best[row] in columns
    agreed = np.all([one == seen[0] for one in seen], axis=0)
    return Judged(present, retained, np.where(agreed, seen[0], ""))
