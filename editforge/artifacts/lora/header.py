"""What the header of a LoRA file says: provenance, the adapter's settings, kohya's keys.

Allow-lists only; all values are strings. No clock and no trigger phrase: an eraser has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from editforge.artifacts.low_rank import Change
from editforge.families.schema import Family


def provenance_header(edit: Change) -> dict[str, str]:
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


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
