"""`editforge try`: an eraser beside its base, in the browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from editforge.cli.erase import BaseModel, Device, Json, Quiet
from editforge.cli.output import DONE, Output, quiet_libraries


def try_(
    place: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, a package, a bank, a LoRA, or a Hub id.")
    ],
    model: BaseModel = None,
    device: Device = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Of the page; a free one from 7860 on if left out."),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page there.")
    ] = True,
    space: Annotated[
        Path | None,
        typer.Option(help="Serve nothing: write a Space of a pushed repository here."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Try it in the browser: your prompts, base and edited side by side, on this computer alone.

    Examples:

      editforge try runs/violin

      editforge try runs/violin/package/lora --port 8000 --no-browser

      editforge try YOUR-NAME/violin-erased --space violin-space
    """
    out = Output(as_json=as_json, quiet=quiet)
    quiet_libraries()
    if space is not None:
        from editforge.run.space import write_space

        write_space(place, space)
        out.data(f"space: {space}")
        out.json({"space": str(space)})
        out.hint(f"hf upload YOUR-NAME/SPACE {space} . --repo-type space")
        return DONE
    from editforge.run.page import show

    def ready(url: str) -> None:
        out.data(f"page: {url}")
        out.json({"page": url})
        sys.stdout.flush()  # whoever reads it waits for this line, not for the end
        out.say("Ctrl-C closes it")

    show(place, model=model, device=device, port=port, browser=browser, ready=ready, say=out.say)
    return DONE
