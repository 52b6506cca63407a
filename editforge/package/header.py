"""What a safetensors header of ours says: provenance, kohya's keys, ModelSpec. Allow-lists only.

All values are strings. No clock and no trigger phrase: an eraser has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from editforge.artifacts.weight_edit import WeightEdit
from editforge.disk import read_json
from editforge.families.schema import Family
from editforge.package.base import BaseModel

ORIGINAL = (
    "https://github.com/Stability-AI/generative-models"  # as trainers write it, not a promise
)


def provenance_header(edit: WeightEdit) -> dict[str, str]:
    """`editforge.*`: method, version, concepts and targets, strength, recipe, base."""
    source = edit.provenance
    erased: list[Mapping[str, Any]] = list(source.get("erased", []))
    values = {
        "method": source.get("method"),
        "version": source.get("editforge_version"),
        "concepts": _json([row.get("name", "") for row in erased]),
        "targets": _json([row.get("target") or "" for row in erased]),
        "strength": repr(float(edit.strength)),
        "recipe_sha256": source.get("recipe_sha256"),
        "base_model": source.get("base_model"),
        "base_revision": source.get("base_revision"),
    }
    return {f"editforge.{key}": str(value) for key, value in values.items() if value is not None}


def modelspec_header(
    model: BaseModel, title: str, edit: WeightEdit, *, lora: bool, implementation: str
) -> dict[str, str]:
    """The required ModelSpec fields and the two that ComfyUI's library shows; {} without a name."""
    architecture = (model.family.modelspec or {}).get(model.prediction_type)
    if architecture is None:
        return {}
    concepts = erased_names(edit) or "nothing"
    hint = (
        "Load at weight 1. A lower weight erases less, a negative weight does the opposite."
        if lora
        else "Use it in place of the base checkpoint."
    )
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture + ("/lora" if lora else ""),
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.resolution": _resolution(model),
        "modelspec.description": f"Steers prompts that name {concepts} to other targets.",
        "modelspec.usage_hint": hint,
    }


def _resolution(model: BaseModel) -> str:
    """Width and height that the model draws unasked, from its own configs, as stock pipelines do."""
    latent = read_json(model.folder / model.family.denoiser / "config.json").get("sample_size")
    if not isinstance(latent, int):  # not every config says; then what the family is drawn at
        return f"{model.family.sampler.size}x{model.family.sampler.size}"
    blocks = read_json(model.folder / "vae" / "config.json")["block_out_channels"]
    size = latent * 2 ** (len(blocks) - 1)
    return f"{size}x{size}"


def kohya_header(family: Family, prediction: str, rank: int) -> dict[str, str]:
    """The `ss_*` keys that readers of kohya files look at."""
    base = (family.kohya or {})[prediction]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_v2": str(base.startswith("sd_v2")),
        "ss_base_model_version": base,
    }


def adapter_header(component: str, modules: list[str], rank: int) -> dict[str, str]:
    """`lora_adapter_metadata`: the PEFT configuration diffusers reads, short and sorted."""
    body = {
        f"{component}.lora_alpha": rank,
        f"{component}.peft_type": "LORA",
        f"{component}.r": rank,
        f"{component}.target_modules": sorted(modules),
    }
    return {"lora_adapter_metadata": _json(body)}


def erased_names(edit: WeightEdit) -> str:
    """The erased concepts' names, joined for a sentence."""
    return ", ".join(str(row.get("name", "")) for row in edit.provenance.get("erased", []))


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
