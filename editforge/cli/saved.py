"""Verbs on what is already there: evaluate, package, push, verify, inspect."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from editforge.cli.erase import Json, Quiet
from editforge.cli.output import BAD_INPUT, DONE, GATE_FAILED, Output, quiet_libraries
from editforge.ground.errors import PackageError, RecipeError


def evaluate(
    place: Annotated[
        str, typer.Argument(metavar="DIR|FILE|ID", help="A run, a package, a LoRA, or a Hub id.")
    ],
    tier: Annotated[str, typer.Option(help="gate.")] = "gate",
    concept: Annotated[
        list[str] | None,
        typer.Option(help="What it erases, if it does not say so; repeatable."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="Of --concept: object, style, person or broad.")
    ] = "object",
    model: Annotated[
        str | None, typer.Option(help="The base, where the package cannot name it.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of the base's weight files: fp16.")] = None,
    family: Annotated[
        str | None, typer.Option(help="The base's family or its YAML; detected if left out.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16: drawing.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the pictures; the run's if left out.")
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="family, none, objects, styles, nudity, nudenet (AGPL), faces, a CLIP folder or Hub "
            "id; several with commas."
        ),
    ] = "family",
    output: Annotated[
        Path | None, typer.Option(help="Where the report goes; shown only if left out.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Judge a saved result as its user loads it: base against edited on the same noise.

    Examples:

      editforge evaluate runs/violin

      editforge evaluate runs/violin/package/lora --output reports/violin

      editforge evaluate eraser.safetensors --concept violin --model emoji
    """
    from editforge.package.facts import repository
    from editforge.run.saved import evaluate_saved, remedy_of

    if tier != "gate":
        raise RecipeError("no such tier", got=tier, allowed="gate")
    out = Output(as_json=as_json, quiet=quiet)
    quiet_libraries()
    report = evaluate_saved(
        place,
        concepts=concept or (),
        kind=kind,
        model=model,
        variant=variant,
        family=family,
        dtype=dtype,
        device=device,
        seed=seed,
        judge=None if judge == "none" else judge,
        progress=not quiet,
        say=out.say,
    )
    if output is not None:
        report.save(output)
        out.data(f"report: {output}")
    out.data(report.summary())
    out.json({"verdict": report.verdict.model_dump(mode="json"), "output": output and str(output)})
    if report.passed is False:
        out.hint(remedy_of(place, report) or "editforge erase --help")
        return GATE_FAILED
    where = Path(place)
    folder = repository(where) if where.exists() else None
    if folder is not None:
        out.hint(f"editforge push {shlex.quote(str(folder))} YOUR-NAME/REPO")
    elif (where / "recipe.yaml").is_file():
        out.hint(f"editforge package {shlex.quote(place)}")
    elif not where.exists() and not concept:
        out.hint(f"editforge verify {shlex.quote(place)}")
    return DONE


def package(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run.")],
    export: Annotated[
        str, typer.Option(help="Comma list: lora, unet, pipeline, single-file.")
    ] = "lora",
    dtype: Annotated[
        str, typer.Option(help="Of full checkpoints: base, float32, float16.")
    ] = "base",
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write a run's package again, for other readers.

    Examples:

      editforge package runs/violin --export lora,unet
    """
    from editforge.run.saved import repackage

    out = Output(as_json=as_json, quiet=quiet)
    quiet_libraries()
    kinds = [part.strip() for part in export.split(",") if part.strip()]
    where = repackage(folder, kinds, dtype, progress=not quiet, say=out.say)
    out.data(f"package: {where}")
    out.json({"package": str(where), "export": kinds})
    out.hint(f"editforge push {shlex.quote(str(folder))} YOUR-NAME/REPO --export {kinds[0]}")
    return DONE


def push(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run, a package, or its subfolder.")
    ],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    export: Annotated[
        str | None,
        typer.Option(help="Which folder of the package; the LoRA, or the only one, if left out."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Visible to all, once verified.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    gated: Annotated[str | None, typer.Option(help="auto or manual: who may download.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files; touch no network.")
    ] = False,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Push although the gate failed.")
    ] = False,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Overwrite a card edited on the Hub.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Upload one repository folder, private unless --public, and verify every file.

    Examples:

      editforge push runs/violin my-name/violin-erased --dry-run

      editforge push runs/violin my-name/violin-erased --public -y
    """
    from editforge.hub.push import push_package

    out = Output(as_json=as_json, quiet=quiet)
    receipt = push_package(
        folder,
        repo,
        export=export,
        public=public,
        create_pr=create_pr,
        gated=gated,
        allow_failed=allow_failed,
        replace_card=replace_card,
        dry_run=dry_run,
        confirm=None if yes else lambda question: typer.confirm(question, err=True),
        say=out.say,
    )
    out.data(receipt.text())
    out.json(receipt.to_json())
    out.hint(
        f"editforge push {shlex.quote(str(folder))} {repo}"
        if dry_run
        else f"editforge verify {repo}"
    )
    return DONE


def verify(
    place: Annotated[
        str, typer.Argument(metavar="DIR|REPO", help="A run, a package, or a Hub id.")
    ],
    as_json: Json = False,
) -> int:
    """Compare every file of a package with its recorded hash, here or on the Hub.

    Examples:

      editforge verify runs/violin
    """
    out = Output(as_json=as_json)
    if Path(place).exists():
        from editforge.artifacts.sums import verify_folder

        folder = Path(place)
        problems = verify_folder(folder / "package" if (folder / "package").is_dir() else folder)
    else:
        from editforge.hub.verify import verify_repository

        problems = verify_repository(place, say=out.say)
    for problem in problems:
        out.data(problem)
    out.data(f"{len(problems)} problems" if problems else "every file is what was written")
    out.json({"problems": problems, "good": not problems})
    return BAD_INPUT if problems else DONE


def inspect(
    file: Annotated[Path, typer.Argument(help="A safetensors file, or a folder.")],
    reader: Annotated[str, typer.Option(help="diffusers, comfyui or a1111.")] = "diffusers",
    as_json: Json = False,
) -> int:
    """Say what a file holds, and which of its keys a reader would use.

    Examples:

      editforge inspect runs/violin/package/lora/pytorch_lora_weights.safetensors

      editforge inspect eraser.safetensors --reader comfyui
    """
    from editforge.package.inspect import inspect_file

    out = Output(as_json=as_json)
    if reader not in ("diffusers", "comfyui", "a1111"):
        raise RecipeError("no such reader", got=reader, allowed="diffusers, comfyui, a1111")
    if not file.exists():
        raise PackageError("no such file", got=str(file))
    found = inspect_file(file, reader=reader)
    out.data(found.text())
    out.json(found.to_json())
    return DONE
