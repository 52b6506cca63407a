"""One checkpoint file in the published original names: A1111, Forge, ComfyUI and diffusers load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import Model
from editforge.families.outline import Outline
from editforge.package.base import Weights
from editforge.package.denoiser import precision, rounding_error
from editforge.package.single_file import check_original, check_shipped, write_single_file
from editforge.package.stock import StockExporter, pipeline_class
from editforge.recipe.export import BaseModel, Exportable, Written
from editforge.recipe.registry import register


@register("export", "single-file")
class SingleFile(StockExporter):
    """Artifact E, see `package/single_file.py`."""

    name = "single-file"
    relation = "finetune"

    def check(self, model: Exportable) -> None:
        """Refuse a base without an original format, or one that predicts something else."""
        check_original(model, self.name)

    def write(
        self, model: BaseModel, eraser: WeightEdit, folder: Path, title: str, dtype: str
    ) -> Written:
        """Write the one file."""
        path = write_single_file(model, eraser, folder, title, dtype=dtype)
        rounding = rounding_error(Weights.of(model), eraser, precision(dtype))
        facts = {"weights": [path.name], "dtype": dtype, "rounding": {path.name: rounding}}
        return Written(facts)

    def check_shipped(self, model: Model, place: Path) -> None:
        """Refuse a denoiser with other weights than the base's."""
        check_shipped(model, place)

    def load(self, model: Model, place: Path, dtype: Any) -> Any:
        """`from_single_file`; the file has no configs, and the base's, at hand, need no network."""
        return pipeline_class(model).from_single_file(
            str(place), config=str(model.folder), local_files_only=True, dtype=dtype
        )

    def bytes(self, model: Outline, dtype: str, size: int) -> int:
        """Denoiser, text encoders and VAE."""
        encoders = [part.encoder for part in model.family.text]
        return sum(model.bytes_of(part) for part in (model.family.denoiser, *encoders, "vae"))
