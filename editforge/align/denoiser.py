"""The denoiser as the training loop calls it: rows in, predictions out, and everything put back after.

On a CPU the plain attention is used while training: the backward of the fused one takes a third of a
step there. It is taken only where its attention matrices are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from editforge.families.editable import uncompiled
from editforge.ground.errors import RecipeError

_AESTHETIC = 6.0  # what stock pipelines tell a refiner instead of a target size
_SMALL = 1024  # latent positions up to which an attention matrix is kept in full


@dataclass(frozen=True)
class Encoded:
    """One text as the denoiser reads it: states (q, d), and the pooled state where there is one."""

    states: Tensor
    pooled: Tensor | None = None


class Denoiser:
    """A pipeline's denoiser at one size and precision.

    Args:
        pipe: the pipeline.
        size: height and width of a picture in pixels; None: the pipeline's own.
        precision: bf16 autocasts the forward pass; fp32 needs a model in float32.
    """

    def __init__(self, pipe: Any, size: int | None, precision: Literal["bf16", "fp32"]) -> None:
        self.pipe, self.module = pipe, uncompiled(pipe.unet)
        self.device, self.dtype = pipe.unet.device, pipe.unet.dtype
        self._bf16 = precision == "bf16"
        if precision == "fp32" and self.dtype != torch.float32:
            raise RecipeError(
                "fp32 training needs a model in float32",
                got=str(self.dtype),
                next="--set model.dtype=float32, or --set align.precision=bf16",
            )
        factor, config = pipe.vae_scale_factor, pipe.unet.config
        if size is not None and size % factor:
            raise RecipeError(
                "align.size does not fit", got=size, allowed=f"a multiple of {factor}"
            )
        side = config.sample_size if size is None else size // factor
        self.shape = (int(config.in_channels), int(side), int(side))
        self._pooled = getattr(config, "addition_embed_type", None) == "text_time"
        pixels = side * factor
        last = (
            [_AESTHETIC] if getattr(pipe.config, "requires_aesthetics_score", 0) else [pixels] * 2
        )
        self._sizes = torch.tensor([[pixels, pixels, 0, 0, *last]], device=self.device)

    @contextmanager
    def frozen(self, *, checkpointing: bool = False) -> Iterator[None]:
        """No weight takes a gradient inside; flags, mode and attention come back afterwards.

        Args:
            checkpointing: recompute activations in the backward pass: less memory, a third slower.
        """
        unet = self.module
        flags = [(weight, weight.requires_grad) for weight in unet.parameters()]
        processors, mode = dict(unet.attn_processors), unet.training
        plain = self.device.type == "cpu" and self.shape[1] * self.shape[2] <= _SMALL
        was_checkpointing = bool(getattr(unet, "is_gradient_checkpointing", False))
        try:
            unet.requires_grad_(False)
            unet.train(checkpointing)  # these denoisers have no dropout; recomputing asks for it
            if checkpointing:
                unet.enable_gradient_checkpointing()
            if plain and all(type(one) is AttnProcessor2_0 for one in processors.values()):
                unet.set_attn_processor(AttnProcessor())
            yield
        finally:
            for weight, flag in flags:
                weight.requires_grad_(flag)
            unet.train(mode)
            if checkpointing and not was_checkpointing:
                unet.disable_gradient_checkpointing()
            unet.set_attn_processor(dict(processors))

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Activations are kept inside, whatever `frozen` says.

        A pass that is differentiated after the student came on must not be computed again then.
        """
        unet = self.module
        again = bool(getattr(unet, "is_gradient_checkpointing", False))
        if again:
            unet.disable_gradient_checkpointing()
        try:
            yield
        finally:
            if again:
                unet.enable_gradient_checkpointing()

    def __call__(self, latents: Tensor, times: Tensor, texts: Sequence[Encoded]) -> Tensor:
        """The model's own output for n rows, float32.

        Args:
            latents: (n, c, h, w).
            times: (n,), on the model's training grid.
            texts: n.
        """
        states = torch.stack([text.states.to(self.device, self.dtype) for text in texts])
        extra: dict[str, Any] = {}
        if self._pooled:
            pooled = [t.pooled.to(self.device, self.dtype) for t in texts if t.pooled is not None]
            extra["added_cond_kwargs"] = {
                "text_embeds": torch.stack(pooled),
                "time_ids": self._sizes.to(self.dtype).expand(len(texts), -1),
            }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            output = self.module(
                latents.to(self.device, self.dtype),
                times.to(self.device),
                encoder_hidden_states=states,
                return_dict=False,
                **extra,
            )[0]
        return output.float()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 64) -> list[Encoded]:
        """Texts as the pipeline encodes them, on the CPU."""
        found: list[Encoded] = []
        for first in range(0, len(texts), batch):
            part = list(texts[first : first + batch])
            output = self.pipe.encode_prompt(
                prompt=part,
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            states = output[0].float().cpu()
            if self._pooled:
                pooled = output[2].float().cpu()
                found += [Encoded(*pair) for pair in zip(states, pooled, strict=True)]
            else:
                found += [Encoded(row) for row in states]
        return found

    @torch.no_grad()
    def unconditional(self) -> Encoded:
        """What the pipeline guides away from where its user gives no negative prompt, on the CPU.

        The pipeline's own rule: the empty text for most, zeros for SDXL as it is published
        (`force_zeros_for_empty_prompt`), which is another point than the empty text is.
        """
        output = self.pipe.encode_prompt(
            prompt=[""],
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        states = output[1][0].float().cpu()
        return Encoded(states, output[3][0].float().cpu() if self._pooled else None)
