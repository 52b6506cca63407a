"""Opened models of every family, once per test process: three tiny real ones, the embedded one."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.targets import Targets
from editforge.families.config import ModelConfig
from editforge.families.model import Model, Origin
from editforge.families.open import open_model
from editforge.ground.disk import dump_yaml
from editforge.recipe.contract import Context, EditOutput
from editforge.recipe.layers import resolve
from editforge.run.stages import choose, edit, mine
from tests.tiny import save_tiny, tiny_family

KINDS = ("sd1", "sd2", "sdxl", "emoji")
TINY = ("sd1", "sd2", "sdxl")
# Random weights bound nothing: the guards of trained models are told so.
LOOSE = (
    "edit.limits.residual=[10, 100]",
    "edit.limits.change=[10, 100]",
    "edit.limits.amplification=[50, 1000]",
)

_folders = tempfile.TemporaryDirectory(prefix="editforge-tests-")
torch.set_num_threads(1)


@cache
def tiny_folder(kind: str) -> Path:
    """A tiny pipeline folder that no test may change."""
    return save_tiny(Path(_folders.name) / kind, kind)


@cache
def family_file(kind: str) -> str:
    """A family YAML as a user writes one: the shipped one with tiny widths."""
    path = Path(_folders.name) / f"{kind}.yaml"
    path.write_text(dump_yaml(tiny_family(kind).model_dump(mode="json")))
    return str(path)


@cache
def opened(kind: str) -> Model:
    if kind == "emoji":
        with open_model(ModelConfig(device="cpu")) as model:
            return model
    return Model(tiny_folder(kind), Origin(f"tiny-{kind}"), family=family_file(kind))


def recipe(
    concepts: Any,
    overrides: dict[str, Any] | None = None,
    *sets: str,
    method: str = "default",
    preset: str | None = None,
):
    listed = [concepts] if isinstance(concepts, (str, dict)) else concepts
    rows = [{"name": row} if isinstance(row, str) else row for row in listed]
    return resolve(method, {"concepts": rows, **(overrides or {})}, sets, preset=preset)


def solved(
    model: Any, made: Any, targets: Targets | None = None
) -> tuple[Neighbors, Targets, EditOutput]:
    """Mine, target and edit of one recipe."""
    context = Context(model, made.seed)
    neighbors = mine(made, context)
    targets = choose(made, neighbors, context) if targets is None else targets
    return neighbors, targets, edit(made, targets, neighbors, context)


def operator(
    output: EditOutput, model: Any, path: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(W, W') of one map, float64."""
    path = path or model.paths[0]
    weight = model.weight(path).double()
    return weight, weight + output.edit.delta(path)
