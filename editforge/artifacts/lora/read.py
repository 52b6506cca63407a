"""From a LoRA file, ours or a stranger's, back to a WeightEdit; everything is checked first.

Reads format A (`unet.<module>.lora_A.weight`, scale from the adapter metadata) and format B
(`lora_unet_..._lora_down.weight`, scale alpha / rank, 1 without alpha). What a WeightEdit cannot
hold (text encoders, convolutions larger than 1x1, DoRA, LoHa, LoKr) is refused by name, never
skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.keys import LAYOUTS, kohya_modules
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header, read_tensors

_A_ENDS = {".lora_A.weight": "A", ".lora_B.weight": "B"}
_B_ENDS = {".lora_down.weight": "A", ".lora_up.weight": "B", ".alpha": "alpha"}


def read_lora(path: Path) -> WeightEdit:
    """Read a LoRA file, or the one in a folder, as a WeightEdit of strength 1.

    Raises:
        PackageError: damaged, not a LoRA of a denoiser, or with parts a WeightEdit cannot hold.
    """
    file = _find(path)
    metadata, table = read_header(file)
    for name, info in table.items():
        if info.dtype not in ("F32", "F16", "BF16", "F64") and not name.endswith(".alpha"):
            raise PackageError(f"{file.name}: {name} is not a floating tensor", got=info.dtype)
    kohya = any(name.startswith("lora_") for name in table)
    parts = _split(file.name, list(table), _B_ENDS if kohya else _A_ENDS)
    tensors = read_tensors(file)
    adapter = {} if kohya else _adapter(file.name, metadata)
    factors = {}
    for stem, names in sorted(parts.items()):
        module = _kohya_module(file.name, stem) if kohya else _module(file.name, stem)
        if module in factors:
            raise PackageError(f"{file.name} holds {module} twice")
        down, up = (
            _matrix(tensors[names["A"]], names["A"]),
            _matrix(tensors[names["B"]], names["B"]),
        )
        if down.shape[0] != up.shape[1]:
            got = f"{tuple(up.shape)} and {tuple(down.shape)}"
            raise PackageError(f"{file.name}: the factors of {stem} do not fit", got=got)
        alpha = _alpha(tensors[names["alpha"]], stem) if "alpha" in names else None
        if not kohya:
            alpha = adapter.get(module.partition(".")[0])
        scale = 1.0 if alpha is None else alpha / max(1, down.shape[0])
        factors[module] = LowRank((scale * up.double()).float(), down.float())
    rank = max(pair.rank for pair in factors.values())
    return WeightEdit(factors, {}, 1.0, rank, _provenance(metadata))


def _find(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix != ".safetensors":
            raise PackageError(
                "a LoRA is read from safetensors alone",
                got=path.name,
                next="pickled files can run code: convert it to safetensors first",
            )
        return path
    usual = path / "pytorch_lora_weights.safetensors"
    others = sorted(path.glob("*.safetensors"))
    if usual.is_file():
        return usual
    if len(others) == 1:
        return others[0]
    raise PackageError(
        "no LoRA file, or more than one, in this folder",
        got=", ".join(file.name for file in others[:4]) or path.name,
        allowed=usual.name,
        next="name the file itself",
    )


def _split(source: str, names: list[str], ends: Mapping[str, str]) -> dict[str, dict[str, str]]:
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for name in names:
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            unknown.append(name)
        else:
            parts.setdefault(name.removesuffix(end), {})[ends[end]] = name
    if unknown or not parts:
        raise PackageError(
            f"{source} is not a plain LoRA: {len(unknown)} tensors of another kind",
            got=", ".join(sorted(unknown)[:3]) or "an empty file",
            allowed=", ".join(f"*{end}" for end in {**_A_ENDS, **_B_ENDS}),
            next="editforge inspect FILE shows what it holds",
        )
    for stem, found in parts.items():
        if not {"A", "B"} <= set(found):
            raise PackageError(
                f"{source}: {stem} has only one factor", got=", ".join(found.values())
            )
    return parts


def _module(source: str, stem: str) -> str:
    component, _, inner = stem.partition(".")
    if component != "unet" or not inner:
        raise PackageError(
            f"{source} holds factors of another component than the denoiser",
            got=stem,
            allowed="unet.<module>",
            next="a file without the prefix was saved by the model, not by the pipeline",
        )
    return stem


def _kohya_module(source: str, stem: str) -> str:
    for family in LAYOUTS:
        if stem in kohya_modules(family):
            return f"unet.{kohya_modules(family)[stem]}"
    raise PackageError(
        f"{source} holds a module no known UNet has",
        got=stem,
        allowed="lora_unet_<module> of Stable Diffusion 1.x, 2.x, XL; no text encoder",
    )


def _matrix(tensor: Tensor, name: str) -> Tensor:
    if tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
        return tensor[:, :, 0, 0]
    if tensor.ndim != 2:
        raise PackageError(f"{name} is not a matrix", got=tuple(tensor.shape))
    return tensor


def _alpha(tensor: Tensor, stem: str) -> float:
    if tensor.numel() != 1:
        raise PackageError(f"{stem}.alpha is not one number", got=tuple(tensor.shape))
    return float(tensor)


def _adapter(source: str, metadata: Mapping[str, str]) -> dict[str, float]:
    """Component to alpha. Settings that change the sum, and are not read here, are refused."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        body: Any = json.loads(text)
        alphas: dict[str, float] = {}
        for key, value in body.items():
            component, _, setting = key.partition(".")
            if setting == "lora_alpha":
                alphas[component] = float(value)
            elif setting in ("use_dora", "use_rslora", "lora_bias", "alpha_pattern") and value:
                raise PackageError(
                    f"{source} uses {setting}, which is not read", got=str(value)[:80]
                )
        return alphas
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError, RecursionError):
        raise PackageError(f"the adapter metadata of {source} is damaged", got=text[:80]) from None


def _provenance(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What our own header says: no aliases, kind or seed, which only `editforge.json` has.

    A stranger's file has none, a damaged list counts as none.
    """
    names = {key: metadata.get(f"editforge.{key}") for key in ("method", "recipe_sha256")}
    names |= {key: metadata.get(f"editforge.{key}") for key in ("base_model", "base_revision")}
    result: dict[str, Any] = {key: value for key, value in names.items() if value}
    try:
        concepts = json.loads(metadata.get("editforge.concepts", "[]"))
        targets = json.loads(metadata.get("editforge.targets", "[]"))
        result["erased"] = [
            {"name": str(name), "target": str(target)}
            for name, target in zip(concepts, targets, strict=True)
        ]
    except (json.JSONDecodeError, TypeError, ValueError):
        result["erased"] = []
    return result
