"""`editforge erase` and `editforge run`: arguments to one recipe, one recipe to one run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editforge.cli.output import DONE, GATE_FAILED, Output
from editforge.ground.names import slug

if TYPE_CHECKING:
    from editforge.recipe.recipe import Recipe
    from editforge.run.order import Result

Json = Annotated[bool, typer.Option("--json", help="Last line of stdout is one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only on stderr.")]

# Options that several commands share.
Kind = Annotated[str, typer.Option(help="object, style, person or broad.")]
Method = Annotated[str, typer.Option(help="A method, or a RECIPE.yaml.")]
Preset = Annotated[str | None, typer.Option(help="A named block of the method's values.")]
BaseModel = Annotated[
    str | None, typer.Option(help="emoji, a Hub id, a pipeline folder, a .safetensors file.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
Variant = Annotated[str | None, typer.Option(help="Suffix of the weight files: fp16.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16: drawing.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")]
AsWritten = Annotated[
    bool,
    typer.Option("--as-written", help="Names are names, whatever commas and brackets they have."),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="stage.key=value; wins over everything.")
]


def erase(
    concept: Annotated[list[str] | None, typer.Argument(help="Names to erase, jointly.")] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(help="Names: YAML, CSV with name, aliases, kind; else one name a line."),
    ] = None,
    as_written: AsWritten = False,
    kind: Kind = "object",
    method: Method = "default",
    preset: Preset = None,
    model: BaseModel = None,
    revision: Revision = None,
    base: Annotated[
        str | None, typer.Option(help="Hub id that a local model is a copy of; for the card.")
    ] = None,
    variant: Variant = None,
    dtype: Dtype = None,
    device: Device = None,
    target: Annotated[
        str | None, typer.Option(help='What it becomes; "" is nothing. Chosen if left out.')
    ] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option(help="Must not move; repeatable; auto: the nearest words, as if left out."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="1 is the method's own edit, more is stronger.")
    ] = None,
    from_edit: Annotated[
        Path | None, typer.Option("--from", help="An earlier run: solve both jointly.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder; runs/<concept> if left out.")
    ] = None,
    export: Annotated[
        str | None, typer.Option(help="Comma list: lora, unet, pipeline, single-file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="family, objects, styles, nudity, nudenet (AGPL), faces, a CLIP folder or Hub id; "
            "several with commas. none: drift only."
        ),
    ] = None,
    set_: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan, cost, disk; change nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Erase concepts from a model, judge the result, and package it.

    Examples:

      editforge erase violin

      editforge erase spider frog --output runs/two

      editforge erase violin --target guitar --strength 1.2 --export lora,unet

      editforge erase "ear of corn" --dry-run
    """
    from editforge.artifacts.concept_file import read_concepts
    from editforge.artifacts.doubtful import otherwise
    from editforge.recipe.layers import resolve
    from editforge.run.workspace import RERUN

    out = Output(as_json=as_json, quiet=quiet)
    ask(*(concept or ()), *(preserve or ()), as_written=as_written)
    overrides: dict[str, Any] = {}
    listed = read_concepts(concepts, kind, as_written=as_written) if concepts else []
    listed += [{"name": name, "kind": kind} for name in concept or []]
    if listed:
        overrides["concepts"] = listed
    named = {
        "id": model,
        "revision": revision,
        "base": base,
        "variant": variant,
        "dtype": dtype,
        "device": device,
    }
    given = {key: value for key, value in named.items() if value is not None}
    if given:
        overrides["model"] = given
    if target is not None:
        overrides["target"] = {"use": "fixed", "text": target}
    if preserve:
        overrides["preserve"] = preserve
    if export:
        overrides["package"] = {
            "export": [part.strip() for part in export.split(",") if part.strip()]
        }
    if judge is not None:
        overrides["evaluate"] = {"judge": None if judge == "none" else judge}
    simple: dict[str, Any] = {
        "strength": strength,
        "seed": seed,
        "continue_from": from_edit and str(from_edit),
    }
    overrides |= {key: value for key, value in simple.items() if value is not None}
    recipe = resolve(method, overrides, set_ or (), preset=preset)
    words: dict[str, object] = {"kind": kind if kind != "object" else None}
    words |= {"method": method if method != "default" else None, "preset": preset}
    words |= {"model": model, "revision": revision, "variant": variant, "dtype": dtype}
    words |= {"device": device, "target": target, "strength": strength, "export": export}
    words |= {"seed": seed, "judge": judge, "base": base}
    parts = [f"--{key}={value}" for key, value in words.items() if value is not None]
    parts += [f"--preserve={word}" for word in preserve or ()]
    parts += [f"--set={text}" for text in set_ or ()]
    names = _names(recipe)
    parts += ["--as-written"] if any(map(otherwise, [*names, *(preserve or ())])) else []
    dashed = any(name.startswith("-") for name in names)
    line = shlex.join(
        ["editforge", "erase", *([*parts, "--", *names] if dashed else [*names, *parts])]
    )
    # A file of this computer means nothing to the reader of a card.
    local = concepts or from_edit or any(_is_local(text) for text in parts)
    where = output or Path("runs") / folder_name(names)
    return _execute(recipe, where, RERUN if local else line, out, dry_run)


def run(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe.")],
    output: Annotated[Path, typer.Option(help="Run folder; an unfinished one is resumed.")],
    set_: Sets = None,
    preset: Preset = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan, cost, disk; change nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run a recipe file, or resume its run.

    Examples:

      editforge run my-recipe.yaml --output runs/mine

      editforge run runs/violin/recipe.yaml --output runs/violin
    """
    from editforge.recipe.layers import resolve
    from editforge.run.workspace import RERUN

    recipe = resolve(str(recipe_file), None, set_ or (), preset=preset)
    out = Output(as_json=as_json, quiet=quiet)
    return _execute(recipe, output, RERUN, out, dry_run)


def _execute(recipe: Recipe, folder: Path, command: str, out: Output, dry_run: bool) -> int:
    from editforge.cli.output import quiet_libraries

    quiet_libraries()
    if dry_run:
        from editforge.run.plan import plan

        estimate = plan(recipe, folder)
        out.data(estimate.text())
        out.json({"plan": estimate.to_json(), "output": str(folder)})
        out.hint(shlex.join(["editforge", *(word for word in sys.argv[1:] if word != "--dry-run")]))
        return DONE
    from editforge.run.order import execute

    result = execute(recipe, folder, command=command, progress=not out.quiet, say=out.say)
    if not result.leads:
        return DONE
    report = result.report
    failed = report is not None and report.passed is False
    pushed = (
        f"editforge push {shlex.quote(str(folder))} YOUR-NAME/{folder_name(_names(recipe))}-erased"
    )
    then = _remedy(result, recipe, command) if failed else _judged(result, recipe) or pushed
    targets = result.targets.concepts if result.targets else ()
    out.data(report.summary() if report else "not judged: the recipe's evaluate is null")
    out.data(f"pictures: {folder / 'evaluate' / 'grid.png'}" if report else "")
    out.data(f"package:  {folder / 'package'}")
    out.json(
        {
            "output": str(folder),
            "package": str(folder / "package"),
            "verdict": report.verdict.model_dump(mode="json") if report else None,
            "targets": {row.concept: row.target for row in targets},
            "rank": result.eraser.described().get("exact_rank"),
            "next": then,
        }
    )
    if report is not None and failed:
        out.say(f"the gate failed: {report.verdict.status}. The package is marked as failed.")
    out.hint(then)
    return GATE_FAILED if failed else DONE


def _judged(result: Result, recipe: Recipe) -> str | None:
    """The command that has it judged, where the family has no judge and none was named."""
    report = result.report
    if report is None or report.passed is not None or report.judges:
        return None
    if recipe.evaluate is None or recipe.evaluate.judge != "family":
        return None
    from editforge.judges.known import named_for

    which = named_for([(concept.name, concept.kind) for concept in recipe.concepts])
    return shlex.join(["editforge", "evaluate", str(result.folder), "--judge", which])


def _remedy(result: Result, recipe: Recipe, command: str) -> str:
    """What a failed verdict proposes, in a new folder beside this one; else to look again."""
    from editforge.run.again import fresh_folder, next_command
    from editforge.run.hand import starting_from
    from editforge.run.workspace import RERUN

    folder, report = result.folder, result.report
    if result.hand or command == RERUN:
        command, recipe = starting_from(folder, recipe, result.hand)
    other = str(fresh_folder(folder))
    remedy = report.verdict.remedy if report else None
    found = next_command(recipe, remedy, result.targets, command, other)
    return found or shlex.join(["editforge", "evaluate", str(folder)])


def ask(*names: str, as_written: bool) -> None:
    """Refuse names that are perhaps none, with two commands: one for each thing they may mean.

    Raises:
        RecipeError: the first of them.
    """
    from editforge.artifacts.doubtful import refuse_doubtful

    def instead(name: str, others: list[str]) -> str:
        words = sys.argv[1:]
        at = next(n for n, word in enumerate(words) if name in (word, word.partition("=")[2]))
        option, equals = (words[at].partition("=")[0], "=") if words[at] != name else ("", "")
        first = at
        if words[at] == name and at and words[at - 1] in ("--preserve", "--alias"):
            option, equals, first = words[at - 1], "=", at - 1
        several = [f"{option}{equals}{other}" for other in others]
        return shlex.join(["editforge", *words[:first], *several, *words[at + 1 :]])

    if not as_written:
        refuse_doubtful(names, instead, lambda _: shlex.join(["editforge", *_flagged()]))


def _flagged() -> list[str]:
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], "--as-written", *words[at:]]


def _is_local(option: str) -> bool:
    """Whether `--key=value` names a file or folder here."""
    value = option.rpartition("=")[2]
    named = option.startswith(("--model=", "--judge=")) and value not in ("emoji", "family", "none")
    path_like = "/" in value or "\\" in value or value.endswith((".yaml", ".yml", ".txt"))
    return (named or path_like) and Path(value).expanduser().exists()


def _names(recipe: Recipe) -> list[str]:
    return [row.name for row in recipe.concepts]


def folder_name(names: list[str]) -> str:
    """Of a run, and of what it is pushed to: the first name's slug, and how many more there are."""
    first = slug(names[0]) or "run"
    return first if len(names) == 1 else f"{first}-and-{len(names) - 1}-more"
