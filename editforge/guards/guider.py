"""PrototypeGuidance: the push of a prototype guard as a guider of modular pipelines.

A guider sees embeddings and no text, and keeps numbers and no tensors: the block of `guards/modular.py`
reads the prompts and selects. diffusers marks guiders as experimental: checked on 0.42.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from editforge.ground.errors import EditError
from editforge.guards.prototype import PrototypeGuard
from editforge.guards.push import masked, rescaled
from editforge.guards.words import Ask, Moment, Texts


class PrototypeGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance that moves away from the prototype that a prompt is closest to.

        g = plain - beta m (pred_proto - pred_uncond),   m = 1 where |pred_proto - pred_uncond| > mask
        g <- rescale g std(plain) / std(g) + (1 - rescale) g          std of each sample

    for the samples that `select` names, in the first `window` of the steps. All other samples and
    steps have the parent's bits, and so has everything where classifier-free guidance is off.

    `new()`, `from_config` and `save_pretrained` keep the options alone: what was selected is lost, and
    the block selects again when the pipeline is called.

    Args:
        beta: pull away from the prototype. Higher: surer, and less of a picture.
        mask: differences of predictions up to this are left out.
        rescale: share that is brought back to the deviation of plain guidance, 0 to 1.
        window: share of the steps, from the first on, in which the prototype is asked, 0 to 1.

    The others are the parent's. Reference: arXiv 2603.08271.
    """

    _input_predictions = ["pred_cond", "pred_uncond", "pred_proto"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        beta: float = 20.0,
        mask: float = 0.005,
        rescale: float = 0.5,
        window: float = 0.6,
    ) -> None:
        # By name: the parent notes what it is given by position as left at its default, and drops it.
        super().__init__(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            use_original_formulation=use_original_formulation,
            start=start,
            stop=stop,
            enabled=enabled,
        )
        for name, value, most in (
            ("beta", beta, math.inf),
            ("mask", mask, math.inf),
            ("rescale", rescale, 1),
            ("window", window, 1),
        ):
            if not (0 <= value <= most and math.isfinite(value)):
                raise EditError(
                    f"{name} of PrototypeGuidance is out of range",
                    got=value,
                    allowed="0 to 1" if most == 1 else "0 or more",
                )
        self.beta, self.mask, self.rescale, self.window = beta, mask, rescale, window
        self._layers: list[Ask] = []

    @classmethod
    def of(cls, guard: PrototypeGuard, **options: Any) -> Self:
        """The guider of a bank, with the bank's constants and strength.

        Args:
            guard: the bank.
            options: guidance_scale and the parent's others; they are the pipeline's, not the bank's.
        """
        return cls(**{**options_of(guard), **options})

    def select(self, chosen: Sequence[Ask], empty: Texts | None = None) -> None:
        """Act on these samples of the next batch, and on no others; nothing: on none.

        A sample that several concepts trigger is asked several prototypes, one prediction each.

        Args:
            chosen: samples, and the conditioning of their prototypes.
            empty: the conditioning of the whole batch without a prompt.
        """
        layers: list[Ask] = []
        for ask in chosen:
            if empty is None:
                raise EditError("PrototypeGuidance.select needs the conditioning without a prompt")
            free = (i for i, own in enumerate(layers) if not torch.isin(ask.rows, own.rows).any())
            at = next(free, len(layers))
            own = layers.pop(at) if at < len(layers) else Ask(ask.rows[:0], empty)
            rows = torch.cat([own.rows, ask.rows])
            layers.insert(at, Ask(rows, own.texts.with_rows(ask.rows, ask.texts)))
        self._layers = layers

    @property
    def num_conditions(self) -> int:
        """The parent's, and one for each prototype that a sample is asked in this step."""
        return int(super().num_conditions) + len(self._acting())

    def prepare_inputs(self, data: Any) -> list[Any]:
        """The parent's batches, and the one without a prompt once more, with the prototypes in it."""
        batches: list[Any] = super().prepare_inputs(data)
        for at, layer in enumerate(self._acting()):
            name = "pred_proto" if at == 0 else f"pred_proto_{at + 1}"
            batch: Any = self._prepare_batch(data, 1, name)
            if batch.prompt_embeds.shape != layer.texts.states.shape:
                raise EditError(
                    "the prototypes were selected for another batch",
                    got=f"{tuple(layer.texts.states.shape)} of {tuple(batch.prompt_embeds.shape)}",
                    next="put PrototypeGuidanceStep right after the input step: insert(guard, blocks)",
                )
            batch.prompt_embeds = layer.texts.states
            if layer.texts.pooled is not None:
                batch.text_embeds = layer.texts.pooled
            batches.append(batch)
        return batches

    def forward(
        self,
        pred_cond: Tensor,
        pred_uncond: Tensor | None = None,
        pred_proto: Tensor | None = None,
        **further: Tensor,
    ) -> GuiderOutput:
        """The parent's prediction, steered where something was selected.

        Args:
            pred_cond: with the prompts.
            pred_uncond: without.
            pred_proto: with the prototypes; None: this step is the parent's.
            further: of samples that more than one concept triggers, `pred_proto_2` and so on.
        """
        plain = super().forward(pred_cond, pred_uncond)
        if pred_proto is None or pred_uncond is None:
            return plain
        g = plain.pred.float()
        for layer, told in zip(self._layers, (pred_proto, *further.values()), strict=True):
            away = masked(told[layer.rows].float() - pred_uncond[layer.rows].float(), self.mask)
            g = g.index_add(0, layer.rows, -self.beta * away)
        rows = torch.cat([layer.rows for layer in self._layers]).unique()
        g, before = g[rows], plain.pred[rows].float()
        if self.rescale:
            g = rescaled(g, before, self.rescale)
        pred = plain.pred.clone()
        pred[rows] = g.to(pred)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _acting(self) -> list[Ask]:
        """What is asked in this step; nothing after the window, and where the parent does not guide."""
        steps = self._num_inference_steps
        inside = steps is None or Moment(self._step, steps, 1.0).within(self.window)
        return self._layers if self.beta and inside and self._is_cfg_enabled() else []


def options_of(guard: PrototypeGuard) -> dict[str, float]:
    """The guider's options that are a bank's, its strength in them."""
    own = guard.facts.guidance
    return {
        "beta": own.beta * guard.strength,
        "mask": own.mask,
        "rescale": own.rescale,
        "window": own.window,
    }
