"""LiveModel: a pipeline that is already in memory, seen as the stages see a model on disk."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from editforge.families.editable import check_acts, check_here, uncompiled
from editforge.families.encode import TextEncoder
from editforge.families.fits import check_channels, encoder_fault
from editforge.families.identity import (
    Identity,
    Sketch,
    adapters,
    beneath,
    components,
    identify,
    in_memory,
)
from editforge.families.sampling import Sampler, own_sampler
from editforge.families.schema import Family, TextSlice, load_family, shipped_families
from editforge.ground.errors import FamilyError


class LiveModel:
    """A loaded diffusers pipeline of a known family, of any class. Reads it, never changes it.

    Args:
        pipe: the user's pipeline; text is encoded by it, maps are read from its denoiser.
        family: None detects it.
        clip_skip: as for `Model`; so are the next two.
        steps: of a picture; None: as the pipeline's kind is drawn.
        guidance: see steps.

    Raises:
        FamilyError: unknown architecture, or adapters or edits of ours on it: it is not the base.
        EditError: offloaded, quantized or fused: the maps are not what the pipeline computes with.
    """

    def __init__(
        self,
        pipe: Any,
        family: str | None = None,
        *,
        clip_skip: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        self._drawn: dict[str, Any] = {"steps": steps, "guidance": guidance}
        self._pipe, unet = pipe, uncompiled(getattr(pipe, "unet", None))
        if unet is None:
            raise _unlike(pipe, "a pipeline whose denoiser is no UNet", "pipe.unet is not there")
        self.family = load_family(family) if family else detect_in_memory(pipe)
        self._refuse_changed()
        self._weights = {name: weight.data for name, weight in unet.named_parameters()}
        shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        found = self.family.select(shapes, unet.config)
        for path in [path for paths in found.values() for path in paths]:
            check_acts(unet, f"{path}.weight", self._weights[f"{path}.weight"])
        self.modules = {g: [f"{self.family.denoiser}.{p}" for p in ps] for g, ps in found.items()}
        for part in self.family.text:
            check_here(part.encoder, getattr(pipe, part.encoder))
        self.encoder = TextEncoder(_reads_text(pipe), self.family, self.family.clip_skip(clip_skip))
        self.prediction_type = str(pipe.scheduler.config.get("prediction_type", "epsilon"))
        self.label, self.device = "a pipeline in memory", str(pipe.device)
        self.revision: str | None = None

    @property
    def paths(self) -> list[str]:
        """All text-consuming modules, key and value, in name order."""
        return sorted(path for paths in self.modules.values() for path in paths)

    def weight(self, path: str) -> Tensor:
        """One map's weight (out, d), as it is now, on the CPU, where the closed forms compute."""
        return self._weights[f"{path.partition('.')[2]}.weight"].detach().cpu()

    @property
    def sampler(self) -> Sampler:
        """How its pictures are drawn."""
        scheduler = self._pipe.scheduler
        told = {**scheduler.config, "_class_name": type(scheduler).__name__}
        config = uncompiled(self._pipe.unet).config
        return own_sampler(self.family, config, told, **self._drawn)

    def pipeline(self) -> Any:
        """The user's own pipeline: whoever changes it puts it back."""
        return self._pipe

    @cached_property
    def identity(self) -> Identity:
        """The same as of its files; computed when it is asked for, before anything changes it."""
        return identify(in_memory(self._pipe, components(self.family)), self.family)

    @property
    def base_sha256(self) -> str:
        """Digest of the denoiser's and the text encoders' values; see `Identity`."""
        return self.identity.sha256

    @property
    def base_sketch(self) -> Sketch:
        """A few numbers that tell this base from another within a dtype's rounding."""
        return self.identity.sketch

    @property
    def digest(self) -> str:
        """Nothing of it lies in files: what it is made of says which one it is."""
        return self.base_sha256

    @property
    def drawn_by(self) -> str | None:
        """Nobody can say: the pipeline is its user's, with whatever hooks and parts it has."""
        return None

    def _refuse_changed(self) -> None:
        for component in components(self.family):
            module = getattr(self._pipe, component, None)
            if found := adapters(module):
                raise FamilyError(
                    "this pipeline has LoRA adapters loaded",
                    got=f"{', '.join(found)} on its {component}",
                    allowed="the base alone: what is computed from an adapter's states belongs to it",
                    next="pipe.unload_lora_weights() first, load them again afterwards",
                )
        if edits := beneath.get(uncompiled(self._pipe.unet)):
            raise FamilyError(
                "an edit is applied to this pipeline",
                got=f"{len(edits)} of its weights are edited",
                allowed="the base alone",
                next="edit.remove(pipe) first; to erase both: editforge.erase(pipe, [NAME, NAME])",
            )


def detect_in_memory(pipe: Any) -> Family:
    """The shipped family that the parts of a pipeline make, whatever task its class is for.

    Image to image, inpainting with the base's own UNet, ControlNet and others share these parts.

    Raises:
        FamilyError: another UNet or another kind of text encoder, by name.
    """
    config = uncompiled(pipe.unet).config
    width = config.get("cross_attention_dim")
    families = [load_family(name) for name in shipped_families()]
    fitting = [family for family in families if family.match.text_width == width]
    if not fitting:
        known = "; ".join(f"{f.name} (text width {f.match.text_width})" for f in families)
        raise FamilyError(
            "unknown architecture",
            got=f"{type(pipe).__name__}, text width {width}",
            allowed=known,
            next="describe it in a family YAML: editforge.erase(pipe, ..., family='my.yaml')",
        )
    problems = []
    for family in fitting:
        problem = next(filter(None, (_no_encoder(pipe, part) for part in family.text)), None)
        if problem is None:
            check_channels(family, config)
            return family
        problems.append(problem)
    raise _unlike(pipe, f"another text side than family {fitting[0].name} has", problems[0])


def _reads_text(pipe: Any) -> Any:
    """A pipeline of the same encoders that has `encode_prompt`: InstructPix2Pix has none of its own."""
    if hasattr(pipe, "encode_prompt"):
        return pipe
    from diffusers import StableDiffusionPipeline

    rest = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        requires_safety_checker=False,
        **rest,
    )


def _no_encoder(pipe: Any, part: TextSlice) -> str | None:
    encoder = uncompiled(getattr(pipe, part.encoder, None))
    name = None if encoder is None else type(encoder).__name__
    width = getattr(getattr(encoder, "config", None), "hidden_size", None)
    return encoder_fault(part, f"pipe.{part.encoder}", name, width)


def _unlike(pipe: Any, what: str, got: str) -> FamilyError:
    return FamilyError(
        f"this pipeline has {what}",
        got=f"{type(pipe).__name__}: {got}",
        allowed="any pipeline made of a family's UNet and text encoders: editforge list families",
        next="load the base checkpoint in a pipeline, for example StableDiffusionPipeline",
    )
