"""A prototype guard in a modular pipeline of diffusers: a guider, and a block that reads the prompts.

A guider sees embeddings and no text, and keeps numbers and no tensors. So the bank lies in a block: it
reads the prompts, changes a triggered one's states where the bank says so, and gives the guider the
prototypes. The denoiser is asked with the whole batch each time, so one triggered sample costs a third
prediction of all; untriggered ones keep their bits. Only SDXL has both a bank's kind of text states and
modular blocks. diffusers marks guiders as experimental: these lines were checked on 0.42.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import (
    ComponentSpec,
    InputParam,
    OutputParam,
)
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import (
    StableDiffusionXLInputStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import (
    StableDiffusionXLTextEncoderStep,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from editforge.ground.errors import EditError
from editforge.ground.version import __version__
from editforge.guards.core import check_encoders
from editforge.guards.prototype import PrototypeGuard, PrototypeRule
from editforge.guards.words import Ask, Moment, Speaks, Texts

_LOG = logging.getLogger(__name__)
_MODEL = "stable-diffusion-xl"
_BLOCK = "block.py"


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
        return cls(**{**_options(guard), **options})

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
            away = told[layer.rows].float() - pred_uncond[layer.rows].float()
            away = away * (away.abs() > self.mask)
            g = g.index_add(0, layer.rows, -self.beta * away)
        rows = torch.cat([layer.rows for layer in self._layers]).unique()
        g, before = g[rows], plain.pred[rows].float()
        if self.rescale:
            over = list(range(1, g.ndim))
            share = before.std(dim=over, keepdim=True) / g.std(dim=over, keepdim=True)
            g = self.rescale * g * share + (1 - self.rescale) * g
        pred = plain.pred.clone()
        pred[rows] = g.to(pred)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _acting(self) -> list[Ask]:
        """What is asked in this step; nothing after the window, and where the parent does not guide."""
        steps = self._num_inference_steps
        inside = steps is None or Moment(self._step, steps, 1.0).within(self.window)
        return self._layers if self.beta and inside and self._is_cfg_enabled() else []


class PrototypeGuidanceStep(ModularPipelineBlocks):
    """The block that reads a batch's prompts and tells the pipeline's `PrototypeGuidance` whom to steer.

    It stands right after SDXL's input step, where each picture has its row; `insert` puts it there.

    Args:
        guard: a bank, or where one is: a file, a folder, a Hub repository.
    """

    model_name: Any = _MODEL

    def __init__(self, guard: PrototypeGuard | str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if guard is None:
            raise EditError(
                "PrototypeGuidanceStep needs a bank",
                next="from_pretrained(PLACE, trust_remote_code=True, guard=PLACE)",
            )
        if not isinstance(guard, PrototypeGuard):
            guard = PrototypeGuard.from_pretrained(guard)
        self.guard = guard
        # Whether, how far and how long is the guider's to say, so here it is always asked.
        self._asking = guard.with_guidance(beta=1.0, window=1.0)
        self._known: tuple[weakref.ref[Any], ...] = ()

    def __deepcopy__(self, memo: Any) -> Self:
        """Copies share the bank, which nobody changes: diffusers copies blocks at every turn."""
        return type(self)(self.guard)

    @property
    def description(self) -> str:
        """What diffusers prints of it."""
        names = ", ".join(concept.name for concept in self.guard.facts.concepts)
        return f"Steers prompts about {names} away from their prototypes (editforge)."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The guider, and the text encoders that the bank was made with."""
        return [
            _guider(self.guard),
            ComponentSpec("text_encoder", CLIPTextModel),
            ComponentSpec("text_encoder_2", CLIPTextModelWithProjection),
            ComponentSpec("tokenizer", CLIPTokenizer),
            ComponentSpec("tokenizer_2", CLIPTokenizer),
        ]

    @property
    def inputs(self) -> list[InputParam]:
        """The text states, one row for each picture."""
        return [
            InputParam("prompt_embeds", required=True, type_hint=Tensor),
            InputParam("pooled_prompt_embeds", required=True, type_hint=Tensor),
            InputParam("negative_prompt_embeds", type_hint=Tensor),
            InputParam("negative_pooled_prompt_embeds", type_hint=Tensor),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The prompts' states, of which a bank may change the triggered ones."""
        fields = ("prompt_embeds", "pooled_prompt_embeds")
        return [OutputParam(f, Tensor, kwargs_type="denoiser_input_fields") for f in fields]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Read the prompts, select for the guider.

        Raises:
            EditError: the pipeline guides with something else, or has other text encoders.
        """
        guider = components.guider
        if not isinstance(guider, PrototypeGuidance):
            raise EditError(
                "this pipeline would draw unguarded",
                got=f"its guider is a {type(guider).__name__}",
                allowed="PrototypeGuidance",
                next="pipe.update_components(guider=PrototypeGuidance.of(guard, guidance_scale=7.5))",
            )
        guider.select(())
        self._check(components)
        block: Any = self.get_block_state(state)
        given = Texts(block.prompt_embeds, block.pooled_prompt_embeds)
        reading = PrototypeRule(self._asking, Speaks(_Encoding(components))).read(given)
        prompts = reading.conditions(given)
        block.prompt_embeds, block.pooled_prompt_embeds = prompts.states, prompts.pooled
        if block.negative_prompt_embeds is not None:
            empty = Texts(block.negative_prompt_embeds, block.negative_pooled_prompt_embeds)
            guider.select(reading.asks(Moment(0, 1, guider.guidance_scale), empty), empty)
        elif reading.asks(Moment(0, 1, 1.0), given):
            _LOG.warning(
                "guidance is off, so triggered prompts are not steered away from their prototypes"
            )
        self.set_block_state(state, block)
        return components, state

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write a folder that is a Hub repository: the bank, the guider's options, the block.

        `PrototypeGuidanceStep.from_pretrained(place)` reads it without running code from it. diffusers'
        own way runs `block.py`, which imports this class, and must be told where the bank is:

            ModularPipelineBlocks.from_pretrained(place, trust_remote_code=True, guard=place)

        Args:
            save_directory: the folder.
            push_to_hub: upload it.
            **kwargs: diffusers' for that, `repo_id` among them.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.guard.save(folder / PrototypeGuard.file)
        PrototypeGuidance.of(self.guard).save_pretrained(folder)
        (folder / _BLOCK).write_text(
            '"""Needs `pip install editforge`."""\n\n'
            f"from {__name__} import {PrototypeGuidanceStep.__name__}  # noqa: F401\n",
            encoding="utf-8",
        )
        # The base class would name this file, which it does not copy, and under this class alone.
        where = f"{Path(_BLOCK).stem}.{PrototypeGuidanceStep.__name__}"
        self.register_to_config(
            auto_map={ModularPipelineBlocks.__name__: where},
            requirements={"editforge": f">={__version__}"},
        )
        self.save_config(str(folder), push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Read the bank that lies there. It runs no code from there, whatever `trust_remote_code` says.

        Args:
            pretrained_model_name_or_path: a file, a folder or a Hub repository with a bank.
            trust_remote_code: not needed.
            **kwargs: `revision` and `token` of a Hub repository.
        """
        return cls(PrototypeGuard.from_pretrained(pretrained_model_name_or_path, **kwargs))

    def _check(self, components: Any) -> None:
        """Refuse other text encoders; half a second, once for each pair of them."""
        names = ("text_encoder", "text_encoder_2")
        missing = [name for name in names if getattr(components, name, None) is None]
        if missing:
            raise EditError(
                "a guard cannot tell whose text states these are",
                got=f"a pipeline without {' and '.join(missing)}",
                next="load them too, also where prompt_embeds are given",
            )
        # Weak: a block keeps no encoder alive that the pipeline has given up.
        now = tuple(weakref.ref(getattr(components, name)) for name in names)
        if now != self._known:
            check_encoders(self.guard.facts.encoder, components)
            self._known = now


class _Declared(ModularPipelineBlocks):
    """Says which guider the pipeline has: the first block that names one decides."""

    model_name: Any = _MODEL

    def __init__(self, spec: ComponentSpec) -> None:
        super().__init__()
        self._spec = spec

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [self._spec]

    @property
    def description(self) -> str:
        return "Guides with editforge's PrototypeGuidance. Does nothing itself."

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        return components, state


class _Encoding:
    """A modular pipeline's text side, with the one method of a classic pipeline that is called."""

    def __init__(self, components: Any) -> None:
        self._components = components
        self._execution_device = components._execution_device

    def encode_prompt(
        self,
        prompt: str,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] = StableDiffusionXLTextEncoderStep.encode_prompt(
            self._components,
            prompt,
            device=device,
            num_images_per_prompt=num_images_per_prompt,
            prepare_unconditional_embeds=do_classifier_free_guidance,
        )
        return found


def insert(guard: PrototypeGuard, blocks: Any) -> Any:
    """Put a guard into SDXL's blocks, all tasks and workflows of them, and name its guider.

        blocks = insert(PrototypeGuard.from_pretrained("user/bank"), StableDiffusionXLAutoBlocks())
        pipe = blocks.init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")

    `pipe.save_pretrained` of diffusers writes neither blocks nor guider: what is loaded from there is
    not guarded, and is to be given to `guarded`.

    Args:
        guard: the bank.
        blocks: sequential blocks with SDXL's input step; changed, and returned.

    Raises:
        EditError: no such step, guarded already, or another guider than classifier-free guidance.
    """
    declared = next((s for s in blocks.expected_components if s.name == "guider"), None)
    if declared is not None:
        _check_plain(declared.type_hint)
    place = _after_input(blocks)
    if place is None:
        raise EditError(
            "a guard finds no place in these blocks",
            got=type(blocks).__name__,
            allowed="Stable Diffusion XL's, with a StableDiffusionXLInputStep in them",
        )
    holder, at = place
    holder.sub_blocks.insert("prototype_guidance", PrototypeGuidanceStep(guard), at)
    spec = _guider(guard, {} if declared is None else declared.config or {})
    blocks.sub_blocks.insert("prototype_guider", _Declared(spec), 0)
    return blocks


def guarded(guard: PrototypeGuard, pipe: Any) -> Any:
    """A guarded pipeline of the same parts, beside `pipe`, which draws what it drew.

    Args:
        guard: the bank.
        pipe: a modular pipeline of SDXL, with its components loaded.

    Raises:
        EditError: as `insert`.
    """
    _check_plain(type(pipe.guider))
    blocks = insert(guard, pipe.blocks)
    new = type(pipe)(blocks=blocks, pretrained_model_name_or_path=None)
    loaded = {name: getattr(pipe, name) for name in pipe.pretrained_component_names}
    made = {name: getattr(pipe, name) for name in pipe.config_component_names}
    made["guider"] = PrototypeGuidance.of(guard, **_plain(pipe.guider.config))
    configs = {spec.name: pipe.config[spec.name] for spec in blocks.expected_configs}
    new.update_components(**{n: p for n, p in loaded.items() if p is not None}, **configs)
    new.register_components(**made)  # update_components refuses processors of images
    return new


def _check_plain(guider: type[Any] | None) -> None:
    if guider is not ClassifierFreeGuidance:
        raise EditError(
            "a guider is there already",
            got=getattr(guider, "__name__", None),
            allowed="ClassifierFreeGuidance; a pipeline has one guider, and one bank in it",
        )


def _after_input(blocks: Any) -> tuple[Any, int] | None:
    for at, block in enumerate(blocks.sub_blocks.values()):
        if isinstance(block, StableDiffusionXLInputStep):
            return blocks, at + 1
        found = _after_input(block)
        if found is not None:
            return found
    return None


def _guider(guard: PrototypeGuard, options: Mapping[str, Any] = FrozenDict()) -> ComponentSpec:
    config = FrozenDict({"guidance_scale": 7.5, **_plain(options), **_options(guard)})
    return ComponentSpec(
        "guider", PrototypeGuidance, config=config, default_creation_method="from_config"
    )


def _options(guard: PrototypeGuard) -> dict[str, float]:
    own = guard.facts.guidance
    return {
        "beta": own.beta * guard.strength,
        "mask": own.mask,
        "rescale": own.rescale,
        "window": own.window,
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
