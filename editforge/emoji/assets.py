"""The shipped files of the embedded model: verified, then loaded with stock classes.

Only the files of the part that is asked for are hashed, once a process: 50 MB take 40 ms. A file
that is missing or changed is refused by name, because every number the evaluation prints depends
on these bytes. Torch and diffusers are imported where a model is built, not before.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from editforge.emoji.manifest import Manifest, read
from editforge.ground.errors import PackageError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer, PreTrainedModel

_ASSETS = Path(__file__).parent / "assets"

CREDIT = "Art: Noto, Blob, Twemoji, Fluent, EmojiOne, FxEmoji; licenses in ATTRIBUTION.md"
"""One line for every contact sheet; the full text is `attribution()`."""


def folder() -> Path:
    """The folder of the embedded pipeline, each file checked against its digest."""
    return _verified("pipeline")


def verified() -> dict[Path, str]:
    """Each file of the embedded pipeline with the sha256 that `folder` has found it to have."""
    _verified("pipeline")
    return {_ASSETS / name: v for name, v in _digests().items() if name.startswith("pipeline/")}


def attribution() -> Path:
    """ATTRIBUTION.md: art sources and licenses, which travel with the weights."""
    return _verified("ATTRIBUTION.md")


@functools.cache
def manifest() -> Manifest:
    """What the embedded model knows; see `Manifest`."""
    return read(_verified("manifest.json"))


def words() -> tuple[str, ...]:
    """The 180 names an eraser may know: all but RETAIN-60, in manifest order."""
    return manifest().words


def load_pipeline(
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> StableDiffusionPipeline:
    """The embedded model as the stock pipeline with its shipped DDIM scheduler.

    Args:
        dtype: None is float32, which the float16 files convert to exactly.
        device: where the weights go.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    pipe: Any = StableDiffusionPipeline.from_pretrained(folder(), local_files_only=True)
    pipe.text_encoder.to(torch.float32)  # transformers keeps the file's float16, diffusers does not
    if dtype not in (None, torch.float32):
        pipe.to(dtype)
    placed: StableDiffusionPipeline = pipe.to(device)
    return placed


def load_clip() -> tuple[CLIPModel, CLIPTokenizer]:
    """The whole CLIP in float32, whose text tower is the pipeline's, and its tokenizer."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    path = _verified("clip")
    model = CLIPModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    return model.eval(), CLIPTokenizer.from_pretrained(path, local_files_only=True)


def load_judge(which: Literal["a", "b"]) -> PreTrainedModel:
    """Judge a (ResNet) or b (ConvNeXt) in float32: RGB 64 px in [-1, 1], 240 names and `none`."""
    import torch
    from transformers import AutoModelForImageClassification

    judge: PreTrainedModel = AutoModelForImageClassification.from_pretrained(
        _verified(_judge_folder(which)), dtype=torch.float32, local_files_only=True
    )
    return judge.eval()


def judge_digest(which: Literal["a", "b"]) -> str:
    """The sha256 of a judge's weights, as recorded beside every number it produced."""
    return _digests()[f"{_judge_folder(which)}/model.safetensors"]


def pipeline_digest() -> str:
    """The sha256 over the digests of all files of the embedded pipeline."""
    entries = [f"{v}  {k}\n" for k, v in sorted(_digests().items()) if k.startswith("pipeline/")]
    return hashlib.sha256("".join(entries).encode()).hexdigest()


def _judge_folder(which: str) -> str:
    if which not in ("a", "b"):
        raise PackageError("no such judge", got=which, allowed="a, b")
    return f"judge_{which}"


@functools.cache
def _digests() -> dict[str, str]:
    path = _ASSETS / "digests.json"
    if not path.is_file():
        raise _damaged("is missing", "digests.json")
    digests: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return digests


@functools.cache
def _verified(part: str) -> Path:
    for name, digest in _digests().items():
        if name == part or name.startswith(part + "/"):
            path = _ASSETS / name
            if not path.is_file():
                raise _damaged("is missing", name)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise _damaged(f"has changed (sha256 {found[:12]}, expected {digest[:12]})", name)
    return _ASSETS / part


def _damaged(what: str, name: str) -> PackageError:
    return PackageError(
        f"a file of the embedded model {what}",
        got=f"editforge/emoji/assets/{name}",
        next="reinstall editforge: pip install --force-reinstall editforge",
    )
