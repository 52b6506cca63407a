"""What was measured once on the embedded model: thresholds, main colors, computed neighbors.

`calibration.json` is written by `python -m editforge.evaluate.calibrate` and belongs to the
exact weights of model and judges; with other weights it is refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from editforge import emoji
from editforge.ground.errors import PackageError

PATH = Path(__file__).with_name("calibration.json")


@dataclass(frozen=True)
class Calibration:
    """Measurements on samples of the embedded base model at threshold seeds.

    `thresholds` maps a judge (a, b) and a set of labels (see `label_key`) to tau. `main_colors`
    maps a name to the background it would vanish on, or to none of them. `near` maps names without
    a list in the manifest to (by text, by appearance), nearest first.
    """

    thresholds: Mapping[str, Mapping[str, float]]
    main_colors: Mapping[str, str]
    near: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


def label_key(labels: tuple[str, ...]) -> str:
    """How the file calls a set of labels: sorted, joined."""
    return " | ".join(sorted(labels))


@functools.cache
def calibration() -> Calibration:
    """The shipped measurements.

    Raises:
        PackageError: they were made with another model or judge.
    """
    raw = json.loads(PATH.read_text(encoding="utf-8"))
    if raw["made_with"] != fingerprint():
        raise PackageError(
            "the calibration belongs to another embedded model or judge",
            got=PATH.name,
            next="python -m editforge.evaluate.calibrate",
        )
    return Calibration(
        thresholds=raw["thresholds"],
        main_colors=raw["main_colors"],
        near={name: (tuple(text), tuple(look)) for name, (text, look) in raw["near"].items()},
    )


def fingerprint() -> dict[str, str]:
    """The weights that the measurements depend on."""
    return {
        "pipeline": emoji.pipeline_digest(),
        "judge_a": emoji.judge_digest("a"),
        "judge_b": emoji.judge_digest("b"),
    }
