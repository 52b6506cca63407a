"""A job: one recipe on its way down the line, in a folder or in memory, and what it has made so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from editforge.artifacts.eraser import Eraser
from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.report import Report
from editforge.artifacts.targets import Targets
from editforge.ground.disk import dump_yaml, sha256_json
from editforge.package.build import build_package
from editforge.package.facts import read_claims
from editforge.recipe import registry
from editforge.recipe.contract import Context, EditOutput
from editforge.recipe.line import LINE, LISTS, Step
from editforge.recipe.recipe import Recipe
from editforge.run import stages
from editforge.run.again import next_command
from editforge.run.hand import Hand, by_hand, carried, pinned, with_own_reasons
from editforge.run.public import content_of, portable, public_recipe
from editforge.run.workspace import RERUN


class Saved(Protocol):
    """What a stage makes: it writes itself into a folder."""

    def save(self, folder: Path) -> object: ...  # noqa: D102


@dataclass
class Job:
    """What the stages read: the recipe, and by stage what is made, where it lies, what was in it.

    Args:
        recipe: resolved.
        command: that started it, for the card.
        made: stage to artifact; erasers at strength 1.
        folders: stage to folder; none in memory.
        written: stage to what it wrote into its list, if a person has changed that since.
    """

    recipe: Recipe
    command: str = ""
    made: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    written: dict[str, str | None] = field(default_factory=dict)

    @property
    def neighbors(self) -> Neighbors:
        """What was mined; nothing if the recipe mines nothing."""
        found: Neighbors = self.made.get("mine", Neighbors())
        return found

    @cached_property
    def hand(self) -> Hand:
        """What a person changed in the lists, once they are all there."""
        lists = {stage: self.made[stage] for stage in LISTS if stage in self.made}
        return by_hand(self.recipe, self.written, lists)

    @cached_property
    def targets(self) -> Targets | None:
        """The targets, without reasons that a person has overruled; None if the recipe has none."""
        made: Targets | None = self.made.get("target")
        return made and with_own_reasons(made, self.written.get("target"))

    @property
    def eraser(self) -> Eraser:
        """What erases, as far as it is made, at the recipe's strength."""
        last: Eraser = [
            self.made[step.name] for step in LINE if step.erases and step.name in self.made
        ][-1]
        return last.scaled(self.recipe.strength)

    @property
    def report(self) -> Report | None:
        """What the gate said, if the recipe asks it."""
        return self.made.get("evaluate")

    @cached_property
    def lists(self) -> dict[str, str]:
        """File to text of the edited lists, which travel with a package."""
        if not self.hand:
            return {}
        public = Neighbors.model_validate(portable(self.neighbors))
        texts = {"mine": public.to_yaml, "target": self.targets.to_yaml if self.targets else str}
        return {LISTS[stage]: texts[stage]() for stage in carried(self.hand)}

    def public(self, label: str) -> dict[str, Any]:
        """The recipe as a package shows it: it gives this result wherever it is run."""
        return pinned(public_recipe(self.recipe, label), self.hand)

    def code(self, step: Step) -> dict[str, str]:
        """Digests of strangers' code that a stage runs: they count in its own digest."""
        names = self.recipe.package.export if step.name == "package" else ()
        used = [(step.name, config.use) for config in step.uses(self.recipe)]
        used += [(registry.EXPORT, name) for name in names]
        found = {name: registry.get(kind, name).code for kind, name in used}
        return {name: digest for name, digest in found.items() if digest}

    def counted(self, step: Step) -> Any:
        """What of the recipe counts for a stage: its own options, and what else it reads."""
        recipe, own = self.recipe, step.config(self.recipe)
        match step.name:
            case "target":
                own = [own, recipe.preserve]
            case "edit":
                own = [own, content_of(recipe.continue_from), *([self.hand] if self.hand else [])]
            case "align" if self.hand and recipe.edit is None:
                own = [own, self.hand]
            case "guide":
                own = [own, *([self.hand] if self.hand else [])]
            case "evaluate":
                own = [own, recipe.strength]
            case "package":
                lists = [sha256_json(self.lists)] if self.lists else []
                own = [own, recipe.strength, self.command, *lists]
        return portable(own)

    def load(self, step: Step, folder: Path) -> Any:
        """What lies in the folder of a stage."""
        if step.erases:
            kind = self.recipe.eraser_class(step)
            return kind.load(folder / kind.file)
        artifact = step.artifact_class()
        return artifact and artifact.load(folder)

    def make(self, step: Step, context: Context) -> Saved:
        """Do the work of a stage."""
        return _MAKE[step.name](self, context)


def _mine(job: Job, context: Context) -> Saved:
    return stages.mine(job.recipe, context)


def _target(job: Job, context: Context) -> Saved:
    return stages.choose(job.recipe, job.neighbors, context)


def _edit(job: Job, context: Context) -> Saved:
    assert job.targets is not None
    return stages.edit(job.recipe, job.targets, job.neighbors, context, job.hand)


def _align(job: Job, context: Context) -> Saved:
    """On top of the closed form, or of an edit of nothing."""
    recipe, targets, neighbors = job.recipe, job.targets, job.neighbors
    assert targets is not None
    start: Any = job.made.get("edit")
    start = start or stages.edit(recipe, targets, neighbors, context, job.hand).edit
    return EditOutput(stages.align(recipe, start, targets, neighbors, context))


def _guide(job: Job, context: Context) -> Saved:
    return EditOutput(stages.guide(job.recipe, job.targets, job.neighbors, context, job.hand))


def _evaluate(job: Job, context: Context) -> Saved:
    """Ask about all that the eraser claims: what its package says, `--from` included."""
    recipe, final, model = job.recipe, job.eraser, context.model
    assert recipe.evaluate is not None
    claims = read_claims(final.provenance, "the edit")
    report = stages.gate(
        model,
        context,
        final,
        claims.concepts,
        claims.targets,
        claims.preserve,
        recipe.evaluate.judge,
    )
    public = Recipe.model_validate(job.public(model.label))
    # Beside the recipe, in the run and in a package: whatever command started this.
    return report.followed_by(
        next_command(public, report.verdict.remedy, job.targets, RERUN, "again")
    )


@dataclass(frozen=True)
class _Package:
    job: Job
    model: Any
    say: Callable[[str], None]

    def save(self, folder: Path) -> None:
        job, lists, package = self.job, self.job.lists, self.job.recipe.package
        written = build_package(
            self.model,
            job.eraser,
            evaluation=job.folders.get("evaluate"),
            recipe_text=dump_yaml(job.public(self.model.label)),
            command=RERUN if lists else job.command,
            lists=lists,
            output=folder,
            exports=package.export,
            dtype=package.dtype,
        )
        for note in written.notes:
            self.say(note)


def _package(job: Job, context: Context) -> Saved:
    return _Package(job, context.model, context.say)


_MAKE: dict[str, Callable[[Job, Context], Saved]] = {
    "mine": _mine,
    "target": _target,
    "edit": _edit,
    "align": _align,
    "guide": _guide,
    "evaluate": _evaluate,
    "package": _package,
}
