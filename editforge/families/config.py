"""ModelConfig: which base model the user named; reading it imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from editforge.ground.errors import RecipeError
from editforge.ground.places import is_repository

EMBEDDED = "editforge/emoji-sd"  # what a package calls the embedded model


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
    vae: str | None = Field(
        None, description="For a single file without a VAE: folder or Hub id of an AutoencoderKL."
    )
    clip_skip: int | None = Field(
        None, ge=1, description="2: text states of the last layer but one, as apps call it."
    )
    steps: int | None = Field(
        None, ge=1, le=200, description="Of every picture drawn; null: as its kind is drawn."
    )
    guidance: float | None = Field(
        None, ge=0, le=100, description="Of every picture drawn; null: as its kind is drawn."
    )
    base: str | None = Field(
        None, description="Hub id that a local folder or file is a copy of; the card names it."
    )

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A recipe that does not use them reads as it did before they were there: its digest stays."""
        body: dict[str, Any] = handler(self)
        for key in ("vae", "clip_skip", "steps", "guidance"):
            if body.get(key) is None:
                body.pop(key, None)
        return body

    @model_validator(mode="after")
    def _base_names_a_hub_model(self) -> ModelConfig:
        if self.base is None:
            return self
        if not is_repository(self.base) or self.base == EMBEDDED:
            raise RecipeError(
                "the base is no Hub id",
                got=f"model.base = {self.base}",
                allowed="OWNER/NAME, as in stable-diffusion-v1-5/stable-diffusion-v1-5",
            )
        if self.id == "emoji":
            raise base_is_known(self)
        return self


def base_is_known(config: ModelConfig) -> RecipeError:
    """The refusal of a base for a model that names itself."""
    return RecipeError(
        "only a local model can be a copy of another",
        got=f"model.base = {config.base} for model.id = {config.id}",
        allowed="a pipeline folder or a .safetensors file that exists, with --base OWNER/NAME",
        next="leave out --base: the embedded model and a Hub id name themselves",
    )
