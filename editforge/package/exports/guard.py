"""A guard of texts and numbers: a negative prompt, SLD, Semantic Surgery. For comparison, as a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editforge.families.model import Model
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header
from editforge.guards.text_guard import TextGuard
from editforge.package.usage import TemplateExporter
from editforge.recipe import registry
from editforge.recipe.export import BaseModel, Written
from editforge.recipe.registry import register


@register("export", "guard")
class GuardFile(TemplateExporter):
    """One safetensors file, all of it in the header."""

    name, accepts, tags = "guard", TextGuard, ("guard", "guidance")

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
    for file in sorted(place.glob("*.safetensors")) if place.is_dir() else [place]:
        header, _ = read_header(file)
        for kind in registry.guides():
            if issubclass(kind, TextGuard) and kind.header in header:
                return kind.load(file)
    raise PackageError("no guard here", got=place.name)
