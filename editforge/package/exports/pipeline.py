"""The whole pipeline as a folder: whatever calls `from_pretrained` loads it, without the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import Model
from editforge.families.outline import Outline
from editforge.families.schema import Family
from editforge.package.denoiser import STEM, check_denoiser, denoiser_bytes, denoiser_facts
from editforge.package.pipeline import write_pipeline
from editforge.package.stock import StockExporter, pipeline_class
from editforge.recipe.export import BaseModel, Written
from editforge.recipe.registry import register


@register("export", "pipeline")
class Pipeline(StockExporter):
    """Artifact D, see `package/pipeline.py`."""

    name = "pipeline"
    relation = "finetune"
    is_folder = True

    def write(
        self, model: BaseModel, eraser: WeightEdit, folder: Path, title: str, dtype: str
    ) -> Written:
        """Copy the base's files beside an edited denoiser."""
        written = write_pipeline(model, eraser, folder, dtype=dtype)
        return Written(denoiser_facts(model, eraser, folder, written, dtype))

    def check_shipped(self, model: Model, place: Path) -> None:
        """Refuse a denoiser with other weights than the base's."""
        check_denoiser(model, place / model.family.denoiser)

    def load(self, model: Model, place: Path, dtype: Any) -> Any:
        """`from_pretrained`."""
        return pipeline_class(model).from_pretrained(
            place, use_safetensors=True, local_files_only=True, dtype=dtype
        )

    def copied(self, family: Family, path: str) -> bool:
        """All but the denoiser's weights."""
        return not path.startswith(f"{family.denoiser}/{STEM}")

    def bytes(self, model: Outline, dtype: str, size: int) -> int:
        """The base's files, with the edited denoiser's instead of its own."""
        own = model.bytes_of(model.family.denoiser)
        return sum(model.sizes.values()) - own + denoiser_bytes(model, dtype)
