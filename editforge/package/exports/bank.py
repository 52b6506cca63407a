"""A bank of prototypes: a few vectors by which a guard steers a stock pipeline. It needs our code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editforge.families.model import Model
from editforge.ground.errors import PackageError
from editforge.guards.core import encoders_of
from editforge.guards.prototype import PrototypeGuard
from editforge.package.usage import TemplateExporter
from editforge.recipe.export import BaseModel, Written
from editforge.recipe.registry import register


@register("export", "bank")
class Bank(TemplateExporter):
    """`bank.safetensors`; no prompt that it was made with, and no picture."""

    name, accepts, tags = "bank", PrototypeGuard, ("guard", "guidance")

    def write(
        self, model: BaseModel, eraser: PrototypeGuard, folder: Path, title: str, dtype: str
    ) -> Written:
        """Write the file; whatever `dtype` is, tokens are float32 and selectors float16."""
        path = folder / eraser.file
        eraser.save(path)
        said = eraser.described()
        facts = {
            "weights": [eraser.file],
            "bytes": path.stat().st_size,
            "prototypes": said["prototypes"],
            "form": said["form"],
            "guidance": said["guidance"],
            "concepts": said["concepts"],
            "encoder_sha256": eraser.facts.encoder_sha256,
        }
        return Written(facts, ("a bank erases nothing by itself: its user attaches the guard",))

    def check_shipped(self, model: Model, place: Path) -> None:
        """Refuse a bank of another text encoder, before a picture is drawn."""
        guard = PrototypeGuard.load(_file(place))
        gap = guard.facts.encoder.apart(encoders_of(model.encoder.pipe, model.family))
        if gap is not None:
            raise PackageError(
                "this bank belongs to another text encoder",
                got=f"{model.label}, with {gap}",
                allowed=f"the text encoder {guard.facts.encoder_sha256[:12]}",
            )

    @contextmanager
    def applied(self, model: Model, place: Path, pipe: Any) -> Iterator[Any]:
        """`PrototypeGuard.from_pretrained(place).attach(pipe)`, and detached again."""
        with PrototypeGuard.from_pretrained(_file(place)).on(pipe) as guarded:
            yield guarded


def _file(place: Path) -> Path:
    return place / PrototypeGuard.file if place.is_dir() else place
