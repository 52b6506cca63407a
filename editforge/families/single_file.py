"""A single-file checkpoint as a pipeline folder, with the file's own class, dtypes and prediction type.

diffusers knows the key maps of the published layouts. What it does not ask a file is asked here, of its
header alone: which of the pipelines it is for, in which dtype each part is stored, whether a part is
missing, and the two keys by which SDXL files say that they predict v.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editforge.ground.errors import FamilyError
from editforge.ground.files import DTYPES, TensorInfo, read_header

PICKLED = (".ckpt", ".bin", ".pt", ".pth")
V_PREDICTION = "v_pred"
ZERO_SNR = "ztsnr"
EDM = {"edm_mean": "latents_mean", "edm_std": "latents_std"}  # a file's key to the VAE's config
_DENOISER, _DECODER = "model.diffusion_model.", "first_stage_model."
_FIRST_CONV = f"{_DENOISER}input_blocks.0.0.weight"
_SECOND_ENCODER = "conditioner.embedders.1."
_REFINER = "conditioner.embedders.0.model."
_TEXT = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.transformer."),
    "text_encoder_2": (_SECOND_ENCODER, _REFINER),
}
_CLASSES = {
    ("sd", 4): "StableDiffusionPipeline",
    ("sd", 8): "StableDiffusionInstructPix2PixPipeline",
    ("sd", 9): "StableDiffusionInpaintPipeline",
    ("sdxl", 4): "StableDiffusionXLPipeline",
    ("sdxl", 8): "StableDiffusionXLInstructPix2PixPipeline",
    ("sdxl", 9): "StableDiffusionXLInpaintPipeline",
    ("refiner", 4): "StableDiffusionXLImg2ImgPipeline",
}
Table = Mapping[str, TensorInfo]


def convert(path: Path, folder: Path, *, configs: str | None, decoder: str | None) -> None:
    """Write `folder`, a pipeline with the values, dtypes and prediction type of the file.

    Args:
        path: `.safetensors` in the published original names.
        folder: new or empty.
        configs: pipeline folder or Hub id with configs and tokenizers; None: diffusers fetches them.
        decoder: folder or Hub id of an AutoencoderKL, for a file that has none.

    Guarantee: a part stored in one dtype keeps it; of several, the widest; eight bits become float16,
    which holds all of their values.

    Raises:
        FamilyError: pickled, a part missing, another architecture, or what diffusers cannot read.
    """
    import diffusers

    if path.suffix in PICKLED:
        raise FamilyError(
            "this checkpoint is pickled, and unpickling can run code",
            got=path.name,
            allowed=".safetensors",
            next="convert it to safetensors on a machine you can afford to lose",
        )
    _, table = read_header(path)
    cls = getattr(diffusers, pipeline_class(path.name, table))
    dtypes = _dtypes(path.name, table)
    extra: dict[str, Any] = {"config": configs} if configs else {}
    if not any(name.startswith(_DECODER) for name in table):
        extra["vae"] = _decoder(path.name, decoder, configs)
    widest = max(dtypes.values(), key=lambda dtype: dtype.itemsize)
    try:
        pipe = cls.from_single_file(str(path), dtype=widest, **extra)
    except Exception as error:  # diffusers raises many kinds; each means the same to the user
        raise FamilyError(
            "this single file does not load",
            got=" ".join(str(error).split())[:300],
            next="offline, name a folder with its configs: --set model.config=FOLDER",
        ) from None
    for name, dtype in dtypes.items():
        part = getattr(pipe, name, None)
        if part is not None:
            part.to(dtype)
    if V_PREDICTION in table:
        changes: dict[str, Any] = {"prediction_type": "v_prediction"}
        if ZERO_SNR in table:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
    pipe.save_pretrained(folder)


def pipeline_class(file: str, table: Table) -> str:
    """The class of diffusers that a file is for, from its names and the shape of its first convolution.

    Raises:
        FamilyError: no denoiser of a known layout, no text encoder, or channels nobody knows.
    """
    if _FIRST_CONV not in table:
        raise FamilyError(
            "this single file holds no Stable Diffusion checkpoint",
            got=f"{file}: {_looks_like(table)}",
            allowed="SD 1.x, SD 2.x, SDXL or its refiner, in the published original names",
            next="name the checkpoint itself, or a pipeline folder",
        )
    if not any(
        name.startswith(place) for places in _TEXT.values() for place in places for name in table
    ):
        raise FamilyError(
            "this single file has no text encoder",
            got=file,
            allowed="a whole checkpoint: an edit is computed from what its text encoder says",
            next="name the checkpoint or the pipeline folder that this denoiser belongs to",
        )
    if any(name.startswith(_SECOND_ENCODER) for name in table):
        family = "sdxl"
    else:
        family = "refiner" if any(name.startswith(_REFINER) for name in table) else "sd"
    channels = table[_FIRST_CONV].shape[1]
    if (family, channels) not in _CLASSES:
        raise FamilyError(
            "the denoiser of this single file reads something unknown beside the noise",
            got=f"{file}: {channels} channels",
            allowed="4; 8 with a picture; 9 with a picture and a mask",
            next="an upscaler or a depth model is none of these: erase from its base model",
        )
    return _CLASSES[family, channels]


def _looks_like(table: Table) -> str:
    signs = {
        "lora": "a LoRA",
        "double_blocks": "Flux",
        "joint_blocks": "Stable Diffusion 3",
        "down_blocks": "a denoiser in diffusers names",
    }
    found = (what for sign, what in signs.items() if any(sign in name for name in table))
    return next(found, f"{len(table)} tensors, {next(iter(sorted(table)), 'none')} among them")


def _dtypes(file: str, table: Table) -> dict[str, Any]:
    """The dtype that each part of the pipeline is stored in.

    Raises:
        FamilyError: eight bits with scales of their own.
    """
    import torch

    scaled = next((n for n in table if n.endswith((".scale_weight", "scaled_fp8"))), None)
    if scaled is not None:
        raise FamilyError(
            "the weights of this single file are quantized with scales of their own",
            got=f"{file}: {scaled}",
            allowed="float16, bfloat16, float32, or plain fp8",
            next="name the 16-bit file that it was made from",
        )
    found = {}
    for part, places in {"unet": (_DENOISER,), "vae": (_DECODER,), **_TEXT}.items():
        own = {DTYPES[info.dtype] for name, info in table.items() if name.startswith(places)}
        floats = [torch.float16 if d.itemsize == 1 else d for d in own if d.is_floating_point]
        if floats:
            mixed = len(set(floats)) > 1 and all(dtype.itemsize == 2 for dtype in floats)
            # float16 and bfloat16 hold each other's values only in float32
            found[part] = torch.float32 if mixed else max(floats, key=lambda dtype: dtype.itemsize)
    return found


def _decoder(file: str, place: str | None, configs: str | None) -> Any:
    from diffusers import AutoencoderKL

    for name in (place, configs):
        if name is None:
            continue
        folder = Path(name).expanduser() / "vae"
        inside = {"subfolder": "vae"} if folder.is_dir() or name == configs else {}
        try:
            return AutoencoderKL.from_pretrained(name, use_safetensors=True, **inside)
        except (OSError, ValueError) as error:
            if name == place:
                raise FamilyError(
                    "no VAE there",
                    got=f"model.vae = {name}: {' '.join(str(error).split())[:160]}",
                    allowed="a folder or Hub id of an AutoencoderKL in safetensors",
                ) from None
    raise FamilyError(
        "this single file has no VAE",
        got=file,
        allowed="a whole checkpoint, or a VAE beside it",
        next="--set model.vae=stabilityai/sd-vae-ft-mse, or a folder",
    )
