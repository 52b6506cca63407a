"""`editforge guard`: a bank of prototypes, built, calibrated, looked at, baked into weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from editforge.cli.erase import (
    AsWritten,
    BaseModel,
    Device,
    Json,
    Preset,
    Quiet,
    Sets,
    _execute,
    ask,
    folder_name,
)
from editforge.cli.output import DONE, Output, quiet_libraries

guard = typer.Typer(
    name="guard",
    help="Steer a broad concept away while a model draws; no weight is changed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Bank = Annotated[str, typer.Argument(help="bank.safetensors, a run, a package, OWNER/NAME.")]


@guard.command()
def build(
    concept: Annotated[list[str], typer.Argument(help="A concept; with more, a bank of all.")],
    alias: Annotated[
        list[str] | None,
        typer.Option(help="Another name, or a member; repeatable; of the first concept."),
    ] = None,
    kind: Annotated[str, typer.Option(help="object, style, person or broad.")] = "broad",
    pairs: Annotated[
        Path | None, typer.Option(help="YAML list of [with, without] prompts of your own.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="A CLIP with the pipeline's text tower: folder, Hub id.")
    ] = None,
    number: Annotated[int | None, typer.Option(help="Of prototypes; chosen if left out.")] = None,
    target: Annotated[
        str | None, typer.Option(help="What is drawn instead. Chosen if left out.")
    ] = None,
    as_written: AsWritten = False,
    model: BaseModel = None,
    device: Device = None,
    preset: Preset = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run folder; runs/<concept>-guard if left out.")
    ] = None,
    set_: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Build a bank: draw, cluster, calibrate, package; the gate judges it with `editforge evaluate`.

    Examples:

      editforge guard build alcohol

      editforge guard build alcohol --alias "beer mug" --alias "wine glass" --number 8
    """
    from editforge.recipe.layers import resolve
    from editforge.run.workspace import RERUN

    ask(*concept, *(alias or ()), as_written=as_written)
    rows: list[dict[str, Any]] = [{"name": name, "kind": kind} for name in concept]
    rows[0]["aliases"] = list(alias or ())
    overrides: dict[str, Any] = {"concepts": rows, "evaluate": None}
    given = {key: value for key, value in {"id": model, "device": device}.items() if value}
    overrides |= {"model": given} if given else {}
    overrides |= {"target": {"use": "fixed", "text": target}} if target is not None else {}
    overrides |= {"seed": seed} if seed is not None else {}
    mining = {"pairs": pairs and str(pairs), "clip": clip, "num_prototypes": number}
    sets = [f"mine.prototypes.{key}={value}" for key, value in mining.items() if value is not None]
    recipe = resolve("prototype", overrides, [*sets, *(set_ or ())], preset=preset)
    where = output or Path("runs") / f"{folder_name([row['name'] for row in rows])}-guard"
    return _execute(recipe, where, RERUN, Output(as_json=as_json, quiet=quiet), False)


@guard.command()
def calibrate(
    bank: Bank,
    benign: Annotated[Path, typer.Option(help="Harmless prompts, a text file, one a line.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    rate: Annotated[float, typer.Option(help="Share of them that may trigger.")] = 0.01,
    held_out: Annotated[
        Path | None, typer.Option(help="Prompts with the concept, for the miss rate.")
    ] = None,
    model: BaseModel = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Set a bank's thresholds from your own harmless prompts.

    Examples:

      editforge guard calibrate runs/alcohol-guard --benign prompts.txt --output bank.safetensors
    """
    from editforge.run.guarding import recalibrated

    out = Output(as_json=as_json, quiet=quiet)
    quiet_libraries()
    found = recalibrated(
        bank, output, benign, held_out=held_out, rate=rate, model=model, say=out.say
    )
    out.data(f"bank: {output}")
    concepts = [concept.model_dump() for concept in found.facts.concepts]
    out.json({"output": str(output), "concepts": concepts})
    out.hint(f'editforge guard try {shlex.quote(str(output))} --prompt "..."')
    return DONE


@guard.command("try")
def try_(
    bank: Bank,
    prompt: Annotated[list[str], typer.Option(help="What to draw; repeatable.")],
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("guard.png"),
    pictures: Annotated[int, typer.Option(help="Of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first picture.")] = 0,
    strength: Annotated[float, typer.Option(help="1 is the bank's own, 0 is stock.")] = 1.0,
    model: BaseModel = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Draw prompts stock and guarded, side by side, and say which trigger.

    Examples:

      editforge guard try runs/alcohol-guard --prompt "a beer mug" --prompt "a violin"
    """
    from editforge.run.guarding import tried

    out = Output(as_json=as_json, quiet=quiet)
    quiet_libraries()
    rows = tried(
        bank,
        prompt,
        output,
        seed=seed,
        pictures=pictures,
        strength=strength,
        model=model,
        device=device,
        progress=not quiet,
        say=out.say,
    )
    for row in rows:
        left = "left alone, bit for bit" if row.untouched else "changed"
        out.data(f"{row.prompt}: {', '.join(row.triggered) or 'nothing'} triggered; {left}")
    out.data(f"pictures: {output}")
    fields = [
        {"prompt": r.prompt, "triggered": r.triggered, "untouched": r.untouched} for r in rows
    ]
    out.json({"output": str(output), "prompts": fields})
    out.hint(f"editforge evaluate {shlex.quote(bank)}")
    return DONE


@guard.command()
def bake(
    run: Annotated[Path, typer.Argument(help="A run of the method prototype.")],
    output: Annotated[Path | None, typer.Option(help="Run folder; RUN-baked if left out.")] = None,
    lora: Annotated[
        bool, typer.Option("--lora/--no-lora", help="Train after the closed form.")
    ] = True,
    set_: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Take a guard's prototypes out of the weights: a LoRA that any diffusers app loads.

    Examples:

      editforge guard bake runs/alcohol-guard

      editforge guard bake runs/alcohol-guard --no-lora --output runs/alcohol-closed
    """
    from editforge.run.guarding import baked_recipe
    from editforge.run.workspace import RERUN

    recipe = baked_recipe(run, lora=lora, sets=set_ or ())
    where = output or run.with_name(f"{run.name}-baked")
    return _execute(recipe, where, RERUN, Output(as_json=as_json, quiet=quiet), False)
