"""The line: every stage once, in order, as data. Who runs, resumes, plans or lists stages reads it here.

Reading it imports no stage: artifacts and inputs are named, and imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ERASER = "eraser"  # among needs: the last stage of the recipe that erases


@dataclass(frozen=True)
class Step:
    """One stage, whatever implements it.

    Args:
        name: of the stage: its key in a recipe, its room, its folder in a run.
        needs: earlier stages whose folders it reads, `ERASER` for the last that erases; those that a
            recipe leaves out are not read.
        artifact: `module:Class` of what its folder holds; None: what its implementation returns.
        version: raised when it computes something else from the same inputs; a resumed run redoes it.
        inputs: class of the contract that an implementation takes; None: it has only ours.
        erases: makes an eraser, or goes on with one.
        shared: its work is split among the processes of a run; the others take seconds.
        list: the file of its folder that a person may edit.
    """

    name: str
    needs: tuple[str, ...]
    artifact: str | None
    version: int
    inputs: str | None = None
    erases: bool = False
    shared: bool = False
    list: str | None = None

    def config(self, recipe: Any) -> Any:
        """What a recipe says of this stage; None: it is left out."""
        return getattr(recipe, self.name)

    def uses(self, recipe: Any) -> tuple[Any, ...]:
        """The options of each implementation that a recipe calls here, in order."""
        own = self.config(recipe) if self.inputs else None
        return tuple(own) if isinstance(own, tuple | list) else (own,) if own is not None else ()

    def reads(self, done: Mapping[str, Path]) -> dict[str, Path]:
        """The folders it needs, of those that are done."""
        erasing = [step.name for step in LINE if step.erases and step.name in done]
        names = [
            name
            for need in self.needs
            for name in (erasing[-1:] if need == ERASER else [need])
            if name in done
        ]
        return {name: done[name] for name in names}

    def artifact_class(self) -> Any:
        """The class that `artifact` names, imported now."""
        return _named(self.artifact) if self.artifact else None

    def inputs_class(self) -> Any:
        """The class that `inputs` names, imported now."""
        return _named(f"recipe.contract:{self.inputs}") if self.inputs else None


LINE = (
    Step(
        "mine",
        (),
        "artifacts.neighbors:Neighbors",
        version=3,
        inputs="MineInputs",
        shared=True,
        list="neighbors.yaml",
    ),
    Step(
        "target",
        ("mine",),
        "artifacts.targets:Targets",
        version=3,
        inputs="TargetInputs",
        list="targets.yaml",
    ),
    Step(
        "edit",
        ("mine", "target"),
        "artifacts.weight_edit:WeightEdit",
        version=3,
        inputs="EditInputs",
        erases=True,
    ),
    Step(
        "align",
        ("mine", "target", "edit"),
        "artifacts.weight_edit:WeightEdit",
        version=3,
        inputs="AlignInputs",
        erases=True,
        shared=True,
    ),
    Step(
        "guide",
        ("mine", "target"),
        None,
        version=2,
        inputs="GuideInputs",
        erases=True,
        shared=True,
    ),
    Step("evaluate", ("mine", "target", ERASER), "artifacts.report:Report", version=3, shared=True),
    Step("package", (ERASER, "evaluate"), None, version=3),
)
STAGES = tuple(step.name for step in LINE if step.inputs)
LISTS = {step.name: step.list for step in LINE if step.list}


def step(name: str) -> Step:
    """The stage of that name."""
    return next(step for step in LINE if step.name == name)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"editforge.{module}"), name)
