"""The stages in order. Only this file knows that mine comes before target and edit before evaluate.

`solve_in_memory` runs mine, target, edit and align for a pipeline that is already loaded; `execute`
runs a whole recipe in a folder, skips what is done, redoes what is not, and ends with a package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.report import Report
from editforge.artifacts.system import System
from editforge.artifacts.targets import Targets
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import Model
from editforge.families.open import open_model
from editforge.ground.disk import dump_yaml, sha256_json
from editforge.ground.team import Team, launch_notes
from editforge.package.facts import read_claims
from editforge.package.shipped import Shipped
from editforge.recipe import registry
from editforge.recipe.contract import (
    AlignInputs,
    Context,
    EditInputs,
    EditOutput,
    MineInputs,
    TargetInputs,
)
from editforge.recipe.recipe import Recipe
from editforge.run.again import next_command
from editforge.run.check import check, check_model
from editforge.run.follow import Follower
from editforge.run.hand import Hand, by_hand, carried, pinned, with_own_reasons
from editforge.run.public import content_of, portable, provenance_of, public_recipe
from editforge.run.workspace import LISTS, RERUN, Workspace

# Raised when a stage computes something else from the same inputs: a resumed run then redoes it.
VERSIONS = {"mine": 1, "target": 1, "edit": 2, "align": 1, "evaluate": 2, "package": 2}


@dataclass(frozen=True)
class Result:
    """What a run ended with: its folder, the edit, and the report if anything was measured.

    `leads` is whether this process owns the folder; of several, one does. `hand`: which lists a person
    edited.
    """

    folder: Path
    edit: WeightEdit
    targets: Targets
    report: Report | None
    leads: bool = True
    hand: Hand = field(default_factory=dict)


def mine(recipe: Recipe, context: Context) -> Neighbors:
    """Run every miner of the recipe and merge what they found; earlier ones win."""
    found = Neighbors()
    for position, config in enumerate(recipe.mine or ()):
        one = _call("mine", config, MineInputs(recipe.concepts), context)
        found = one if position == 0 else found.merged(one)
    return found


def choose(recipe: Recipe, neighbors: Neighbors, context: Context) -> Targets:
    """Choose targets and the preserve list."""
    preserve = None if recipe.preserve == "auto" else recipe.preserve
    inputs = TargetInputs(recipe.concepts, neighbors, preserve)
    targets: Targets = _call("target", recipe.target, inputs, context)
    return targets


def edit(
    recipe: Recipe,
    targets: Targets,
    neighbors: Neighbors,
    context: Context,
    hand: Hand | None = None,
) -> EditOutput:
    """Compute the closed form at strength 1, with provenance; empty if the recipe has none."""
    if recipe.edit is None:
        output = EditOutput(WeightEdit({}, exact_rank=0))
    else:
        path = recipe.continue_from
        earlier = System.load(Path(path).expanduser()) if path else None
        inputs = EditInputs(recipe.concepts, targets, neighbors, earlier)
        output = _call("edit", recipe.edit, inputs, context)
        output = output if isinstance(output, EditOutput) else EditOutput(output)
    provenance = {**provenance_of(recipe, targets, context, hand or {}), **output.edit.provenance}
    return replace(output, edit=replace(output.edit, provenance=provenance))


def align(
    recipe: Recipe, start: WeightEdit, targets: Targets, neighbors: Neighbors, context: Context
) -> WeightEdit:
    """Train on top of an edit; the result holds both."""
    inputs = AlignInputs(recipe.concepts, targets, neighbors, start)
    result: WeightEdit = _call("align", recipe.align, inputs, context)
    return replace(result, provenance={**start.provenance, **result.provenance})


def gate(
    model: Model,
    context: Context,
    final: WeightEdit | Shipped,
    concepts: Sequence[Concept],
    targets: Mapping[str, str],
    preserve: Sequence[str],
    judge: str | None,
) -> Report:
    """Judge an edit, or an artifact as its user loads it, with the `gate` tier.

    A family without lists of its own takes the preserved words as near names.
    """
    from editforge.evaluate.gate import evaluate_gate
    from editforge.families.draw import default_sampler

    family = model.family
    return evaluate_gate(
        model.pipeline(),
        final,
        concepts,
        family_name=family.name,
        judge=judge,
        near=None if family.judge else [word for word in preserve if word][:8],
        targets=targets,
        strength=final.strength,
        seed=context.seed,
        sampler=default_sampler(family),
        progress=context.progress,
        workdir=context.work,
        workdir_of=model.digest if context.work else None,
        team=context.team,
    )


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    command: str = "",
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
    until: str | None = None,
    replace: bool = False,
) -> Result:
    """Run a recipe in `folder`, or resume it; on every process that a launcher started.

    Args:
        recipe: resolved.
        folder: a new one, or an earlier run of the same recipe.
        command: the command line for the card, free of paths.
        progress: bars on stderr.
        say: takes one line about what was decided, and why.
        until: stop after this stage.
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
        plan = _Plan(recipe, space, model, context, command)
        return plan.run(until)


def _mute(line: str) -> None:
    """Process 0 has said it."""


class _Plan:
    """One recipe on one model in one folder: which stage reads what."""

    def __init__(
        self,
        recipe: Recipe,
        space: Workspace | Follower,
        model: Model,
        context: Context,
        command: str,
    ) -> None:
        self._recipe, self._space, self._model = recipe, space, model
        self._context, self._command = context, command

    def run(self, until: str | None) -> Result:
        recipe = self._recipe
        mined = self._stage("mine", recipe.mine, {}, self._mine, Neighbors.load)
        neighbors = Neighbors.load(mined)
        aimed = self._stage(
            "target",
            [recipe.target, recipe.preserve],
            {"mine": mined},
            lambda out, context: choose(recipe, neighbors, context).save(out),
            Targets.load,
        )
        written = {stage: self._space.written(stage) for stage in LISTS}
        targets = Targets.load(aimed)
        hand = by_hand(recipe, written, {"mine": neighbors, "target": targets})
        targets = with_own_reasons(targets, written["target"])
        self._say_targets(targets, hand)
        inputs = {"mine": mined, "target": aimed}
        earlier = content_of(recipe.continue_from)
        last = self._stage(
            "edit",
            [recipe.edit, earlier, *([hand] if hand else [])],
            inputs,
            lambda out, context: _save_edit(edit(recipe, targets, neighbors, context, hand), out),
            _load_edit,
        )
        if recipe.align is not None and until != "edit":
            start = _load_edit(last)
            last = self._stage(
                "align",
                recipe.align,
                {**inputs, "edit": last},
                lambda out, context: align(recipe, start, targets, neighbors, context).save(
                    out / "weight_edit.safetensors"
                ),
                _load_edit,
            )
        final = _load_edit(last).scaled(recipe.strength)
        report, judged = None, None
        if recipe.evaluate is not None and until not in ("edit", "align"):
            judged = self._stage(
                "evaluate",
                [recipe.evaluate, recipe.strength],
                {**inputs, last.name: last},
                lambda out, context: self._evaluate(final, targets, hand, out, context),
                Report.load,
            )
            report = Report.load(judged)
        if until in (None, "package"):
            before = {"edit": last, **({"evaluate": judged} if judged else {})}
            public = Neighbors.model_validate(portable(neighbors))
            texts = {"mine": public.to_yaml(), "target": targets.to_yaml()}
            lists = {LISTS[stage]: texts[stage] for stage in carried(hand)}
            self._stage(
                "package",
                [
                    recipe.package,
                    recipe.strength,
                    self._command,
                    *([sha256_json(lists)] if lists else []),
                ],
                before,
                lambda out, context: self._package(final, judged, hand, lists, out),
                lambda out: None,
            )
        leads = self._context.team.leads
        return Result(self._space.folder, final, targets, report, leads, hand)

    def _stage(
        self,
        name: str,
        config: Any,
        inputs: dict[str, Path],
        make: Callable[[Path, Context], None],
        check: Callable[[Path], object],
    ) -> Path:
        context = self._context
        facts = {
            "version": VERSIONS[name],
            "base": context.model.digest,
            "device": context.model.device,
            "seed": self._recipe.seed,
            "concepts": [concept.model_dump(mode="json") for concept in self._recipe.concepts],
        }
        code = {use: registry.get(name, use).code for use in self._uses(name)}
        if foreign := {use: digest for use, digest in code.items() if digest}:
            facts["code"] = foreign
        return self._space.stage(
            name,
            portable(config),
            inputs,
            facts,
            lambda out, work: make(out, replace(context, work=work)),
            check,
        )

    def _uses(self, stage: str) -> list[str]:
        """The implementations that a stage of this recipe calls."""
        if stage not in registry.STAGES:
            return []
        own = getattr(self._recipe, stage)
        return [config.use for config in (own if stage == "mine" else [own]) or () if config]

    def _mine(self, out: Path, context: Context) -> None:
        mine(self._recipe, context).save(out)

    def _say_targets(self, targets: Targets, hand: Hand) -> None:
        for stage, said in hand.items():
            self._context.say(f"by hand, {stage}/{LISTS[stage]}: {'; '.join(said)}")
        for row in targets.concepts:
            what = repr(row.target) if row.target else "nothing"
            self._context.say(f"{row.concept!r} becomes {what}: {row.reason}")
            if row.candidates:
                best = ", ".join(f"{c.word} {c.score:.3g}" for c in row.candidates[:4])
                self._context.say(f"  predicted damage: {best}; all in target/targets.yaml")
        words = targets.preserved
        more = f" and {len(words) - 8} more" if len(words) > 8 else ""
        self._context.say(f"preserved: {', '.join(words[:8]) or 'nothing'}{more}")

    def _public(self, hand: Hand) -> dict[str, Any]:
        """The recipe as a package shows it: it gives this result wherever it is run."""
        return pinned(public_recipe(self._recipe, self._model.label), hand)

    def _evaluate(
        self, final: WeightEdit, targets: Targets, hand: Hand, out: Path, context: Context
    ) -> None:
        """Ask about all that the edit claims: what its package says, `--from` included."""
        assert self._recipe.evaluate is not None
        claims = read_claims(final.provenance, "the edit")
        report = gate(
            self._model,
            context,
            final,
            claims.concepts,
            claims.targets,
            claims.preserve,
            self._recipe.evaluate.judge,
        )
        public = Recipe.model_validate(self._public(hand))
        # Beside the recipe, in the run and in a package: whatever command started this.
        command = next_command(public, report.verdict.remedy, targets, RERUN, "again")
        report.followed_by(command).save(out)

    def _package(
        self,
        final: WeightEdit,
        judged: Path | None,
        hand: Hand,
        lists: Mapping[str, str],
        out: Path,
    ) -> None:
        from editforge.package.build import build_package

        build_package(
            self._model,
            final,
            evaluation=judged,
            recipe_text=dump_yaml(self._public(hand)),
            command=RERUN if lists else self._command,
            lists=lists,
            output=out,
            exports=self._recipe.package.export,
            dtype=self._recipe.package.dtype,
        )


def _call(stage: str, config: Any, inputs: Any, context: Context) -> Any:
    return registry.get(stage, config.use).function(inputs, config, context)


def _save_edit(output: EditOutput, out: Path) -> None:
    output.edit.save(out / "weight_edit.safetensors")
    if output.system is not None:
        output.system.save(out / "solve.safetensors")


def _load_edit(folder: Path) -> WeightEdit:
    return WeightEdit.load(folder / "weight_edit.safetensors")
