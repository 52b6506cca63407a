"""`editforge list` and `editforge doctor`. `list` imports no torch."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from editforge.cli.erase import Json
from editforge.cli.output import BAD_INPUT, DONE, Output
from editforge.ground.errors import EditforgeError, RecipeError, did_you_mean


def list_(
    what: Annotated[str, typer.Argument(help="methods, stages or families.")] = "methods",
    as_json: Json = False,
) -> int:
    """List methods, stages or families.

    Examples:

      editforge list methods

      editforge list families --json
    """
    out = Output(as_json=as_json)
    if what == "methods":
        from editforge.recipe.methods import methods

        rows = {
            name: {key: about.get(key) for key in ("idea", "when", "paper", "presets")}
            for name, about in methods().items()
        }
    elif what == "stages":
        from editforge.recipe import registry

        rows = {
            f"{stage} {name}": {"idea": line}
            for stage in registry.KINDS
            for name, line in registry.names(stage).items()
        }
        for name, fault in registry.plugins()[1].items():
            out.say(f"skipped the broken plugin {name}: {fault}")
    elif what == "families":
        from editforge.families.schema import load_family, shipped_families

        rows = {}
        for name in shipped_families():
            family = load_family(name)
            maps = sum(rule.expect for rule in family.modules.values())
            rows[name] = {
                "idea": f"{family.title}: {family.match.pipeline}, text width {family.text_width}",
                "when": f"{maps} maps; exports {', '.join(family.exports)}",
            }
    else:
        allowed = did_you_mean(what, ["methods", "stages", "families"])
        raise RecipeError(f"there is no list of {what}", allowed=allowed)
    for name, row in rows.items():
        out.data(f"{name:<22}{row['idea']}")
        for key in ("when", "paper"):
            if row.get(key):
                out.data(f"{'':<22}{row[key]}")
    out.json({what: rows})
    return DONE


def doctor(as_json: Json = False) -> int:
    """Check this computer: versions, devices, disk, judges, and that the embedded model is whole.

    Examples:

      editforge doctor
    """
    import torch

    from editforge import emoji

    out = Output(as_json=as_json)
    names = (
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "accelerate",
        "huggingface_hub",
        "safetensors",
    )
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "MISSING"
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    try:
        emoji.folder()
        embedded = "whole"
    except EditforgeError as error:
        embedded = str(error)
    from editforge.judges import KNOWN

    judges = {"family": "two for the embedded model, none for others"}
    judges |= {name: f"{one.state()}; {one.about}" for name, one in KNOWN.items()}
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    for name, number in found.items():
        out.data(f"{name:<18}{number}")
    out.data(f"{'devices':<18}{', '.join(devices)}; {torch.get_num_threads()} threads")
    out.data(f"{'embedded model':<18}{embedded}")
    for name, state in judges.items():
        out.data(f"{'judge ' + name:<18}{state}")
    out.data(f"{'free disk here':<18}{free:.1f} GB")
    good = embedded == "whole" and "MISSING" not in found.values()
    out.json(
        {
            "versions": found,
            "devices": devices,
            "embedded_model": embedded,
            "judges": judges,
            "good": good,
        }
    )
    out.hint(
        "editforge erase violin"
        if good
        else "install editforge again: pip install --force-reinstall editforge"
    )
    return DONE if good else BAD_INPUT
