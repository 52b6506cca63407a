"""What our own exporters share: they ship WeightEdits, and stock diffusers calls load them.

Each form gets a pipeline of its own, so nothing of the one that the base is drawn with changes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import Model
from editforge.ground.errors import PackageError
from editforge.package.base import Weights, check_fits, check_offered
from editforge.package.usage import TemplateExporter
from editforge.recipe.export import BaseModel, Exportable


class StockExporter(TemplateExporter):
    """Takes a WeightEdit; offered by families that name it; used as `model_cards/use_NAME` says."""

    accepts = WeightEdit

    def check(self, model: Exportable) -> None:
        """Refuse a base whose family does not name this export."""
        check_offered(model, self.name)

    def check_eraser(self, model: BaseModel, eraser: WeightEdit) -> None:
        """Refuse an edit of other modules or shapes than the base's denoiser has."""
        check_fits(eraser, Weights.of(model))

    @contextmanager
    def applied(self, model: Model, place: Path, pipe: Any) -> Iterator[Any]:
        """A pipeline of its own, in the precision and on the device of `pipe`.

        Raises:
            PackageError: diffusers does not load the artifact, or takes nothing from it.
        """
        try:
            edited = self.load(model, place, pipe.unet.dtype)
        except Exception as error:  # diffusers raises many kinds; each means the same to the user
            raise PackageError(
                f"diffusers does not load this {self.name}",
                got=" ".join(str(error).split())[:300],
                next="editforge verify FOLDER compares its files with their hashes",
            ) from None
        edited.set_progress_bar_config(disable=True)
        yield edited.to(pipe.device)

    @abstractmethod
    def load(self, model: Model, place: Path, dtype: Any) -> Any:
        """The call of diffusers that its user makes."""


def pipeline_class(model: Model) -> Any:
    """Of diffusers, as the base's own index names it."""
    import diffusers

    return getattr(diffusers, model.pipeline_class)
