"""The `gate` tier, run after every edit: base and edited model on the same noise, one verdict.

544 images of the embedded model: the erased names, their aliases, eight near and eight far names by
both models, and by the base what the concept became. For each question of benchmark 11.1 a number
with its interval. Where nothing can be judged, a few images to look at.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editforge import emoji
from editforge.artifacts.report import Erased, Estimate, Picture, Report
from editforge.evaluate.belief import believed, calibration_notes, doubts, judge_record
from editforge.evaluate.grid import Group, grid_png, picture_png
from editforge.evaluate.prompts import FEW, Counts, GatePrompts, Prompt, gate_prompts
from editforge.evaluate.scores import ERASED, KEPT, SETS, Scores, knows, score
from editforge.evaluate.verdict import poor_targets, verdict
from editforge.families.draw import (
    Precision,
    Sampler,
    own_size,
    sample,
    sampling_dtype,
    weights_digest,
)
from editforge.families.sampling import default_sampler
from editforge.ground.errors import RecipeError
from editforge.ground.team import Team
from editforge.judges import Judge, load_judges, named_for

_COLUMNS = 4
_LIBRARIES = ("editforge", "torch", "diffusers", "transformers", "numpy", "pillow")


def evaluate_gate(
    pipe: Any,
    eraser: Any,
    concepts: Sequence[Any],
    *,
    family_name: str,
    judge: str | Path | Sequence[Judge] | None = "family",
    near: Sequence[str] | None = None,
    far: Sequence[str] | None = None,
    targets: Mapping[str, str] | None = None,
    strength: float = 1.0,
    seed: int = 0,
    sampler: Sampler | None = None,
    dtype: Precision | None = None,
    counts: Counts | None = None,
    progress: bool = True,
    workdir: Path | None = None,
    workdir_of: str | None = None,
    base: str | None = None,
    team: Team | None = None,
) -> Report:
    """Evaluate one eraser on one pipeline; weights and settings of the pipeline come back.

    Args:
        pipe: the base, a StableDiffusionPipeline or StableDiffusionXLPipeline.
        eraser: an object with `applied(pipe)`, a context manager that gives the pipeline which
            erases: `artifacts.eraser.Acting`.
        concepts: erased concepts: objects with name, aliases and kind.
        family_name: `emoji` has a manifest and judges; others get templates by kind.
        judge: `family`, a short name, a CLIP folder or Hub id, several with commas (see
            `load_judges`), judges, or None: not judged. A foreign one is first calibrated on pictures
            of the base.
        near: near names; None: the manifest's, or none for other families.
        far: far names; None: the manifest's panel, or sixteen everyday things.
        targets: what erased concepts became: what the base draws for it is the measure of what the
            edited model draws. None: the base's own images of the concept are.
        strength: of the edit; proposals are relative to it.
        seed: picks disjoint scoring seeds, and seeds the resampling.
        sampler: None is the family's; its size may be left to the pipeline.
        dtype: sampling precision, see `sampling_dtype`.
        counts: how many images; None is the `gate` tier, or a few where nothing can be judged.
        progress: bars on stderr.
        workdir: drawn images are kept here, so that a killed evaluation resumes.
        workdir_of: names the base and the eraser that `workdir` belongs to, and to no others, as a
            run's stage does; no weight is hashed then. None: what is kept there is found again by the
            weights that drew it.
        base: names the base to the last bit: its pictures are then kept in the user's cache folder and
            found again by the next gate. None: they are drawn anew.
        team: processes that share the drawing, by way of `workdir`.
    """
    prompts = partial(
        gate_prompts, concepts, family_name, near=near, far=far, targets=targets, seed=seed
    )
    plan = prompts(counts=counts)
    judges = load_judges(
        judge,
        family_name,
        plan.labels,
        erased=[(s.name, s.labels, s.kind) for s in plan.subjects],
        kinds=plan.kinds,
    )
    sampler = sampler or default_sampler(family_name)
    sampler = replace(sampler, size=sampler.size or own_size(pipe))
    chosen = sampling_dtype(pipe, dtype)

    def weights(model: Any) -> str | None:
        return weights_digest(model) if workdir and workdir_of is None else workdir_of

    def draw(
        model: Any,
        prompts: Sequence[Prompt],
        label: str,
        drawn_by: str | None,
        base: str | None = None,
    ) -> NDArray[np.uint8]:
        return sample(
            model,
            prompts,
            sampler,
            dtype=dtype,
            progress=progress,
            label=label,
            workdir=workdir,
            weights=drawn_by,
            base=base,
            team=team,
        )

    own = weights(pipe)
    asked = plan
    judges = believed(judges, asked, lambda prompts: draw(pipe, prompts, "calibration", own, base))
    doubted = doubts(judges, asked)
    unknown = [s.name for s in asked.subjects if not knows(judges, s.labels)]
    if len(unknown) == len(asked.subjects) and counts is None:
        plan = prompts(counts=FEW)
    before = draw(pipe, plan.prompts, "base", own, base)
    reference = draw(pipe, plan.reference, "reference", own, base) if plan.reference else None
    with _applied(eraser, pipe) as edited_pipe:
        edited = draw(edited_pipe, plan.prompts, "edited", weights(edited_pipe))
    scores = score(
        plan.rows,
        before,
        edited,
        () if len(unknown) == len(plan.subjects) else judges,
        reference=plan.reference,
        reference_images=reference,
        seed=seed,
    )
    images, pictures = _pictures(plan, before, edited, scores, family_name)
    targets = targets or {}
    return Report(
        verdict=verdict(scores, plan.subjects, strength, doubted),
        erased=tuple(
            Erased(name=c.name, aliases=c.aliases, kind=c.kind, target=targets.get(c.name))
            for c in concepts
        ),
        family=family_name,
        metrics=_metrics(scores),
        names=scores.rates,
        judges=tuple(judge_record(judge) for judge in judges),
        sampler=sampler.record(),
        seeds={"gate": seed, "first": plan.prompts[0].seeds[0], "block": "scoring"},
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
        device=pipe.unet.device.type,
        dtype=chosen,
        aliases_given=any(subject.aliases_given for subject in plan.subjects),
        notes=(
            *plan.notes,
            *_judge_notes(scores, judges, unknown, doubted),
            *(why for name, why in doubted.items() if name not in unknown),
            *calibration_notes(judges, asked),
            *([] if family_name == "emoji" else _way_out(concepts, judges, unknown)),
            *poor_targets(scores, plan.subjects, targets),
        ),
        images=images,
        prompts=tuple(_prompt_record(p) for p in (*plan.prompts, *plan.reference)),
        pictures=pictures,
    )


@contextlib.contextmanager
def _applied(eraser: Any, pipe: Any) -> Iterator[Any]:
    if not hasattr(eraser, "applied"):
        raise RecipeError(
            "not an eraser", got=type(eraser).__name__, allowed="an object with applied(pipe)"
        )
    with eraser.applied(pipe) as edited:
        yield edited


def _metrics(scores: Scores) -> dict[str, Estimate | dict[str, Estimate]]:
    found: dict[str, Estimate | dict[str, Estimate]] = {"drift": scores.drift()}
    if scores.base is not None:
        found["presence_name"] = scores.presence("name")
        found["presence_alias"] = scores.presence("alias")
        found["retention_near"] = scores.kept("near")
        found["retention_far"] = scores.kept("far")
        erased = scores.recognizable(*ERASED)
        concepts = scores.judged or scores.known_names
        found["recognizable_target"] = {**erased, "base": scores.reference.recognizable(concepts)}
        found["recognizable_kept"] = scores.recognizable(*KEPT)
    return found


def _judge_notes(
    scores: Scores, judges: Sequence[Judge], unknown: list[str], doubted: Mapping[str, str]
) -> list[str]:
    notes = []
    strange = [name for name in unknown if name not in doubted]
    if judges and strange:
        notes.append(f"no judge knows {', '.join(strange)}")
    if scores.base is not None:
        lost = dict.fromkeys(
            r.name for r, known in zip(scores.rows, scores.known, strict=True) if not known
        )
        if lost:
            notes.append(f"left out, no judge knows them: {', '.join(lost)}")
        if len(judges) == 1:
            notes.append("one judge: no second opinion on what is present or kept")
    return notes


def _way_out(concepts: Sequence[Any], judges: Sequence[Judge], unknown: list[str]) -> list[str]:
    """How to have it judged, where no judge was there."""
    if judges or not unknown:
        return []
    which = named_for([(concept.name, concept.kind) for concept in concepts])
    return [f"to have it judged: editforge evaluate RUN --judge {which}"]


def _prompt_record(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "text": prompt.text,
        "set": prompt.set,
        "name": prompt.name,
        "concept": prompt.concept,
        "template": prompt.template,
        "seeds": list(prompt.seeds),
    }


def _pictures(
    plan: GatePrompts,
    base: NDArray[np.uint8],
    edited: NDArray[np.uint8],
    scores: Scores,
    family_name: str,
) -> tuple[tuple[Picture, ...], dict[str, bytes]]:
    """The grid, worst prompts and names first, and the first picture of each near and far name."""
    rows = plan.rows
    columns: dict[str, dict[str, list[int]]] = {which: {} for which in SETS}
    for index, row in enumerate(rows):
        columns[row.set].setdefault(row.name if row.set in KEPT else row.text, []).append(index)

    def group(heading: str, which: str, most: int = _COLUMNS) -> Group:
        bad = {
            caption: np.mean([scores.worst(i) for i in own], axis=0).tolist()
            for caption, own in columns[which].items()
        }
        captions = sorted(bad, key=lambda caption: bad[caption], reverse=True)[:most]
        chosen = [max(columns[which][caption], key=scores.worst) for caption in captions]
        return Group(heading, tuple(captions), base[chosen], edited[chosen])

    erased = ", ".join(subject.name for subject in plan.subjects[:6])
    alone = 2 * _COLUMNS if not columns["alias"] else _COLUMNS
    bands = [
        [group("erased", "name", alone), group("its aliases", "alias")],
        [group("near", "near"), group("far", "far")],
    ]
    footer = emoji.CREDIT if family_name == "emoji" else ""
    title = f"erased: {erased}" + ("; the worst first" if scores.base is not None else "")
    pictures = {"grid.png": grid_png(bands, title, footer)}
    records = [Picture(file="grid.png", sha256=_sha256(pictures["grid.png"]))]
    for which, stem in (("near", "neighbor"), ("far", "far")):
        for number, (index, *_) in enumerate(columns[which].values()):
            file = f"images/{stem}_{number:03d}.png"
            pictures[file] = picture_png(edited[index])
            row = rows[index]
            records.append(
                Picture(
                    file=file,
                    sha256=_sha256(pictures[file]),
                    prompt=row.text,
                    name=row.name,
                    set=which,
                )
            )
    return tuple(records), pictures


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
