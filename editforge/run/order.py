"""A whole recipe in a folder: down the line, what is done is skipped, what is not is redone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as with_
from pathlib import Path
from typing import Any

from editforge.artifacts.eraser import Eraser
from editforge.artifacts.report import Report
from editforge.artifacts.targets import Targets
from editforge.families.open import open_model
from editforge.ground.team import Team, launch_notes
from editforge.recipe.contract import Context
from editforge.recipe.line import LINE, Step
from editforge.recipe.recipe import Recipe
from editforge.run.check import check, check_model
from editforge.run.follow import Follower
from editforge.run.hand import Hand
from editforge.run.job import Job
from editforge.run.said import say_lists
from editforge.run.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """What a run ended with: its folder, the eraser, and the report if anything was measured.

    `leads` is whether this process owns the folder; of several, one does. `hand`: which lists a person
    edited.
    """

    folder: Path
    eraser: Eraser
    targets: Targets | None
    report: Report | None
    leads: bool = True
    hand: Hand = field(default_factory=dict)


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    command: str = "",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
    replace: bool = False,
) -> Result:
    """Run a recipe in `folder`, or resume it; on every process that a launcher started.

    Args:
        recipe: resolved.
        folder: a new one, or an earlier run of the same recipe.
        command: the command line for the card, free of paths.
        progress: bars on stderr.
        say: takes one line about what was decided, and why.
        replace: an earlier run takes this recipe instead of its own; equal stages stay.

    Raises:
        EditforgeError: bad input, a refused edit, a folder of another recipe. Finished stages stay.
    """
    check(recipe)
    team = Team.join(recipe.model.device)
    if not team.leads:
        progress, say = False, _mute
    else:
        for note in launch_notes():
            say(note)
    text = recipe.to_yaml()
    with (
        Workspace(folder, text, say, replace=replace, team=team)
        if team.leads
        else Follower(folder, text, team) as space,
        open_model(recipe.model, say) as model,
    ):
        check_model(recipe, model)
        context = Context(model, recipe.seed, progress, None, say, folder / "log", team)
        job = Job(recipe, command)
        for step in LINE:
            if step.config(recipe) is not None:
                _bring(step, job, space, context)
        return Result(space.folder, job.eraser, job.targets, job.report, team.leads, job.hand)


def _mute(line: str) -> None:
    """Process 0 has said it."""


def _bring(step: Step, job: Job, space: Workspace | Follower, context: Context) -> None:
    """Bring one stage up to date, and its artifact into the job."""
    if step.erases and not any(other.erases and other.name in job.made for other in LINE):
        say_lists(job, context.say)
    facts: dict[str, Any] = {
        "version": step.version,
        "base": context.model.digest,
        "device": context.model.device,
        "seed": job.recipe.seed,
        "concepts": [concept.model_dump(mode="json") for concept in job.recipe.concepts],
    }
    code = job.code(step)
    folder = space.stage(
        step,
        job.counted(step),
        step.reads(job.folders),
        facts | ({"code": code} if code else {}),
        lambda out, work: job.make(step, with_(context, work=work)).save(out),
        lambda folder: job.load(step, folder),
    )
    job.folders[step.name], job.made[step.name] = folder, job.load(step, folder)
    if step.list:
        job.written[step.name] = space.written(step.name)
