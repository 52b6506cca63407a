"""ModelConfig: which base model the user named; reading it imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ModelConfig(BaseModel):
    """Which base model, and how it is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field("emoji", description="emoji, a Hub id, a pipeline folder, a .safetensors file.")
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub id.")
    variant: str | None = Field(None, description="Suffix of the weight files, such as fp16.")
    dtype: str | None = Field(None, description="float32, float16 or bfloat16 for drawing.")
    device: str = Field("auto", description="auto, cpu, cuda, mps.")
    family: str | None = Field(None, description="Family name or YAML; null: detected.")
    config: str | None = Field(
        None, description="For a single file: pipeline folder or Hub id with configs and tokenizer."
    )
