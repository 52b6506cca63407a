"""From images to numbers: what the judges saw, what moved, by set, by name and by erased concept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from editforge.artifacts.report import Estimate, NameRate
from editforge.evaluate import metrics
from editforge.evaluate.prompts import Prompt
from editforge.evaluate.prompts.core import Set
from editforge.judges import Judge, Judged, judge_images, tells

SETS: tuple[Set, ...] = ("name", "alias", "near", "far")
ERASED: tuple[Set, ...] = ("name", "alias")
KEPT: tuple[Set, ...] = ("near", "far")
BASE_PRESENCE = 0.5
_UNNAMED = "no judge names what a picture shows"


@dataclass(frozen=True)
class Reference:
    """What the base draws for the targets, on the noise of the first name images.

    `shown` is the base's own name images where no target is known.
    """

    rows: tuple[Prompt, ...]
    images: NDArray[np.uint8]
    judged: Judged | None

    def of(self, concepts: Collection[str]) -> NDArray[np.intp]:
        """Indices of the images for these erased concepts."""
        return _indices(row.concept in concepts for row in self.rows)

    def recognizable(self, concepts: Collection[str]) -> Estimate:
        """The share of these images that show something the judges agree on."""
        if self.judged is None or not self.judged.named:
            return Estimate.undefined(_UNNAMED if self.judged else "no judge", "images")
        return metrics.rate(self.judged.recognizable[self.of(concepts)])


@dataclass(frozen=True)
class Scores:
    """Scores of n paired images; `base` and `edited` are None without a judge.

    `pixel_drift` is the mean absolute difference of pixels in [0, 1] of each pair, `feature_drift`
    the distance of the first judge's features (JPIPS), None if it has none. `images` are the
    edited model's. `known_names` are the erased concepts that a judge can tell, `judged` those of
    them that the base draws: what it does not draw cannot be seen to go.
    """

    rows: tuple[Prompt, ...]
    images: NDArray[np.uint8]
    known: NDArray[np.bool_]
    base: Judged | None
    edited: Judged | None
    reference: Reference
    pixel_drift: NDArray[np.float32]
    feature_drift: NDArray[np.float32] | None
    known_names: tuple[str, ...]
    judged: tuple[str, ...]
    seed: int

    @property
    def named(self) -> bool:
        """Whether a judge says what a picture shows, and so whether it shows anything."""
        return self.base is not None and self.base.named

    def where(self, *sets: Set, concepts: Collection[str] | None = None) -> NDArray[np.intp]:
        """Indices of the images of these sets that the judges can tell, of some erased concepts.

        Args:
            sets: name, alias, near, far.
            concepts: None is all that are judged, or all that are known if none is.
        """
        own = self._asked(concepts)
        return _indices(
            self.known[i] and row.set in sets and (row.set in KEPT or row.concept in own)
            for i, row in enumerate(self.rows)
        )

    def presence(self, which: Set, concepts: Collection[str] | None = None) -> dict[str, Estimate]:
        """Share of images of a set that show their erased concept, base and edited."""
        own = self.where(which, concepts=concepts)
        return {
            label: metrics.rate(judged.present[own], reason=f"no {which} images")
            for label, judged in self._both()
        }

    def recognizable(self, *sets: Set) -> dict[str, Estimate]:
        """Share of images that show something the judges agree on, base and edited."""
        own = self.where(*sets)
        return {
            label: metrics.rate(judged.recognizable[own])
            if judged.named
            else Estimate.undefined(_UNNAMED, "images")
            for label, judged in self._both()
        }

    def against_reference(self, concepts: Collection[str] | None = None) -> Estimate:
        """Recognizable name and alias images over recognizable reference images, as shares."""
        concepts = self._asked(concepts)
        if self.edited is None or self.reference.judged is None:
            return Estimate.undefined("no judge", "images")
        if not self.named:
            return Estimate.undefined(_UNNAMED, "images")
        own = self.where(*ERASED, concepts=concepts)
        return metrics.ratio(
            self.edited.recognizable[own],
            self.reference.judged.recognizable[self.reference.of(concepts)],
            seed=self.seed,
        )

    def kept(self, which: Set) -> Estimate:
        """Retention of a set: edited over base, paired bootstrap over names, then images."""
        return self._ratio("retained", which)

    def kept_recognizable(self) -> Estimate:
        """Recognizable near and far images: edited over base."""
        if self.base is not None and not self.named:
            return Estimate.undefined(_UNNAMED, "images")
        return self._ratio("recognizable", *KEPT)

    def one_picture(self, concepts: Collection[str], tolerance: float) -> tuple[float, float]:
        """Share of the name images that are nearly their medoid: edited, and of the reference."""
        edited = self.images[self.where("name", concepts=concepts)]
        reference = self.reference.images[self.reference.of(concepts)]
        return metrics.medoid_share(edited, tolerance), metrics.medoid_share(reference, tolerance)

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

    @cached_property
    def rates(self) -> tuple[NameRate, ...]:
        """One line for each name of each set."""
        lines = []
        for which in SETS:
            for name, own in self._by_name(which).items():
                field = "present" if which in ERASED else "retained"
                shares = {
                    k: float(getattr(judged, field)[own].mean()) for k, judged in self._both()
                }
                lines.append(NameRate(name=name, set=which, n=len(own), **shares))
        return tuple(lines)

    def drawn_as(self, concept: str) -> dict[str, float]:
        """What the edited model draws for a name: the three most frequent labels, with shares."""
        own = self.where("name", concepts=(concept,))
        if self.edited is None or not len(own):
            return {}
        counts = Counter(self.edited.label[own].tolist())
        return {
            label or "nothing recognizable": count / len(own)
            for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
        }

    def worst(self, index: int) -> tuple[bool, bool]:
        """Sorts pictures, worst first: (not what it should be, not recognizable)."""
        if self.base is None or self.edited is None or not self.known[index]:
            return (False, False)
        row, mush = self.rows[index], not self.edited.recognizable[index]
        if row.set in ERASED:
            return (bool(self.edited.present[index]), bool(mush))
        lost = self.base.retained[index] and not self.edited.retained[index]
        return (bool(lost), bool(lost and mush))

    def _asked(self, concepts: Collection[str] | None) -> Collection[str]:
        return concepts if concepts is not None else self.judged or self.known_names

    def _by_name(self, *sets: Set) -> dict[str, NDArray[np.intp]]:
        """Indices by word, in order of first use."""
        groups: dict[str, list[int]] = {}
        for index in self.where(*sets):
            groups.setdefault(self.rows[index].name, []).append(int(index))
        return {name: np.array(indices) for name, indices in groups.items()}

    def _ratio(self, field: str, *sets: Set) -> Estimate:
        if self.base is None or self.edited is None:
            return Estimate.undefined("no judge", "images")
        groups = self._by_name(*sets).values()
        before, after = getattr(self.base, field), getattr(self.edited, field)
        return metrics.kept(
            [before[own] for own in groups], [after[own] for own in groups], seed=self.seed
        )

    def _both(self) -> list[tuple[str, Judged]]:
        pairs = (("base", self.base), ("edited", self.edited))
        return [(label, judged) for label, judged in pairs if judged is not None]

    def _all_by_name(self, which: Set) -> list[NDArray[np.intp]]:
        names = dict.fromkeys(row.name for row in self.rows if row.set == which)
        return [_indices((r.set, r.name) == (which, name) for r in self.rows) for name in names]


def score(
    rows: Sequence[Prompt],
    base: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    judges: Sequence[Judge],
    *,
    reference: Sequence[Prompt] = (),
    reference_images: NDArray[np.uint8] | None = None,
    seed: int,
) -> Scores:
    """Judge both models' images and measure what moved.

    Args:
        rows: the prompt of each image.
        base: (n, height, width, 3) uint8.
        edited: the same noise and prompts.
        judges: none: drift alone.
        reference: the prompt of each reference image; a concept without one is measured against
            the base's own name images.
        reference_images: what the base draws for them.
        seed: of the resampling.
    """
    known = np.array([knows(judges, row.labels) for row in rows])
    labels = [row.labels if known[i] else () for i, row in enumerate(rows)]
    judged_base = _judged(base, labels, judges)
    referred = {row.concept for row in reference}
    own = _indices(row.set == "name" and row.concept not in referred for row in rows)
    shown = [base[own], *([reference_images] if reference_images is not None else [])]
    images = np.concatenate(shown)
    names = [i for i, row in enumerate(rows) if row.set == "name" and known[i]]
    drawn: dict[str, list[bool]] = {rows[i].concept: [] for i in names}
    if judged_base is not None:
        for i in names:
            drawn[rows[i].concept].append(bool(judged_base.present[i]))
    return Scores(
        rows=tuple(rows),
        images=edited,
        known=known,
        base=judged_base,
        edited=_judged(edited, labels, judges),
        reference=Reference(
            (*(rows[i] for i in own), *reference),
            images,
            _judged(images, [()] * len(images), judges),
        ),
        pixel_drift=_pixel_drift(base, edited),
        feature_drift=_feature_drift(base, edited, judges),
        known_names=tuple(drawn),
        judged=tuple(name for name, hits in drawn.items() if np.mean(hits) >= BASE_PRESENCE),
        seed=seed,
    )


def knows(judges: Sequence[Judge], labels: tuple[str, ...]) -> bool:
    """Whether a judge can tell these labels; False without judges or labels."""
    return any(tells(judge, labels) for judge in judges)


def _indices(wanted: Iterable[bool | np.bool_]) -> NDArray[np.intp]:
    return np.flatnonzero(np.fromiter(wanted, dtype=bool))


def _judged(
    images: NDArray[np.uint8], labels: Sequence[tuple[str, ...]], judges: Sequence[Judge]
) -> Judged | None:
    return judge_images(images, labels, judges) if judges and len(images) else None


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
