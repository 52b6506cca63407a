"""Whether a judge that learned elsewhere can be believed here: asked of the base's own pictures.

What a judge sees in pictures that the base was asked for is measured at prompts that it was not fitted
on. A threshold lets pass few pictures of other things; at it the concept must be seen in at least half
of its own, as the gate asks of the base too. What the judge cannot tell there it is not asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editforge.judges.core import Foreign, Judge, names_things

FALSE_POSITIVES = 0.01  # of all pictures of other things: a tenth of what a gate lets pass
LOOK_ALIKE = 0.25  # of those of any one other thing
FLOOR = 0.2  # of a threshold, as for the embedded judges
RECALL = 0.5  # of an erased concept's own pictures, to be believed: what the gate asks of the base
KNOWN = 1 / 3  # of a kept name's own pictures, to be asked about

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Examples:
    """Pictures of the base and what each was asked to show.

    Args:
        images: (n, height, width, 3) uint8.
        labels: of each; empty: nothing in particular.
        halves: of each, 0 or 1: no prompt is in both.
        erased: the labels of the erased concepts.
        called: labels to the name that a person gives them.
    """

    images: NDArray[np.uint8]
    labels: tuple[Labels, ...]
    halves: NDArray[np.int_]
    erased: tuple[Labels, ...]
    called: Mapping[Labels, str]


class Calibrated:
    """A foreign judge, fitted, with thresholds, and with what it cannot tell.

    `cannot_tell` maps labels to why, in words; `record` is what the report says of the calibration.
    """

    def __init__(
        self,
        judge: Judge,
        thresholds: Mapping[Labels, float],
        cannot_tell: Mapping[Labels, str],
        record: Mapping[str, Any],
    ) -> None:
        self._judge, self._thresholds = judge, dict(thresholds)
        self.name, self.sha256, self.labels = judge.name, judge.sha256, judge.labels
        self.names_things = names_things(judge)
        self.source = dict(getattr(judge, "source", {}))
        self.cannot_tell, self.record = dict(cannot_tell), dict(record)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The judge's own."""
        return self._judge.probabilities(images)

    def threshold(self, labels: Labels) -> float:
        """The calibrated one of an erased concept, else the judge's own."""
        return self._thresholds.get(labels, self._judge.threshold(labels))

    def features(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]] | None:
        """The judge's own."""
        return self._judge.features(images)


def calibrate(judge: Foreign, examples: Examples) -> Calibrated:
    """Fit a judge to the base's pictures, and find what it can tell there.

    Thresholds and shares come from pictures that the judge was not fitted on: each half is judged as
    fitted on the other.
    """
    shares = np.zeros((len(examples.images), len(judge.labels)), np.float32)
    for half in (0, 1):
        own = examples.halves == half
        other = [label for label, mine in zip(examples.labels, own, strict=True) if not mine]
        shares[own] = judge.fitted(examples.images[~own], other).probabilities(examples.images[own])
    thresholds: dict[Labels, float] = {}
    cannot_tell: dict[Labels, str] = {}
    seen: dict[str, float] = {}
    for labels in dict.fromkeys(examples.labels):
        if not labels or not set(labels) <= set(judge.labels):
            continue
        columns = [judge.labels.index(label) for label in labels]
        own = np.array([one == labels for one in examples.labels])
        name, count = examples.called.get(labels, labels[0]), int(own.sum())
        if labels in examples.erased:
            summed = shares[:, columns].sum(axis=1)
            tau, like = _threshold(summed, labels, examples.labels)
            share = float((summed[own] >= tau).mean())
            thresholds[labels] = round(tau, 6)
            if share < RECALL:
                cannot_tell[labels] = (
                    f"the judge {judge.name} sees {name} in {share:.0%} of {count} of the base's own "
                    f"pictures of it, at a threshold that {FALSE_POSITIVES:.0%} of those of other "
                    f"things pass" + (f", most often of {_names(like, examples)}" if like else "")
                )
        else:
            share = float(np.isin(shares[own].argmax(axis=1), columns).mean())
            if share < KNOWN or not names_things(judge):
                cannot_tell[labels] = f"{name} in {share:.0%} of {count}"
        seen[name] = round(share, 4)
    fitted = judge.fitted(examples.images, examples.labels)
    reasons = getattr(fitted, "why_not", {})
    cannot_tell |= {labels: why for labels, why in reasons.items() if labels in cannot_tell}
    record = {
        "pictures": len(examples.images),
        "false_positives": FALSE_POSITIVES,
        "thresholds": {examples.called.get(k, k[0]): v for k, v in thresholds.items()},
        "seen": seen,
        "cannot_tell": sorted(examples.called.get(k, k[0]) for k in cannot_tell),
    }
    return Calibrated(fitted, thresholds, cannot_tell, record)


def _threshold(
    summed: NDArray[np.float32], labels: Labels, asked: Sequence[Labels]
) -> tuple[float, list[Labels]]:
    """The smallest that lets pass few pictures of other things, and of what those are.

    A picture of nothing in particular counts as one of another thing.
    """
    other = np.array([not set(one) & set(labels) for one in asked])
    bounds = [FLOOR, _above(summed[other], FALSE_POSITIVES)]
    for one in dict.fromkeys(asked):
        if one and not set(one) & set(labels):
            bounds.append(_above(summed[np.array([a == one for a in asked])], LOOK_ALIKE))
    tau = max(bounds)
    near = np.sort(summed[other])[::-1][: 1 + int(FALSE_POSITIVES * other.sum())]
    level = near[-1] if len(near) else 1.0
    passed = Counter(
        one
        for one, value, mine in zip(asked, summed, other, strict=True)
        if mine and one and value >= level
    )
    return tau, [one for one, _ in passed.most_common(2)]


def _above(summed: NDArray[np.float32], share: float) -> float:
    """Just above all but a share of these."""
    allowed = int(share * len(summed))
    return float(np.nextafter(np.sort(summed)[-allowed - 1], np.float32(2))) if len(summed) else 0.0


def _names(labels: Sequence[Labels], examples: Examples) -> str:
    return " and ".join(examples.called.get(one, one[0]) for one in labels)
