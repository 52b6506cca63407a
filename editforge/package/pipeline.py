"""Artifact D: the whole pipeline. Every file of the base is copied, the denoiser's weights are new.

Copies, because a load and `save_pretrained` alone already rewrites configs, tokenizers and the
entry of a safety checker. What is not a part of the pipeline (sample images, other frameworks'
weights, single files at the root) stays behind, and nothing that is pickled is ever copied.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.disk import read_json, write_text
from editforge.ground.errors import PackageError
from editforge.package.base import Weights, check_fits, copy_file
from editforge.package.denoiser import write_denoiser
from editforge.recipe.export import BaseModel

_DATA = (".json", ".txt", ".safetensors", ".model")
_OTHER = re.compile(r"^(flax_|tf_|openvino_|model\.onnx|.*\.non_ema)")


def write_pipeline(
    model: BaseModel, edit: WeightEdit, folder: Path, *, dtype: str = "base"
) -> list[Path]:
    """Write a pipeline folder that `from_pretrained` loads, safety checker as the base has it.

    Guarantee: every file outside the denoiser equals the base's byte for byte, with one exception:
    a `_name_or_path` that holds a path of the machine that saved a local base is replaced by the
    base's label. A component that the base has only in a suffixed file gets an unsuffixed copy.

    Returns:
        The denoiser's weight files.

    Raises:
        PackageError: a component without safetensors weights, or an edit that does not fit.
    """
    denoiser = model.family.denoiser
    check_fits(edit, Weights.of(model))
    index = read_json(model.folder / "model_index.json")
    components = sorted(name for name, value in index.items() if _is_component(value))
    for name in components:
        if not (model.folder / name).is_dir():
            raise PackageError(
                f"the base names a component {name} that it does not have",
                got="model_index.json",
                next="download the whole pipeline",
            )
    copy_file(model.folder / "model_index.json", folder / "model_index.json", model)
    for name in components:
        if name != denoiser:
            _copy_component(model, name, folder / name)
    return write_denoiser(model, edit, folder / denoiser, dtype=dtype)


def _is_component(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[1] is not None


def _copy_component(model: BaseModel, name: str, target: Path) -> None:
    source = model.folder / name
    files = [path for path in sorted(source.iterdir()) if path.is_file() and _is_ours(path)]
    pickled = [path.name for path in source.iterdir() if path.suffix in (".bin", ".pt", ".ckpt")]
    weights = [path for path in files if path.suffix == ".safetensors"]
    if pickled and not weights:
        raise PackageError(
            f"the weights of {name} are pickled, and pickles are never shipped",
            got=", ".join(sorted(pickled)[:3]),
            next="convert them to safetensors first",
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        copy_file(path, target / path.name, model)
    if weights and model.variant is not None:
        _add_unsuffixed(target, model.variant)


def _is_ours(path: Path) -> bool:
    return path.suffix in _DATA and not path.name.startswith(".") and not _OTHER.match(path.name)


def _add_unsuffixed(target: Path, variant: str) -> None:
    """A folder that holds suffixed files alone does not load without naming the variant."""
    for stem in ("diffusion_pytorch_model", "model"):
        plain = target / f"{stem}.safetensors"
        index = target / f"{stem}.safetensors.index.json"
        if plain.is_file() or index.is_file():
            continue
        suffixed = target / f"{stem}.{variant}.safetensors"
        shards = target / f"{stem}.safetensors.index.{variant}.json"
        if suffixed.is_file():
            shutil.copyfile(suffixed, plain)
        elif shards.is_file():
            body = read_json(shards)
            told = {name: _plain(file, variant) for name, file in body["weight_map"].items()}
            for file in set(body["weight_map"].values()):
                shutil.copyfile(target / file, target / _plain(file, variant))
            write_text(index, json.dumps({**body, "weight_map": told}, indent=2) + "\n")


def _plain(file: str, variant: str) -> str:
    """The unsuffixed name of one shard: `model.fp16-00001-of-00002` or `model-00001-of-00002.fp16`."""
    return file.replace(f".{variant}", "", 1)
