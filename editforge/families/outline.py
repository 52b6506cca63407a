"""A model without its weights: what its configs, tokenizers and file names say.

A plan needs names read, maps counted and sizes summed. The text encoders and the denoiser are built on
the meta device: they have shapes and no numbers, so nothing of a large model is read or downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from editforge.families.encode import TextEncoder
from editforge.families.promised import outlined
from editforge.families.sampling import Sampler, own_sampler
from editforge.families.schema import Family
from editforge.ground.disk import read_json
from editforge.ground.errors import FamilyError


@dataclass(frozen=True)
class Outline:
    """A base model as its configs describe it.

    Args:
        folder: the pipeline folder, or one with its configs and tokenizers alone.
        family: its family.
        device: where a run would draw.
        sizes: bytes of each weight file, by its path in the repository.
        label: what may be said about where it came from.
        downloads: path to bytes of what a run would have to fetch first.
        variant: suffix of the weight files.
        steps: of a picture, if the user says; so is guidance.
    """

    folder: Path
    family: Family
    device: str
    sizes: Mapping[str, int]
    label: str
    downloads: Mapping[str, int]
    variant: str | None = None
    steps: int | None = None
    guidance: float | None = None

    @cached_property
    def reader(self) -> TextEncoder:
        """Reads and counts texts with the model's tokenizers; cannot encode them."""
        return reader(self.folder, self.family)

    @cached_property
    def denoiser(self) -> Any:
        """The UNet on the meta device."""
        from diffusers import UNet2DConditionModel

        return outlined(
            UNet2DConditionModel, read_json(self.folder / self.family.denoiser / "config.json")
        )

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of the denoiser's weights."""
        return {name: tuple(weight.shape) for name, weight in self.denoiser.state_dict().items()}

    @cached_property
    def paths(self) -> list[str]:
        """All text-consuming modules, in name order.

        Raises:
            FamilyError: the denoiser has other maps than its family.
        """
        return sorted(path for paths in self._modules.values() for path in paths)

    @property
    def standard(self) -> bool:
        """Whether it has as many maps as the family's published checkpoints."""
        return self.family.published(self._modules)

    @cached_property
    def _modules(self) -> dict[str, list[str]]:
        return self.family.select(self.shapes, self.denoiser.config)

    @cached_property
    def _scheduler(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / "scheduler" / "scheduler_config.json")
        return found

    @property
    def prediction_type(self) -> str:
        """What the denoiser predicts: epsilon or v_prediction."""
        return str(self._scheduler.get("prediction_type", "epsilon"))

    @property
    def sampler(self) -> Sampler:
        """How a run would draw it."""
        config, told = self.denoiser.config, self._scheduler
        return own_sampler(self.family, config, told, steps=self.steps, guidance=self.guidance)

    def bytes_of(self, component: str) -> int:
        """Bytes of one component's weight files."""
        return sum(size for name, size in self.sizes.items() if name.startswith(f"{component}/"))

    def image_flops(self, steps: int, guidance: float, size: int | None) -> float:
        """Floating point operations of one picture: the denoiser's steps, and the decoder once.

        A step with guidance is two forwards. Counted on the meta device, so it costs a second.
        """
        from diffusers import AutoencoderKL

        decoder = outlined(AutoencoderKL, read_json(self.folder / "vae" / "config.json"))
        factor = 2 ** (len(decoder.config.block_out_channels) - 1)
        config = self.denoiser.config
        side = size // factor if size else config.sample_size
        with torch.device("meta"):
            noise = torch.empty(1, config.in_channels, side, side)
            latents = torch.empty(1, config.out_channels, side, side)
            states = torch.empty(1, self.reader.window, self.family.text_width)
            more: dict[str, Any] = {}
            if config.addition_embed_type == "text_time":
                pooled = torch.empty(1, self.family.text[-1].width)
                times = config.projection_class_embeddings_input_dim - pooled.shape[1]
                ids = torch.empty(1, times // config.addition_time_embed_dim)  # a refiner has five
                more = {"text_embeds": pooled, "time_ids": ids}
            time = torch.empty((), dtype=torch.long)
        step = _flops(lambda: self.denoiser(noise, time, states, added_cond_kwargs=more))
        return steps * (1 + (guidance > 1)) * step + _flops(lambda: decoder.decode(latents))


def reader(folder: Path, family: Family) -> TextEncoder:
    """The text side without its weights: real tokenizers, encoders on the meta device.

    Raises:
        FamilyError: a tokenizer or a config is missing or damaged.
    """
    import transformers

    index = read_json(folder / "model_index.json")
    parts = {}
    try:
        for part in family.text:
            tokenizer = getattr(transformers, index[part.tokenizer][1])
            parts[part.tokenizer] = tokenizer.from_pretrained(
                folder / part.tokenizer, local_files_only=True
            )
            encoder = getattr(transformers, index[part.encoder][1])
            config = encoder.config_class.from_pretrained(folder / part.encoder)
            with torch.device("meta"):
                parts[part.encoder] = encoder(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FamilyError(
            "this pipeline folder does not load",
            got=" ".join(str(error).split())[:300],
            next="download it again; safetensors alone are read",
        ) from None
    return TextEncoder(SimpleNamespace(**parts), family)


def _flops(call: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


def wanted(names: Iterable[str], components: Collection[str], variant: str | None) -> list[str]:
    """Which files of a repository a run downloads: configs, tokenizers, and weights in safetensors.

    Of a component that has files of the variant those alone; of others the unsuffixed ones, as
    loaders do. What lies beside the components is no part of a pipeline.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder in components or name == "model_index.json":
            folders.setdefault(folder, []).append(file)
    chosen = []
    for folder, files in folders.items():
        shard = r"(-\d{5}-of-\d{5})?\.safetensors"
        suffixed = [n for n in files if variant and re.fullmatch(rf"[^.]+\.{variant}{shard}", n)]
        plain = [n for n in files if re.fullmatch(rf"[^.]+{shard}", n)]
        texts = [n for n in files if n.endswith((".json", ".txt"))]
        chosen += [f"{folder}/{n}".lstrip("/") for n in (*texts, *(suffixed or plain))]
    return chosen
