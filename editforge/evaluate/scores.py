"""From images to numbers: what the judges saw, what moved, by set and by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editforge.artifacts.report import Estimate, NameRate
from editforge.evaluate import metrics
from editforge.evaluate.judges import Judge, Judged, judge_images
from editforge.evaluate.prompts import Prompt
from editforge.evaluate.prompts.core import Set

SETS: tuple[Set, ...] = ("name", "alias", "near", "far")
ERASED: tuple[Set, ...] = ("name", "alias")


@dataclass(frozen=True)
class Scores:
    """Scores of n paired images; `base` and `edited` are None without a judge.

    `pixel_drift` is the mean absolute difference of pixels in [0, 1] of each pair, `feature_drift`
    the distance of the first judge's features (JPIPS), None if it has none. `medoid_share` is the
    share of the edited name and alias images that are nearly one picture.
    """

    rows: tuple[Prompt, ...]
    known: NDArray[np.bool_]
    base: Judged | None
    edited: Judged | None
    pixel_drift: NDArray[np.float32]
    feature_drift: NDArray[np.float32] | None
    medoid_share: float
    seed: int

    def where(self, *sets: Set) -> NDArray[np.intp]:
        """Indices of the images of these sets that the judges can tell."""
        return np.array(
            [i for i, row in enumerate(self.rows) if row.set in sets and self.known[i]], dtype=int
        )

    def by_name(self, *sets: Set) -> dict[str, NDArray[np.intp]]:
        """The same indices by word, in order of first use."""
        groups: dict[str, list[int]] = {}
        for index in self.where(*sets):
            groups.setdefault(self.rows[index].name, []).append(int(index))
        return {name: np.array(indices) for name, indices in groups.items()}

    def presence(self, which: Set) -> dict[str, Estimate]:
        """Share of images of a set that show their erased concept, base and edited."""
        own = self.where(which)
        return {
            label: metrics.rate(judged.present[own], reason=f"no {which} images")
            for label, judged in self._both()
        }

    def valid(self, *sets: Set) -> dict[str, Estimate]:
        """Share of images that show anything at all, base and edited."""
        own = self.where(*sets)
        return {label: metrics.rate(judged.valid[own]) for label, judged in self._both()}

    def kept(self, which: Set) -> Estimate:
        """Retention of a set: edited over base, paired bootstrap over names, then images."""
        return self._ratio("retained", which)

    def kept_valid(self, *sets: Set) -> Estimate:
        """Valid images: edited over base."""
        return self._ratio("valid", *sets)

    def drift(self) -> dict[str, Estimate]:
        """Mean change of pixels and features on each set."""
        found = {}
        for which in SETS:
            groups = self._all_by_name(which)
            for kind, values in (("pixel", self.pixel_drift), ("features", self.feature_drift)):
                if values is not None and groups:
                    columns = [values[own] for own in groups]
                    found[f"{which}_{kind}"] = metrics.mean(columns, seed=self.seed)
        return found

    def rates(self) -> tuple[NameRate, ...]:
        """One line for each name of each set."""
        lines = []
        for which in SETS:
            for name, own in self.by_name(which).items():
                field = "present" if which in ERASED else "retained"
                shares = {
                    k: float(getattr(judged, field)[own].mean()) for k, judged in self._both()
                }
                if shares:
                    lines.append(NameRate(name=name, set=which, n=len(own), **shares))
        return tuple(lines)

    def _ratio(self, field: str, *sets: Set) -> Estimate:
        if self.base is None or self.edited is None:
            return Estimate.undefined("no judge", "images")
        groups = self.by_name(*sets).values()
        before, after = getattr(self.base, field), getattr(self.edited, field)
        return metrics.kept(
            [before[own] for own in groups], [after[own] for own in groups], seed=self.seed
        )

    def _both(self) -> list[tuple[str, Judged]]:
        pairs = (("base", self.base), ("edited", self.edited))
        return [(label, judged) for label, judged in pairs if judged is not None]

    def _all_by_name(self, which: Set) -> list[NDArray[np.intp]]:
        names = dict.fromkeys(row.name for row in self.rows if row.set == which)
        return [
            np.array([i for i, r in enumerate(self.rows) if (r.set, r.name) == (which, name)])
            for name in names
        ]


def score(
    rows: Sequence[Prompt],
    base: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    judges: Sequence[Judge],
    *,
    seed: int,
    tolerance: float,
) -> Scores:
    """Judge both models' images and measure what moved.

    Args:
        rows: the prompt of each image.
        base: (n, height, width, 3) uint8.
        edited: the same noise and prompts.
        judges: none: drift alone.
        seed: of the resampling.
        tolerance: mean pixel difference under which two images are nearly one.
    """
    known = np.array([knows(judges, row.labels) for row in rows])
    labels = [row.labels if known[i] else () for i, row in enumerate(rows)]
    own = np.array([row.set in ERASED for row in rows])
    return Scores(
        rows=tuple(rows),
        known=known,
        base=_judged(base, labels, judges),
        edited=_judged(edited, labels, judges),
        pixel_drift=_pixel_drift(base, edited),
        feature_drift=_feature_drift(base, edited, judges),
        medoid_share=metrics.medoid_share(edited[own], tolerance),
        seed=seed,
    )


def knows(judges: Sequence[Judge], labels: tuple[str, ...]) -> bool:
    """Whether all judges can tell these labels; False without judges or labels."""
    return bool(judges and labels) and all(set(labels) <= set(j.labels) for j in judges)


def _judged(
    images: NDArray[np.uint8], labels: Sequence[tuple[str, ...]], judges: Sequence[Judge]
) -> Judged | None:
    return judge_images(images, labels, judges) if judges else None


def _pixel_drift(base: NDArray[np.uint8], edited: NDArray[np.uint8]) -> NDArray[np.float32]:
    difference = np.abs(base.astype(np.int16) - edited)
    return np.asarray(difference.reshape(len(base), -1).mean(axis=1) / 255, dtype=np.float32)


def _feature_drift(
    base: NDArray[np.uint8], edited: NDArray[np.uint8], judges: Sequence[Judge]
) -> NDArray[np.float32] | None:
    """JPIPS: sum over stages of the mean squared distance of channel-normalized features."""
    for judge in judges:
        before, after = judge.features(base), judge.features(edited)
        if before is not None and after is not None:
            stages = [
                np.square(_unit(b) - _unit(a)).sum(axis=1).mean(axis=(1, 2))
                for b, a in zip(before, after, strict=True)
            ]
            return np.asarray(np.sum(stages, axis=0), dtype=np.float32)
    return None


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Length 1 along channels; a channel vector of zeros stays zero."""
    length = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-8)
    return np.asarray(features / length, dtype=np.float32)
