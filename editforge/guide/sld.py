"""Safe Latent Diffusion, with its branches where they belong.

methods.md 5.8, arXiv 2211.05105. The deprecated pipeline of diffusers reads the prompt's prediction as
the one without a prompt; its numbers are not those of this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from editforge.guards.text_guard import CHECKED, TextGuard, repeated
from editforge.guards.words import Added, Ask, Moment, Quiet, Reading, Speaks, Texts
from editforge.guide.names import facts_of, text_of
from editforge.recipe.contract import Context, GuideInputs, StageConfig
from editforge.recipe.registry import register


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Level:
    """How hard it steers; the paper's settings are `LEVELS`, `medium` its default.

    Args:
        warmup: steps before it acts. Higher: the picture's layout stays, and the concept with it.
        scale: s_S, of a difference of predictions. Higher: more values are steered with full weight.
        threshold: prompts whose values exceed those of the text by this are left. Higher: fewer are.
        momentum_scale: s_m, share of the momentum that is added.
        momentum_beta: b, share of the momentum that is kept from step to step.
    """

    warmup: Annotated[int, Field(ge=0)] = 10
    scale: Annotated[float, Field(ge=0)] = 1000.0
    threshold: Annotated[float, Field(ge=0)] = 0.01
    momentum_scale: Annotated[float, Field(ge=0, le=1)] = 0.3
    momentum_beta: Annotated[float, Field(ge=0, lt=1)] = 0.4


LEVELS = {
    "weak": Level(warmup=15, scale=200.0, threshold=0.0, momentum_scale=0.0, momentum_beta=0.0),
    "medium": Level(),
    "strong": Level(warmup=7, scale=2000.0, threshold=0.025, momentum_scale=0.5, momentum_beta=0.7),
    "max": Level(warmup=0, scale=5000.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7),
}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SafeLatentDiffusion(TextGuard):
    """Every picture is steered away from what a text and its prompt have in common.

        mu    = clamp(|ec - eS| s_S, max 1) where (ec - eS) < threshold, else 0       elementwise
        gamma = mu (eS - e0) + s_m nu;   nu <- b nu + (1 - b) gamma                   from step 0 on
        g     = e0 + alpha [(ec - e0) - gamma]                                        after the warm-up

    with e0, ec, eS the predictions without a prompt, with it, and with `text`. e0 is that of the user's
    negative prompt where there is one; without classifier-free guidance alpha is 1.

    Guarantee: stock bit for bit during the warm-up, with an empty text, and with strength or scale 0.
    `strength` multiplies s_S. No gate: harmless prompts are moved too. A step costs one half more.

    Args:
        text: what must not be drawn.
        level: see `Level`.
    """

    file: ClassVar[str] = "sld.safetensors"
    header: ClassVar[str] = "editforge_sld"

    text: Annotated[str, Field(max_length=2000)]
    level: Level = LEVELS["medium"]

    def rule(self, pipe: Any) -> SldRule:
        """The guard on one pipeline."""
        return SldRule(self, Speaks(pipe))


class SldRule:
    """Safe Latent Diffusion on one pipeline."""

    def __init__(self, guard: SafeLatentDiffusion, speaks: Speaks) -> None:
        self._guard, self._speaks = guard, speaks

    def read(self, prompts: Texts) -> Reading:
        """The same for all prompts; a new momentum for each picture.

        An empty text is not asked about: in a batch of another size its prediction differs from e0 in
        the last bits, and s_S makes them count.
        """
        guard, text = self._guard, self._guard.text.strip()
        level = replace(guard.level, scale=guard.level.scale * guard.strength)
        return Safe(self._speaks(text), level) if text and level.scale else Quiet()


class Safe(Quiet):
    """Pictures that are being steered, and their momentum nu."""

    def __init__(self, text: Texts, level: Level) -> None:
        self._text, self._level = text, level
        self._nu: Tensor | None = None

    def asks(self, moment: Moment, empty: Texts) -> Sequence[Ask]:
        """eps(z, text) of every sample; nothing where no later step would use it."""
        level = self._level
        early = moment.step < level.warmup
        if level.warmup >= moment.steps or (early and not level.momentum_scale):
            return ()
        rows = torch.arange(len(empty.states), device=empty.states.device)
        return (Ask(rows, repeated(self._text, empty)),)

    def adds(
        self, moment: Moment, plain: Tensor, idle: Tensor, drawn: Tensor, told: Sequence[Tensor]
    ) -> Sequence[Added]:
        """-alpha gamma, in float32; the momentum moves on during the warm-up too."""
        level = self._level
        e0, ec, eS = idle.float(), drawn.float(), told[0].float()
        weight = ((ec - eS).abs() * level.scale).clamp(max=1)
        mu = torch.where(ec - eS < level.threshold, weight, 0.0)
        nu = torch.zeros_like(e0) if self._nu is None else self._nu
        gamma = mu * (eS - e0) + level.momentum_scale * nu
        self._nu = level.momentum_beta * nu + (1 - level.momentum_beta) * gamma
        if moment.step < level.warmup:
            return ()
        return (Added(torch.arange(len(e0), device=e0.device), -moment.alpha * gamma),)


class SldConfig(StageConfig):
    """Options of `guide: sld`. methods.md 5.8; what is null is the level's."""

    text: str | None = Field(
        None, max_length=2000, description="What must not be drawn; null: the erased names."
    )
    level: Literal["weak", "medium", "strong", "max"] = Field(
        "medium", description="The paper's setting."
    )
    warmup: int | None = Field(None, ge=0, description="Steps before it acts. Higher: weaker.")
    scale: float | None = Field(None, ge=0, description="Of a difference. Higher: stronger.")
    threshold: float | None = Field(
        None, ge=0, description="Differences up to this are steered. Higher: stronger."
    )
    momentum_scale: float | None = Field(None, ge=0, le=1, description="Share of the momentum.")
    momentum_beta: float | None = Field(None, ge=0, lt=1, description="Share of it that is kept.")


@register("guide", "sld", paper="https://arxiv.org/abs/2211.05105")
def sld(inputs: GuideInputs, config: SldConfig, context: Context) -> SafeLatentDiffusion:
    """Steer away from the erased names while a picture is drawn.

    Raises:
        RecipeError: the text encoder would cut the text off.
    """
    own = config.model_dump(exclude={"use", "text", "level"}, exclude_none=True)
    return SafeLatentDiffusion(
        text=text_of(inputs, config.text, context),
        level=replace(LEVELS[config.level], **own),
        provenance=facts_of(inputs),
    )
