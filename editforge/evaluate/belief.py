"""Before a foreign judge is believed: what it sees in the base's own pictures of the gate's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editforge.evaluate.prompts import GatePrompts, Prompt
from editforge.evaluate.prompts.examples import example_prompts
from editforge.judges import Foreign, Judge
from editforge.judges.foreign import Calibrated, Examples, calibrate


def believed(
    judges: Sequence[Judge],
    plan: GatePrompts,
    draw: Callable[[Sequence[Prompt]], NDArray[np.uint8]],
) -> tuple[Judge, ...]:
    """The judges, foreign ones calibrated; pictures are drawn only where there is one.

    Args:
        judges: of the gate.
        plan: of the gate: its names are what must be told apart.
        draw: prompts by the base.
    """
    if not any(isinstance(judge, Foreign) for judge in judges):
        return tuple(judges)
    asked = example_prompts(plan)
    rows = asked.rows
    examples = Examples(
        images=draw(asked.prompts),
        labels=tuple(tuple(label for label in row.labels if label) for row in rows),
        halves=asked.halves,
        erased=tuple(subject.labels for subject in plan.subjects),
        called={row.labels: row.concept for row in rows if row.set != "reference"}
        | {subject.labels: subject.name for subject in plan.subjects},
    )
    return tuple(
        calibrate(judge, examples) if isinstance(judge, Foreign) else judge for judge in judges
    )


def doubts(judges: Sequence[Judge], plan: GatePrompts) -> dict[str, str]:
    """Erased concept to why no judge can be asked about it, in words; of those refused alone."""
    found = {}
    for subject in plan.subjects:
        why = [
            judge.cannot_tell[subject.labels]
            for judge in judges
            if isinstance(judge, Calibrated) and subject.labels in judge.cannot_tell
        ]
        if why:
            found[subject.name] = "; ".join(why)
    return found


def calibration_notes(judges: Sequence[Judge], plan: GatePrompts) -> list[str]:
    """Which names beside the erased ones each calibrated judge is not asked about."""
    erased = {subject.labels for subject in plan.subjects}
    notes = []
    for judge in judges:
        if isinstance(judge, Calibrated) and judge.names_things:
            lost = [why for labels, why in judge.cannot_tell.items() if labels not in erased]
            if lost:
                notes.append(
                    f"not asked about, the judge {judge.name} knows too few of the base's own "
                    f"pictures: {', '.join(lost)}"
                )
            notes.append(
                f"the judge {judge.name} may take a broken picture for something: look at the grid"
            )
    return notes


def judge_record(judge: Judge) -> dict[str, Any]:
    """A judge in the report: its name, its weights, and where both come from."""
    record: dict[str, Any] = {"name": judge.name, "sha256": judge.sha256}
    if isinstance(judge, Calibrated):
        record |= {**judge.source, "calibration": judge.record}
    return record
