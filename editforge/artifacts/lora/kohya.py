"""Artifact B: the same numbers in kohya's names, for ComfyUI, A1111, Forge and InvokeAI.

`lora_unet_` plus the module path with underscores, `lora_down` for A, `lora_up` for B, one scalar
`alpha` a module, equal to the one rank. One rank matters: diffusers applies the wrong scale to the
modules outside the most common rank of a kohya file, without a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from editforge.artifacts.lora.factors import LoraFactors
from editforge.artifacts.lora.header import kohya_header, provenance_header
from editforge.artifacts.low_rank import Change
from editforge.families.schema import Family
from editforge.ground.errors import PackageError
from editforge.ground.files import LazyTensor, write_safetensors


def has_kohya(family: Family, prediction: str) -> bool:
    """True if the family names a kohya base for this prediction type."""
    return family.kohya is not None and prediction in family.kohya


def write_kohya(
    factors: LoraFactors,
    edit: Change,
    path: Path,
    family: Family,
    prediction: str,
    metadata: Mapping[str, str],
) -> Path:
    """Write prepared factors in kohya's names, one padded tensor in memory at a time.

    Raises:
        PackageError: the family has no kohya base for this prediction type.
    """
    if not has_kohya(family, prediction):
        raise PackageError(
            f"family {family.name} has no kohya format for {prediction}",
            allowed=", ".join(family.kohya or {}) or "none",
            next="the diffusers file of --export lora is the one to use",
        )
    alpha = torch.tensor(float(factors.rank))
    tensors: dict[str, torch.Tensor | LazyTensor] = {}
    for module in factors.modules:
        stem = f"lora_{factors.component}_{module.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = factors.tensor(module, "A")
        tensors[f"{stem}.lora_up.weight"] = factors.tensor(module, "B")
        tensors[f"{stem}.alpha"] = alpha  # float32: bfloat16 holds no integer above 256 exactly
    header = kohya_header(family, prediction, factors.rank)
    write_safetensors(path, tensors, {**metadata, **provenance_header(edit), **header})
    return path
