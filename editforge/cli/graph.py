"""`editforge graph`: what erasing each concept does to the others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from editforge.cli.erase import (
    AsWritten,
    BaseModel,
    Device,
    Dtype,
    Json,
    Kind,
    Method,
    Preset,
    Quiet,
    Revision,
    Sets,
    Variant,
    ask,
)
from editforge.cli.output import DONE, Output, quiet_libraries


def graph(
    output: Annotated[Path, typer.Option(help="Folder; an unfinished graph goes on.")],
    concept: Annotated[list[str] | None, typer.Argument(help="Names, erased one by one.")] = None,
    words: Annotated[
        str | None, typer.Option(help="all: the model's own names; or a file, one name a line.")
    ] = None,
    as_written: AsWritten = False,
    kind: Kind = "object",
    method: Method = "default",
    preset: Preset = None,
    target: Annotated[
        str | None, typer.Option(help='What each becomes; "" is nothing. Chosen if left out.')
    ] = None,
    images: Annotated[int, typer.Option(help="Of each concept, by each model.")] = 16,
    model: BaseModel = None,
    revision: Revision = None,
    variant: Variant = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    judge: Annotated[str | None, typer.Option(help="family, or a local CLIP folder.")] = None,
    set_: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Erase each concept alone and measure what every other one loses.

    Writes graph.json, graph.md and three pictures. n concepts cost n x n x IMAGES pictures.

    Examples:

      editforge graph violin umbrella bicycle --output runs/graph

      editforge graph spider frog dolphin --method uce --target "" --output runs/uce

      editforge graph --words all --images 8 --output runs/all
    """
    from editforge.graph import measure
    from editforge.graph.page import summary

    out = Output(as_json=as_json, quiet=quiet)
    ask(*(concept or ()), as_written=as_written)
    quiet_libraries()
    named = {
        "id": model,
        "revision": revision,
        "variant": variant,
        "dtype": dtype,
        "device": device,
    }
    given = {key: value for key, value in named.items() if value is not None}
    overrides: dict[str, Any] = {"model": given} if given else {}
    if judge is not None:
        overrides["evaluate"] = {"judge": None if judge == "none" else judge}
    if target is not None:
        overrides["target"] = {"use": "fixed", "text": target}
    if seed is not None:
        overrides["seed"] = seed
    found = measure(
        concept or (),
        output,
        words=words,
        kind=kind,
        method=method,
        preset=preset,
        options=set_ or (),
        overrides=overrides,
        images=images,
        progress=not quiet,
        say=out.say,
    )
    out.data(summary(found))
    out.data(f"graph: {output / 'graph.md'}")
    out.json(
        {
            "output": str(output),
            "concepts": list(found.names),
            "findings": found.findings.model_dump(mode="json"),
        }
    )
    worst = max(found.nodes, key=lambda node: node.outgoing.value or 0)
    out.hint(f"editforge erase {shlex.quote(worst.name)} --method {shlex.quote(method)}")
    return DONE
