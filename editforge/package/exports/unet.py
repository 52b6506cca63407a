"""The edited denoiser alone: diffusers puts it in place of the base's, ComfyUI loads it as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import Model
from editforge.families.outline import Outline
from editforge.families.schema import Family
from editforge.package.denoiser import (
    check_denoiser,
    denoiser_bytes,
    denoiser_facts,
    write_denoiser,
)
from editforge.package.stock import StockExporter
from editforge.recipe.export import BaseModel, Written
from editforge.recipe.registry import register


@register("export", "unet")
class Unet(StockExporter):
    """Artifact C, see `package/denoiser.py`."""

    name = "unet"
    relation = "finetune"
    is_folder = True

    def write(
        self, model: BaseModel, eraser: WeightEdit, folder: Path, title: str, dtype: str
    ) -> Written:
        """Write `config.json` and the edited weights."""
        written = write_denoiser(model, eraser, folder, dtype=dtype)
        return Written(denoiser_facts(model, eraser, folder, written, dtype))

    def check_shipped(self, model: Model, place: Path) -> None:
        """Refuse other weights than the base's denoiser has."""
        check_denoiser(model, place)

    def load(self, model: Model, place: Path, dtype: Any) -> Any:
        """`from_pretrained` of the component, in the base's pipeline."""
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(
            place, use_safetensors=True, local_files_only=True, dtype=dtype
        )
        return model.pipeline(unet=unet)

    def copied(self, family: Family, path: str) -> bool:
        """Its config."""
        return path == "config.json"

    def bytes(self, model: Outline, dtype: str, size: int) -> int:
        """The denoiser's files."""
        return denoiser_bytes(model, dtype)
