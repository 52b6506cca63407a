"""LiveModel: a pipeline that is already in memory, seen as the stages see a model on disk."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from editforge.families.editable import check_acts, uncompiled
from editforge.families.encode import TextEncoder
from editforge.families.identity import (
    Identity,
    Sketch,
    adapters,
    beneath,
    components,
    identify,
    in_memory,
)
from editforge.families.model import detect
from editforge.families.schema import load_family
from editforge.ground.errors import FamilyError


class LiveModel:
    """A loaded diffusers pipeline of a known family. Reads it, never changes it.

    Args:
        pipe: the user's pipeline; text is encoded by it, maps are read from its denoiser.
        family: None detects it.

    Raises:
        FamilyError: unknown architecture; or adapters or edits of ours are on it: it is not the base.
        EditError: offloaded, quantized or fused: the maps are not what the pipeline computes with.
    """

    def __init__(self, pipe: Any, family: str | None = None) -> None:
        self._pipe, unet = pipe, uncompiled(pipe.unet)
        index = {"_class_name": type(pipe).__name__}
        self.family = load_family(family) if family else detect(index, dict(unet.config))
        self._refuse_changed()
        self._weights = {name: weight.data for name, weight in unet.named_parameters()}
        found = self.family.select({name: tuple(w.shape) for name, w in self._weights.items()})
        for path in [path for paths in found.values() for path in paths]:
            check_acts(unet, f"{path}.weight", self._weights[f"{path}.weight"])
        self.modules = {g: [f"{self.family.denoiser}.{p}" for p in ps] for g, ps in found.items()}
        self.encoder = TextEncoder(pipe, self.family)
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
