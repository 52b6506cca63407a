"""CLIP's two towers: how alike two texts or two pictures are to a model that has seen both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from editforge import emoji
from editforge.ground.disk import sha256_file
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled
from editforge.ground.places import is_hub_id

TEMPLATES = ("a photo of {a}", "a picture of {a}", "{n}")
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 64
_WEIGHTS = "model.safetensors"
_ALLOWED = (
    "a folder with config.json, model.safetensors and the tokenizer, or a Hub id: OWNER/NAME, "
    "OWNER/NAME@REVISION"
)


class Clip:
    """Both towers in float32; every row that they give has length 1.

    Args:
        model: a `CLIPModel`; kept, for who needs its layers.
        tokenizer: its own.
        mean: of the pixels it was trained on, by channel, as shares of white.
        std: their deviation.
        templates: texts whose mean stands for a name; `{a}` is the name with its article.
        sha256: of its weights.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        mean: Sequence[float] = _OPENAI_MEAN,
        std: Sequence[float] = _OPENAI_STD,
        templates: Sequence[str] = TEMPLATES,
        sha256: str = "",
    ) -> None:
        self.model, self.tokenizer, self.sha256 = model, tokenizer, sha256
        self._mean, self._std = np.array(mean), np.array(std)
        self._templates = tuple(templates)
        self.scale: Tensor = model.logit_scale.exp()

    @torch.no_grad()
    def names(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """(n, width): the mean over the templates of what the text tower makes of each name."""
        return torch.stack([self._name(name, templates or self._templates) for name in names])

    @torch.no_grad()
    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """(n, width) of n pictures (n, height, width, 3) uint8 RGB, resized to the tower's side."""
        parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        seen = [self.model.get_image_features(self._pixels(part)).pooler_output for part in parts]
        return torch.cat([normalize(rows, dim=-1) for rows in seen])

    def _name(self, name: str, templates: Sequence[str]) -> Tensor:
        texts = [filled(template, name) for template in templates]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        vectors = normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
        return normalize(vectors.mean(dim=0), dim=-1)

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        side = self.model.config.vision_config.image_size
        resized = [
            Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC) for i in images
        ]
        scaled = (np.stack([np.asarray(i) for i in resized]) / 255 - self._mean) / self._std
        return torch.from_numpy(scaled).permute(0, 3, 1, 2).float()


def clip_folder(folder: Path, templates: Sequence[str] = TEMPLATES) -> Clip:
    """A CLIP model that the user has on disk; nothing is downloaded, nothing unpickled.

    Args:
        folder: `config.json`, `model.safetensors`, the tokenizer; `preprocessor_config.json` says
            what pixels it was trained on, else they are OpenAI's.
        templates: see `Clip`.

    Raises:
        RecipeError: no such folder.
    """
    from transformers import CLIPModel, CLIPTokenizer

    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise RecipeError(
            "no CLIP model there",
            got=str(folder),
            allowed=_ALLOWED,
        )
    model = CLIPModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Clip(
        model,
        tokenizer,
        mean=config.get("image_mean", _OPENAI_MEAN),
        std=config.get("image_std", _OPENAI_STD),
        templates=templates,
        sha256=sha256_file(weights),
    )


def clip_place(which: str) -> Path:
    """A CLIP folder on disk; a Hub id is downloaded into the Hub's cache, safetensors alone.

    Args:
        which: a folder, or `OWNER/NAME`, or `OWNER/NAME@REVISION`.

    Raises:
        RecipeError: neither a folder nor a repository that can be had.
    """
    place = Path(which).expanduser()
    name, _, revision = which.partition("@")
    if place.exists() or not is_hub_id(name):
        return place
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["*.json", "*.txt", "model.safetensors"],
            )
        )
    except Exception as error:  # the client raises many kinds; each means that it is not here
        raise _not_had(which, error) from None


def clip_source(which: str, place: Path) -> dict[str, str]:
    """What a report says of where a CLIP model came from; of a local folder nothing."""
    name, _, revision = which.partition("@")
    if Path(which).expanduser().exists() or not is_hub_id(name):
        return {}
    asked = {"asked": revision} if revision else {}
    return {"id": name, "revision": place.name, **asked}


def check_clip(which: str) -> None:
    """Refuse a folder without its files, and a Hub repository that has no CLIP model to give.

    Asks the Hub for the head of one file unless that is in its cache; downloads nothing.

    Raises:
        RecipeError: with what is lacking.
    """
    place = Path(which).expanduser()
    name, _, revision = which.partition("@")
    if place.exists() or not is_hub_id(name):
        lacking = [one for one in ("config.json", _WEIGHTS) if not (place / one).is_file()]
        if lacking:
            raise RecipeError(
                "no judge there",
                got=f"{which} has no {' and no '.join(lacking)}",
                allowed=_ALLOWED,
            )
        return
    if in_hub_cache(which):
        return
    from huggingface_hub import file_exists

    try:
        found = file_exists(name, _WEIGHTS, revision=revision or None)
    except Exception as error:
        raise _not_had(which, error) from None
    if not found:
        raise _not_had(which, f"no {_WEIGHTS} there; pickled weights are not read")


def in_hub_cache(which: str) -> bool:
    """Whether the weights of a Hub id are on this computer."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = which.partition("@")
    return isinstance(try_to_load_from_cache(name, _WEIGHTS, revision=revision or None), str)


def _not_had(which: str, why: object) -> RecipeError:
    return RecipeError(
        "this CLIP model cannot be had from the Hub",
        got=f"{which}: {' '.join(str(why).split())[:160]}",
        allowed=_ALLOWED,
    )


def load_clip(which: str | None, family_name: str) -> Clip | None:
    """The CLIP that goes with a judge: `family` is the embedded model's own, a folder is that one."""
    if which is None or (which == "family" and family_name != "emoji"):
        return None
    if which != "family":
        return clip_folder(clip_place(which))
    half = (0.5, 0.5, 0.5)  # it was trained on pixels from -1 to 1
    seen = ("{n}", "{a}", "an emoji of {a}")
    return Clip(*emoji.load_clip(), mean=half, std=half, templates=seen)
