"""Tiny real pipelines, built in code from real diffusers and transformers classes; no download.

The block structure is that of the real architectures, so weight names equal those of Stable
Diffusion 1.x, 2.x and XL, and every shipped family matches with its own module counts. Only the
widths are tiny; `tiny_family` is the shipped family with them.

    folder = save_tiny(tmp_path / "base", "sd1")            # a pipeline folder
    model = tiny_model(folder, "sd1")                       # what the exporters take
    edit = random_edit(model, rank=2, seed=0)               # a WeightEdit of cross attention
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.schema import Family, SamplerDefaults, TextSlice, load_family
from editforge.ground.disk import sha256_file
from editforge.ground.files import read_header, read_tensors, write_safetensors

KINDS = ("sd1", "sd2", "sdxl")
TEXT_WIDTHS = {"sd1": (24,), "sd2": (40,), "sdxl": (24, 40)}
WORDS = tuple(
    word
    for line in (
        "a an of in on the and photo image picture drawing art style painting red blue green",
        "violin trumpet guitar piano cello cat dog horse lighthouse boat tree house grass water",
        "van gogh monet",
    )
    for word in line.split()
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits, ten times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level alphabet, then merges until each word of WORDS is one token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = _merge([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            tokens.append(pieces[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    unique = list(dict.fromkeys(tokens))
    return {token: index for index, token in enumerate(unique)}, merges


def _merge(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: apply the merges in the order of their rank."""
    for left, right in merges:
        position = 0
        while position < len(pieces) - 1:
            if (pieces[position], pieces[position + 1]) == (left, right):
                pieces[position : position + 2] = [left + right]
            position += 1
    return pieces


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(
        vocab=dict(vocabulary), merges=list(merges), pad_token=pad_token, model_max_length=77
    )


def _text_config(width: int, layers: int, activation: str) -> CLIPTextConfig:
    size = len(_vocabulary()[0])
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def _unet(kind: str) -> UNet2DConditionModel:
    shared = {
        "sample_size": 8,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": sum(TEXT_WIDTHS[kind]),
        "use_linear_projection": kind != "sd1",
    }
    if kind == "sdxl":
        return UNet2DConditionModel(
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[2, 2, 4],
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + TEXT_WIDTHS[kind][1],
            **shared,
        )
    return UNet2DConditionModel(block_out_channels=(8, 16, 32, 32), attention_head_dim=2, **shared)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def _scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def _safety_checker() -> StableDiffusionSafetyChecker:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=16)
    return StableDiffusionSafetyChecker(config)


def tiny_pipeline(kind: str, *, seed: int = 0, safety: bool = False) -> Any:
    """A pipeline of real classes with random weights; the caller's random state is untouched."""
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "vae": _vae(),
            "unet": _unet(kind),
            "scheduler": _scheduler(prediction),
            "tokenizer": tiny_tokenizer(),
        }
        activation = "gelu" if kind == "sd2" else "quick_gelu"
        parts["text_encoder"] = CLIPTextModel(_text_config(TEXT_WIDTHS[kind][0], 2, activation))
        if kind == "sdxl":
            # The readers of single files know SDXL by a weight of layer 9 of the second encoder.
            second = _text_config(TEXT_WIDTHS[kind][1], 10, "gelu")
            parts["text_encoder_2"] = CLIPTextModelWithProjection(second)
            parts["tokenizer_2"] = tiny_tokenizer("!")
            pipe: Any = StableDiffusionXLPipeline(**parts)
        else:
            checker = _safety_checker() if safety else None
            size = {"shortest_edge": 32}
            crop = {"height": 32, "width": 32}
            processor = CLIPImageProcessor(size=size, crop_size=crop) if safety else None
            pipe = StableDiffusionPipeline(
                **parts,
                safety_checker=checker,
                feature_extractor=processor,
                requires_safety_checker=safety,
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny(
    folder: Path,
    kind: str,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    safety: bool = False,
    long_names: bool = False,
    shard: str | None = None,
) -> Path:
    """Write a tiny pipeline folder.

    Args:
        variant: file name infix, `fp16` for example; `dtype` is cast for real.
        long_names: text encoder weights with `text_model.`, as published checkpoints have them.
        shard: maximal shard size of the denoiser, `50KB` for example.
    """
    pipe = tiny_pipeline(kind, seed=seed, safety=safety).to(dtype=dtype)
    pipe.save_pretrained(folder, variant=variant)
    if shard is not None:
        for path in (folder / "unet").glob("*.safetensors"):
            path.unlink()
        pipe.unet.save_pretrained(folder / "unet", max_shard_size=shard, variant=variant)
    if long_names:
        for path in (folder / "text_encoder").glob("*.safetensors"):
            tensors = read_tensors(path)
            renamed = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
            write_safetensors(path, renamed, {})
    return folder


def tiny_family(kind: str) -> Family:
    """The shipped family with the widths of the tiny model; module counts are the shipped ones."""
    shipped = load_family(kind)
    text = tuple(
        TextSlice.model_validate({**part.model_dump(), "width": width})
        for part, width in zip(shipped.text, TEXT_WIDTHS[kind], strict=True)
    )
    match = shipped.match.model_copy(update={"text_width": sum(TEXT_WIDTHS[kind])})
    sampler = SamplerDefaults(steps=4, guidance=shipped.sampler.guidance, size=64)
    # thousands of words that a tiny tokenizer spells out cost seconds in every process
    changes = {"text": text, "match": match, "sampler": sampler, "words": None}
    return shipped.model_copy(update=changes)


@dataclass(frozen=True)
class TinyModel:
    """The part of a model that exporters read."""

    family: Family
    folder: Path
    variant: str | None = None
    label: str = "tiny-org/tiny-model"
    revision: str | None = "0123456789abcdef0123456789abcdef01234567"
    prediction_type: str = "epsilon"
    base_sha256: str = ""
    base_sketch: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = "creativeml-openrail-m"
    license_name: str | None = None
    license_link: str | None = None
    local: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return denoiser_shapes(self.folder)

    @property
    def standard(self) -> bool:
        return self.family.published(self.family.select(self.shapes))

    @property
    def pipeline_class(self) -> str:
        return self.family.match.pipeline


def tiny_model(folder: Path, kind: str, **changes: Any) -> TinyModel:
    """The model object of a folder that `save_tiny` wrote."""
    weights = sorted((folder / "unet").glob("*.safetensors"))
    digest = hashlib.sha256("".join(sha256_file(path) for path in weights).encode()).hexdigest()
    defaults = {
        "base_sha256": digest,
        "prediction_type": "v_prediction" if kind == "sd2" else "epsilon",
    }
    return TinyModel(tiny_family(kind), folder, **{**defaults, **changes})


def denoiser_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Weight names and shapes of a folder's denoiser, from the file headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted((folder / "unet").glob("*.safetensors")):
        shapes |= {name: info.shape for name, info in read_header(path)[1].items()}
    return shapes


def random_edit(
    model: TinyModel,
    *,
    rank: int = 2,
    seed: int = 0,
    strength: float = 1.0,
    size: float = 0.3,
    provenance: Mapping[str, Any] | None = None,
    groups: Sequence[str] = ("key", "value"),
) -> WeightEdit:
    """A WeightEdit of the family's modules with one shared A, as a closed form makes it."""
    shapes = denoiser_shapes(model.folder)
    chosen = model.family.select(shapes)
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, model.family.text_width, generator=generator)
    factors = {}
    for group in groups:
        for path in chosen[group]:
            out = shapes[f"{path}.weight"][0]
            factors[f"unet.{path}"] = LowRank(size * torch.randn(out, rank, generator=generator), A)
    given = tiny_provenance(model) if provenance is None else provenance
    return WeightEdit(factors, {}, strength, rank, given)


def tiny_provenance(model: TinyModel) -> dict[str, Any]:
    """Provenance with every key that a run writes: violin becomes trumpet."""
    return {
        "method": "uce",
        "preset": "editforge",
        "family": model.family.name,
        "base_model": model.label,
        "base_revision": model.revision,
        "base_sha256": model.base_sha256,
        "erased": [
            {"name": "violin", "aliases": ["fiddle"], "kind": "object", "target": "trumpet"}
        ],
        "combined": "one concept",
        "seed": 0,
        "preserve": ["trumpet", "guitar"],
        "checks": {},
        "recipe_sha256": "0" * 64,
        "editforge_version": "0.1.0",
    }


def draw(pipe: Any, prompt: str = "a photo of a violin", *, seed: int = 0) -> torch.Tensor:
    """One image in [0, 1] from fixed noise, (1, 3, 64, 64)."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        result = pipe(
            prompt,
            num_inference_steps=4,
            guidance_scale=5.0,
            height=64,
            width=64,
            generator=generator,
            output_type="pt",
        )
    return result.images
