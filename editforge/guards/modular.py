"""A prototype guard in a modular pipeline of diffusers: the block that reads the prompts.

A guider sees embeddings and no text, and keeps numbers and no tensors. So the bank lies in a block: it
reads the prompts, changes a triggered one's states where the bank says so, and gives the guider the
prototypes. The denoiser is asked with the whole batch each time, so one triggered sample costs a third
prediction of all; untriggered ones keep their bits. Only SDXL has both a bank's kind of text states and
modular blocks. diffusers marks guiders as experimental: these lines were checked on 0.42.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
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
from editforge.guards.guider import PrototypeGuidance as PrototypeGuidance
from editforge.guards.guider import options_of
from editforge.guards.prototype import PrototypeGuard, PrototypeRule
from editforge.guards.words import Moment, Speaks, Texts

_LOG = logging.getLogger(__name__)
_MODEL = "stable-diffusion-xl"
_BLOCK = "block.py"


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
    config = FrozenDict({"guidance_scale": 7.5, **_plain(options), **options_of(guard)})
    return ComponentSpec(
        "guider", PrototypeGuidance, config=config, default_creation_method="from_config"
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
