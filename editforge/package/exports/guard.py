"""A guard of texts and numbers: a negative prompt, SLD, Semantic Surgery. For comparison, as a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editforge.families.model import Model
from editforge.ground.resources import resource_folder
from editforge.guards.text_guard import TextGuard
from editforge.recipe.export import BaseModel, Exporter, Written
from editforge.recipe.registry import register


@register("export", "guard")
class GuardFile(Exporter):
    """One safetensors file, all of it in the header."""

    name, accepts, tags = "guard", TextGuard, ("guard", "guidance")

    def usage(self) -> str:
        """The template of this name."""
        path = resource_folder("model_cards") / f"use_{self.name}.md.j2"
        return path.read_text(encoding="utf-8")

    def write(
        self, model: BaseModel, eraser: TextGuard, folder: Path, title: str, dtype: str
    ) -> Written:
        """Write the file."""
        eraser.save(folder / eraser.file)
        return Written({"weights": [eraser.file], "guard": type(eraser).__name__})

    @contextmanager
    def applied(self, model: Model, place: Path, pipe: Any) -> Iterator[Any]:
        """Read, attached and detached again."""
        with _read(place).on(pipe) as guarded:
            yield guarded


def _read(place: Path) -> TextGuard:
    from editforge.ground.errors import PackageError

    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    for kind in TextGuard.__subclasses__():
        for file in files:
            if file.name == kind.file:
                return kind.load(file)
    raise PackageError("no guard here", got=place.name)
