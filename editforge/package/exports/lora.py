"""Small factors beside the base: diffusers, and ComfyUI, A1111 and Forge where the family has a name.

Artifacts A and B, both at the root of one repository, where the Hub counts downloads. The user's
`load_lora_weights` at weight 1 is fused and unloaded to be judged: in float32 that is the same up to
rounding, while under bfloat16 autocast an adapter beside its map rounds twice and draws other pictures
than every other form of the same edit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from editforge.artifacts.lora.factors import lora_factors
from editforge.artifacts.lora.kohya import has_kohya, write_kohya
from editforge.artifacts.lora.read import read_lora
from editforge.artifacts.lora.write import write_factors
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.model import Model
from editforge.families.outline import Outline
from editforge.package.base import Weights, check_fits
from editforge.package.denoiser import precision
from editforge.package.header import ORIGINAL, modelspec_header
from editforge.package.stock import StockExporter
from editforge.recipe.export import BaseModel, Written
from editforge.recipe.registry import register


@register("export", "lora")
class Lora(StockExporter):
    """The diffusers file, and kohya's under the release's name where the family has a kohya base."""

    name = "lora"
    tags = ("lora", "template:sd-lora")
    holds_dense = False

    def write(
        self, model: BaseModel, eraser: WeightEdit, folder: Path, title: str, dtype: str
    ) -> Written:
        """Write both files from the same factors; `base` is float32, which rounds nothing."""
        stored = precision(dtype) or torch.float32
        factors = lora_factors(eraser, stored, component=model.family.denoiser)
        family, prediction = model.family, model.prediction_type
        spec = modelspec_header(model, title, eraser, lora=True, implementation="diffusers")
        plain = write_factors(factors, eraser, folder, spec)
        notes, kohya = [], None
        if has_kohya(family, prediction):
            path = folder / f"{title}.safetensors"
            spec = modelspec_header(model, title, eraser, lora=True, implementation=ORIGINAL)
            write_kohya(factors, eraser, path, family, prediction, spec)
            kohya = path.name
            if not model.standard:
                notes.append(
                    "the kohya file names the blocks of a distilled base: an app reads it only if it "
                    "knows that base"
                )
        elif family.kohya is not None:
            notes.append(f"no kohya file: family {family.name} has no kohya base for {prediction}")
        facts = {
            "weights": [plain.name, *([kohya] if kohya else [])],
            "kohya": kohya,
            "rank": factors.rank,
            "dtype": str(factors.dtype).removeprefix("torch."),
            "exact": eraser.exact_rank is not None,
            "relative_error": factors.error,
        }
        return Written(facts, tuple(notes))

    def check_shipped(self, model: Model, place: Path) -> None:
        """Refuse a LoRA of modules or shapes that the base does not have."""
        check_fits(read_lora(place), Weights.of(model))

    def load(self, model: Model, place: Path, dtype: Any) -> Any:
        """`load_lora_weights`, fused."""
        pipe = model.pipeline()
        pipe.load_lora_weights(str(place.parent), weight_name=place.name, local_files_only=True)
        if not pipe.get_list_adapters():
            raise ValueError("the pipeline took no adapter from it, as for keys without `unet.`")
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        return pipe

    def bytes(self, model: Outline, dtype: str, size: int) -> int:
        """Once for each file; `size` is in float32."""
        half = precision(dtype) in (torch.float16, torch.bfloat16)
        return size * (2 if model.family.kohya else 1) // (2 if half else 1)
