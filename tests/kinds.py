"""Checkpoints as people have them, built tiny from real classes: what `docs/checkpoints.md` lists.

    path, options = build(tmp_path, KINDS["SDXL, v-prediction, one file"])

Each kind is a tiny model of the real block structure, changed where the kind differs: config, class,
scheduler, dtype, names in the file. Published files of these kinds were not opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from transformers import BertConfig, BertModel

from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.original import openclip_names, unet_names, vae_names
from editforge.ground.files import read_tensors, write_safetensors
from editforge.package.single_file import write_single_file
from tests.tiny import TEXT_WIDTHS, save_tiny, tiny_model, tiny_pipeline

NULL = WeightEdit({}, exact_rank=0)
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One kind.

    Args:
        base: tiny model that it is made from.
        make: from a folder to write into to what the user names, and options of `model`.
        reads: what is expected of it: family, class of diffusers, prediction type; or
        refused: a part of the refusal.
    """

    base: str
    make: Callable[[Path, str], tuple[Path, dict[str, Any]]]
    reads: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None


def folder(
    *,
    unet: Mapping[str, Any] | None = None,
    cls: str | None = None,
    scheduler: tuple[str, Mapping[str, Any]] | None = None,
    after: Callable[[Path], None] = lambda place: None,
    **options: Any,
) -> Any:
    """A pipeline folder: the tiny model with another denoiser, class or scheduler."""

    def make(place: Path, base: str) -> tuple[Path, dict[str, Any]]:
        pipe = tiny_pipeline(base)
        if unet is not None:
            torch.manual_seed(0)
            pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, **unet)
        if scheduler is not None:
            name, changes = scheduler
            kind = getattr(diffusers, name)
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
        pipe.save_pretrained(place / "base")
        if cls is not None:
            rewrite(place / "base" / "model_index.json", _class_name=cls)
        after(place / "base")
        return place / "base", dict(options)

    return make


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def one_file(
    *,
    make: Any = None,
    dtype: torch.dtype = torch.float32,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda table: table,
    vae: bool = False,
) -> Any:
    """A single file in the published names, of a folder that stays beside it for its configs."""

    def build(place: Path, base: str) -> tuple[Path, dict[str, Any]]:
        source, _ = (make or folder())(place / "of", base)
        path = write_single_file(tiny_model(source, base), NULL, place, "file")
        table = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in read_tensors(path).items()
        }
        write_safetensors(path, change(table), {})
        options = {"config": str(source)}
        if vae:
            options["vae"] = str(source)
        return path, options

    return build


def without(*prefixes: str) -> Any:
    return lambda table: {n: t for n, t in table.items() if not n.startswith(prefixes)}


def with_keys(*names: str) -> Any:
    return lambda table: {**table, **{name: torch.zeros(0) for name in names}}


def drop_a_block(place: Path) -> None:
    table = read_tensors(place / UNET)
    kept = {
        name: one for name, one in table.items() if not name.startswith("up_blocks.2.attentions")
    }
    write_safetensors(place / UNET, kept, {})


def in_fp8(place: Path) -> None:
    table = {n: t.to(torch.float8_e4m3fn) for n, t in read_tensors(place / UNET).items()}
    write_safetensors(place / UNET, table, {})


def bert(place: Path) -> None:
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    for path in (place / "text_encoder").iterdir():
        path.unlink()
    BertModel(config).save_pretrained(place / "text_encoder")
    index = json.loads((place / "model_index.json").read_text())
    rewrite(place / "model_index.json", **{**index, "text_encoder": ["transformers", "BertModel"]})


def refiner(place: Path) -> None:
    """The second encoder alone, four levels, as the published refiner has them."""
    index = json.loads((place / "model_index.json").read_text())
    nothing = [None, None]
    rewrite(
        place / "model_index.json",
        **{**index, "text_encoder": nothing, "tokenizer": nothing},
        requires_aesthetics_score=True,
    )


REFINER = {
    "cross_attention_dim": TEXT_WIDTHS["sdxl"][1],
    "block_out_channels": (8, 16, 32, 32),
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": [2, 2, 4, 4],
    "projection_class_embeddings_input_dim": 5 * 4 + TEXT_WIDTHS["sdxl"][1],
}


def refiner_file(place: Path, base: str) -> tuple[Path, dict[str, Any]]:
    source, _ = folder(unet=REFINER, cls="StableDiffusionXLImg2ImgPipeline", after=refiner)(
        place / "of", base
    )
    unet = read_tensors(source / UNET)
    vae = read_tensors(source / "vae" / "diffusion_pytorch_model.safetensors")
    text = read_tensors(source / "text_encoder_2" / "model.safetensors")
    table = {f"model.diffusion_model.{new}": unet[old] for old, new in unet_names(unet).items()}
    for old, new in vae_names(vae).items():
        one = vae[old]
        square = ".mid.attn_1." in new and one.ndim == 2
        table[f"first_stage_model.{new}"] = one[:, :, None, None] if square else one
    for new, old in openclip_names(text).items():
        one = torch.cat([text[name] for name in old]) if len(old) == 3 else text[old[0]]
        one = one.T.contiguous() if new == "text_projection" else one
        table[f"conditioner.embedders.0.model.{new}"] = one
    path = place / "refiner.safetensors"
    write_safetensors(path, table, {})
    return path, {"config": str(source)}


def other_file(names: tuple[str, ...], suffix: str = ".safetensors") -> Any:
    def build(place: Path, base: str) -> tuple[Path, dict[str, Any]]:
        path = place / f"other{suffix}"
        place.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {name: torch.zeros(4, 4) for name in names}, {})
        return path, {}

    return build


def sharded(place: Path, base: str) -> tuple[Path, dict[str, Any]]:
    """fp16 files alone, the text encoder and the denoiser in shards."""
    root = save_tiny(place / "base", base, variant="fp16", dtype=torch.float16, shard="100KB")
    from transformers import CLIPTextModel

    for path in (root / "text_encoder").glob("*.safetensors"):
        path.unlink()
    encoder: CLIPTextModel = tiny_pipeline(base).text_encoder.half()
    encoder.save_pretrained(root / "text_encoder", variant="fp16", max_shard_size="20KB")
    return root, {"variant": "fp16"}


DISTILLED = {"layers_per_block": 1, "mid_block_type": None}
DISTILLED_XL = {
    "transformer_layers_per_block": [1, 2, 4],
    "reverse_transformer_layers_per_block": [4, 2, 1],
}
TRAILING = {"timestep_spacing": "trailing"}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **TRAILING}
ZSNR = ("EulerDiscreteScheduler", ZERO_SNR)
TURBO = ("EulerAncestralDiscreteScheduler", TRAILING)
LCM = ("LCMScheduler", {"original_inference_steps": 50})
EDM = ("EDMDPMSolverMultistepScheduler", {"sigma_max": 80.0, "sigma_min": 0.002})
INPAINT, PIX2PIX = {"in_channels": 9}, {"in_channels": 8}


def latents(place: Path) -> None:
    rewrite(place / "vae" / "config.json", latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0] * 4)


_SD, _XL = "StableDiffusion", "StableDiffusionXL"
KINDS: dict[str, Checkpoint] = {
    "SD 1.x, folder": Checkpoint("sd1", folder(), {"family": "sd1"}),
    "SD 1.x, one file": Checkpoint("sd1", one_file(), {"family": "sd1"}),
    "SD 1.x, one file in fp16": Checkpoint(
        "sd1", one_file(dtype=torch.float16), {"family": "sd1", "dtype": torch.float16}
    ),
    "SD 1.x, one file in fp8": Checkpoint(
        "sd1", one_file(dtype=torch.float8_e4m3fn), {"family": "sd1", "dtype": torch.float16}
    ),
    "SD 1.x, fp16 variant in shards": Checkpoint(
        "sd1", sharded, {"family": "sd1", "dtype": torch.float16}
    ),
    "SD 1.x inpainting, folder": Checkpoint(
        "sd1",
        folder(unet=INPAINT, cls=f"{_SD}InpaintPipeline"),
        {"family": "sd1", "class": f"{_SD}InpaintPipeline"},
    ),
    "SD 1.x inpainting, one file": Checkpoint(
        "sd1",
        one_file(make=folder(unet=INPAINT, cls=f"{_SD}InpaintPipeline")),
        {"family": "sd1", "class": f"{_SD}InpaintPipeline"},
    ),
    "InstructPix2Pix, folder": Checkpoint(
        "sd1",
        folder(unet=PIX2PIX, cls=f"{_SD}InstructPix2PixPipeline"),
        {"family": "sd1", "class": f"{_SD}InstructPix2PixPipeline"},
    ),
    "distilled SD 1.x (small-sd, BK-SDM), folder": Checkpoint(
        "sd1", folder(unet=DISTILLED), {"family": "sd1", "distilled": True}
    ),
    "LCM of SD 1.x, folder": Checkpoint(
        "sd1",
        folder(unet={"time_cond_proj_dim": 8}, cls="LatentConsistencyModelPipeline", scheduler=LCM),
        {"family": "sd1", "class": "LatentConsistencyModelPipeline", "steps": 4},
    ),
    "SD Turbo, folder": Checkpoint(
        "sd2",
        folder(scheduler=("EulerDiscreteScheduler", {**TRAILING, "prediction_type": "epsilon"})),
        {"family": "sd2", "steps": 4, "guidance": 0.0},
    ),
    "SD 2.x, v-prediction, folder": Checkpoint(
        "sd2", folder(), {"family": "sd2", "predicts": "v_prediction"}
    ),
    "SDXL, folder": Checkpoint("sdxl", folder(), {"family": "sdxl"}),
    "SDXL, one file in fp16": Checkpoint(
        "sdxl", one_file(dtype=torch.float16), {"family": "sdxl", "dtype": torch.float16}
    ),
    "SDXL, v-prediction, folder": Checkpoint(
        "sdxl", folder(scheduler=ZSNR), {"family": "sdxl", "predicts": "v_prediction"}
    ),
    "SDXL, v-prediction, one file (NoobAI)": Checkpoint(
        "sdxl",
        one_file(change=with_keys("v_pred", "ztsnr")),
        {"family": "sdxl", "predicts": "v_prediction"},
    ),
    "SDXL with EDM (Playground 2.5), folder": Checkpoint(
        "sdxl", folder(scheduler=EDM, after=latents), {"family": "sdxl", "guidance": 3.0}
    ),
    "SDXL Turbo, folder": Checkpoint(
        "sdxl", folder(scheduler=TURBO), {"family": "sdxl", "steps": 4, "guidance": 0.0}
    ),
    "SDXL inpainting, folder": Checkpoint(
        "sdxl",
        folder(unet=INPAINT, cls=f"{_XL}InpaintPipeline"),
        {"family": "sdxl", "class": f"{_XL}InpaintPipeline"},
    ),
    "distilled SDXL (SSD-1B), folder": Checkpoint(
        "sdxl", folder(unet=DISTILLED_XL), {"family": "sdxl", "distilled": True}
    ),
    "SDXL refiner, folder": Checkpoint(
        "sdxl",
        folder(unet=REFINER, cls=f"{_XL}Img2ImgPipeline", after=refiner),
        {"family": "sdxl-refiner", "class": f"{_XL}Img2ImgPipeline"},
    ),
    "SDXL refiner, one file": Checkpoint(
        "sdxl", refiner_file, {"family": "sdxl-refiner", "class": f"{_XL}Img2ImgPipeline"}
    ),
    "one file without a VAE, with `model.vae`": Checkpoint(
        "sd1", one_file(change=without("first_stage_model."), vae=True), {"family": "sd1"}
    ),
    "one file without a VAE": Checkpoint(
        "sd1",
        lambda place, base: (one_file(change=without("first_stage_model."))(place, base)[0], {}),
        refused="has no VAE",
    ),
    "one file without a text encoder": Checkpoint(
        "sd1", one_file(change=without("cond_stage_model.")), refused="has no text encoder"
    ),
    "fp8 with scales (`scaled_fp8`), one file": Checkpoint(
        "sd1", one_file(change=with_keys("scaled_fp8")), refused="quantized with scales"
    ),
    "fp8, folder": Checkpoint("sd1", folder(after=in_fp8), refused="stored in eight bits"),
    "a folder whose denoiser lacks a block": Checkpoint(
        "sd1", folder(after=drop_a_block), refused="lacks 78 of the weights that its own config"
    ),
    "a text encoder that is BERT": Checkpoint(
        "sd1", folder(after=bert), refused="another text side"
    ),
    "an upscaler (7 channels)": Checkpoint(
        "sd2", folder(unet={"in_channels": 7}), refused="3 channels beside the noise"
    ),
    "Flux, one file": Checkpoint(
        "sd1",
        other_file(("model.diffusion_model.double_blocks.0.img_attn.qkv.weight",)),
        refused="no Stable Diffusion checkpoint",
    ),
    "a LoRA in place of a checkpoint": Checkpoint(
        "sd1",
        other_file(("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",)),
        refused="no Stable Diffusion checkpoint",
    ),
    "a pickled checkpoint": Checkpoint(
        "sd1", other_file(("a",), ".ckpt"), refused="unpickling can run code"
    ),
}


def build(place: Path, kind: Checkpoint) -> tuple[Path, dict[str, Any]]:
    """What the user names, and the options of `model` that go with it."""
    place.mkdir(parents=True, exist_ok=True)
    return kind.make(place, kind.base)
