"""Artifact E: one checkpoint file in the published original names, SD 1.x and SDXL.

Denoiser, VAE and text encoders are renamed and streamed from the base's files; only the denoiser is
edited. The names are those of `families/original.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from editforge.artifacts.lora.header import provenance_header
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families import single_file as read
from editforge.families.original import (
    is_vae_matrix,
    long_text_name,
    openclip_names,
    unet_names,
    vae_names,
)
from editforge.ground.disk import read_json
from editforge.ground.errors import PackageError
from editforge.ground.files import DTYPES, LazyTensor, read_header, write_safetensors
from editforge.package.base import (
    Weights,
    check_fits,
    check_offered,
    check_same,
    edited_tensors,
)
from editforge.package.denoiser import SUFFIXES, precision
from editforge.package.header import ORIGINAL, modelspec_header
from editforge.recipe.export import BaseModel, Exportable

_DENOISER = "model.diffusion_model."


def check_original(model: Exportable, export: str) -> None:
    """Refuse a base that has no original format, or that readers of single files would mistake.

    Raises:
        PackageError: with what it can be exported as.
    """
    check_offered(model, export)
    known = model.family.single_file
    if model.prediction_type not in known:
        raise PackageError(
            f"a single file of family {model.family.name} cannot say how its model predicts",
            got=model.prediction_type,
            allowed=", ".join(known),
            next="export the folder instead: --export pipeline",
        )
    if not model.standard:
        raise PackageError(
            "readers of single files assume the published number of blocks",
            got=f"a distilled or changed base of family {model.family.name}",
            next="export the folder instead: --export pipeline",
        )
    unet_names(
        model.shapes
    )  # a weight without an original name is found now, not when it is written


def write_single_file(
    model: BaseModel, edit: WeightEdit, folder: Path, name: str, *, dtype: str = "base"
) -> Path:
    """Write `folder/<name>[-fp16].safetensors`; the suffix says what the file really holds.

    Raises:
        PackageError: the family has no original format, a weight without an original name, or a
            prediction type that a single file cannot say.
    """
    check_original(model, "single-file")
    denoiser = Weights.of(model)
    check_fits(edit, denoiser)
    cast = precision(dtype)
    tensors = _unet(denoiser, edit, cast) | _vae(model, cast) | _text(model, cast)
    stored = {one.dtype for one in tensors.values() if one.dtype.is_floating_point}
    tensors |= _says(model)
    only = next(iter(stored)) if len(stored) == 1 else None
    suffix = f"-{SUFFIXES[only]}" if only in SUFFIXES else ""
    path = folder / f"{name}{suffix}.safetensors"
    title = f"{name}{suffix}"
    spec = modelspec_header(model, title, edit, lora=False, implementation=ORIGINAL)
    write_safetensors(path, tensors, {**spec, **provenance_header(edit)})
    _check(path, tensors)
    return path


def check_shipped(model: BaseModel, file: Path) -> None:
    """Refuse a file whose denoiser, by its original names, has other weights than the base's.

    Raises:
        PackageError: with the first that differ.
    """
    base = Weights.of(model).shapes()
    names = unet_names(base)
    want = {f"{_DENOISER}{names[name]}": shape for name, shape in base.items()}
    table = read_header(file)[1]
    check_same(model, want, {name: table[name].shape for name in want if name in table})


def _unet(weights: Weights, edit: WeightEdit, cast: torch.dtype | None) -> dict[str, LazyTensor]:
    names = unet_names(weights.where)
    tensors = edited_tensors(weights, edit, cast)
    return {f"{_DENOISER}{names[name]}": tensor for name, tensor in tensors.items()}


def _vae(model: BaseModel, cast: torch.dtype | None) -> dict[str, LazyTensor]:
    weights = Weights.open(model.folder / "vae", model.variant)
    names = vae_names(weights.where)
    result = {}
    for name, tensor in edited_tensors(weights, None, cast).items():
        if is_vae_matrix(name) and len(tensor.shape) == 2:
            tensor = _changed(tensor, (*tensor.shape, 1, 1), _as_convolution)
        result[f"first_stage_model.{names[name]}"] = tensor
    return result


def _text(model: BaseModel, cast: torch.dtype | None) -> dict[str, LazyTensor]:
    encoders = [part.encoder for part in model.family.text]
    first = edited_tensors(Weights.open(model.folder / encoders[0], model.variant), None, cast)
    place = "cond_stage_model" if len(encoders) == 1 else "conditioner.embedders.0"
    result = {f"{place}.transformer.{long_text_name(name)}": one for name, one in first.items()}
    for encoder in encoders[1:]:
        second = edited_tensors(Weights.open(model.folder / encoder, model.variant), None, cast)
        result |= {
            f"conditioner.embedders.1.model.{name}": one for name, one in _openclip(second).items()
        }
    return result


def _openclip(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    result = {}
    for original, names in openclip_names(tensors).items():
        first = tensors[names[0]]
        if len(names) == 3:
            shape = (3 * first.shape[0], *first.shape[1:])
            parts = [tensors[name] for name in names]
            result[original] = LazyTensor(first.dtype, shape, partial(_fused, parts))
        elif original == "text_projection":
            result[original] = _changed(first, (first.shape[1], first.shape[0]), _transposed)
        else:
            result[original] = first
    return result


def _says(model: BaseModel) -> dict[str, LazyTensor]:
    """The keys by which SDXL files say how they are sampled: v, zero terminal SNR, EDM's statistics."""
    scheduler = read_json(model.folder / "scheduler" / "scheduler_config.json")
    names = [read.V_PREDICTION] if model.prediction_type == "v_prediction" else []
    names += [read.ZERO_SNR] if names and scheduler.get("rescale_betas_zero_snr") else []
    found = {name: _tensor(torch.zeros(0)) for name in names}
    if str(scheduler.get("_class_name", "")).startswith("EDM"):
        vae = read_json(model.folder / "vae" / "config.json")
        for name, key in read.EDM.items():
            if vae.get(key) is not None:
                found[name] = _tensor(
                    torch.tensor(vae[key], dtype=torch.float32).reshape(1, -1, 1, 1)
                )
    return found


def _tensor(values: Tensor) -> LazyTensor:
    return LazyTensor(values.dtype, tuple(values.shape), lambda: values)


def _changed(
    tensor: LazyTensor, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]
) -> LazyTensor:
    return LazyTensor(tensor.dtype, shape, lambda: change(tensor.load()))


def _as_convolution(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous()


def _fused(parts: list[LazyTensor]) -> Tensor:
    return torch.cat([part.load() for part in parts], dim=0)


def _check(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    _, table = read_header(path)
    wrong = [
        name
        for name, one in tensors.items()
        if DTYPES[table[name].dtype] != one.dtype or table[name].shape != one.shape
    ]
    if wrong:
        raise PackageError(f"{path.name} was written wrongly", got=", ".join(sorted(wrong)[:3]))
