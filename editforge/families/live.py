"""LiveModel: a pipeline that is already in memory, seen as the stages see a model on disk."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from editforge.families.editable import check_acts, check_here, uncompiled
from editforge.families.encode import TextEncoder
from editforge.families.model import detect
from editforge.families.schema import load_family
from editforge.ground.errors import FamilyError


class LiveModel:
    """A loaded diffusers pipeline of a known family. Reads it, never changes it.

    Args:
        pipe: the user's pipeline; text is encoded by it, maps are read from its denoiser.
        family: None detects it.

    Raises:
        FamilyError: unknown architecture, or adapters are loaded: the maps would not be the base's.
        EditError: offloaded, quantized or fused: the maps are not what the pipeline computes with.
    """

    def __init__(self, pipe: Any, family: str | None = None) -> None:
        self._pipe, unet = pipe, uncompiled(pipe.unet)
        index = {"_class_name": type(pipe).__name__}
        self.family = load_family(family) if family else detect(index, dict(unet.config))
        if getattr(pipe.unet, "peft_config", None):
            raise FamilyError(
                "this pipeline has LoRA adapters loaded",
                got=", ".join(pipe.unet.peft_config),
                next="pipe.unload_lora_weights() first, load them again afterwards",
            )
        self._weights = {name: weight.data for name, weight in unet.named_parameters()}
        found = self.family.select({name: tuple(w.shape) for name, w in self._weights.items()})
        for path in [path for paths in found.values() for path in paths]:
            check_acts(unet, f"{path}.weight", self._weights[f"{path}.weight"])
        self.modules = {g: [f"{self.family.denoiser}.{p}" for p in ps] for g, ps in found.items()}
        for part in self.family.text:
            check_here(part.encoder, getattr(pipe, part.encoder))
        self.encoder = TextEncoder(pipe, self.family)
        self.prediction_type = str(pipe.scheduler.config.get("prediction_type", "epsilon"))
        self.label, self.device = "a pipeline in memory", str(pipe.device)
        self.revision: str | None = None
        self.base_sha256 = self.digest = self._hash()

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

    def _hash(self) -> str:
        """Of the maps alone: enough to tell two bases apart, cheap for a pipeline in memory."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(self.weight(path).detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()
