"""Artifact A: a LoRA in diffusers format, which `pipe.load_lora_weights(folder)` reads.

Keys are `<component>.<module>.lora_A.weight` and `.lora_B.weight`. Without the prefix the pipeline
loader attaches no adapter and says nothing, and without the adapter's metadata it assumes alpha =
rank; so the prefix and the metadata are always written, and alpha is the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from editforge.artifacts.lora.factors import LoraFactors, lora_factors
from editforge.artifacts.lora.header import adapter_header, provenance_header
from editforge.artifacts.low_rank import Change
from editforge.ground.files import write_safetensors

NAME = "pytorch_lora_weights.safetensors"


def write_lora(
    edit: Change,
    folder: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write `folder/pytorch_lora_weights.safetensors`; equal edits give equal bytes.

    Guarantee: the stock pipeline with this file at weight 1 has the weights of `edit.apply`, up to
    the rounding of the factors. Nothing is written if the edit cannot be a LoRA.

    Args:
        edit: strength is folded into B, ranks are padded to one.
        folder: made if it is missing.
        metadata: more header entries, text to text.
        dtype: float32 is lossless; in 16 bits the factors are balanced before the cast.

    Raises:
        PackageError: text-encoder modules or dense deltas, named.
    """
    return write_factors(lora_factors(edit, dtype), edit, folder, metadata or {})


def write_factors(
    factors: LoraFactors, edit: Change, folder: Path, metadata: Mapping[str, str]
) -> Path:
    """Write prepared factors, one padded tensor in memory at a time."""
    tensors = {
        f"{factors.component}.{module}.lora_{side}.weight": factors.tensor(module, side)
        for module in factors.modules
        for side in "AB"
    }
    header = adapter_header(factors.component, list(factors.modules), factors.rank)
    path = folder / NAME
    write_safetensors(path, tensors, {**metadata, **provenance_header(edit), **header})
    return path
