"""What a safetensors header of ours says: provenance, kohya's keys, ModelSpec. Allow-lists only.

All values are strings. No clock and no trigger phrase: an eraser has none.
"""

from __future__ import annotations

from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.disk import read_json
from editforge.recipe.export import BaseModel

ORIGINAL = (
    "https://github.com/Stability-AI/generative-models"  # as trainers write it, not a promise
)


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


def erased_names(edit: WeightEdit) -> str:
    """The erased concepts' names, joined for a sentence."""
    return ", ".join(str(row.get("name", "")) for row in edit.provenance.get("erased", []))
