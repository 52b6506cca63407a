"""A judge for models without one: a CLIP model that the user has on disk.

CLIP is no calibrated classifier. An image goes to the label with the nearest text; if even that one
is not near, the image is `none`. Neighbors and unrelated labels belong in the list, or everything
looks like the erased concept. The report names this judge, and one judge gives no second opinion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from editforge.ground.disk import sha256_file
from editforge.ground.errors import RecipeError
from editforge.ground.names import with_article
from editforge.judges.core import NONE

UNRELATED = ("a person", "a building", "a landscape", "an animal", "food", "an abstract pattern")
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 64
_Floats = NDArray[np.float64]


class ClipZeroShotJudge:
    """Softmax over cosine similarities to label texts, with a rejection threshold.

    Args:
        model: a local folder: `config.json`, `model.safetensors`, the tokenizer. Nothing is
            downloaded.
        labels: what to tell apart. More labels: fewer false presences.
        templates: texts whose mean stands for a label; `{a}` is the label with its article.
        unrelated: labels added so that other content has somewhere to go.
        rejection: cosine under which even the best label is `none`. Higher: more `none`. Real
            CLIP models give 0.2 to 0.3 to a fitting text.
        presence: summed probability from which a label counts as present.
    """

    def __init__(
        self,
        model: Path,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("a photo of {a}", "a picture of {a}", "{n}"),
        unrelated: Sequence[str] = UNRELATED,
        rejection: float = 0.18,
        presence: float = 0.5,
    ) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        weights = model / "model.safetensors"
        if not weights.is_file():
            raise RecipeError(
                "no CLIP model there",
                got=str(model),
                allowed="a folder with config.json, model.safetensors and the tokenizer",
            )
        self.name, self.sha256 = "clip-zero-shot", sha256_file(weights)
        texts = tuple(dict.fromkeys((*labels, *unrelated)))
        self.labels = (*texts, NONE)
        self._rejection, self._presence = rejection, presence
        self._model = CLIPModel.from_pretrained(
            model, dtype=torch.float32, local_files_only=True, use_safetensors=True
        ).eval()
        tokenizer = CLIPTokenizer.from_pretrained(model, local_files_only=True)
        self._size, self._mean, self._std = _preprocessing(model, self._model)
        with torch.no_grad():
            self._texts = torch.stack(
                [self._embedded(tokenizer, text, templates) for text in texts]
            )  # (labels, width)

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax at CLIP's own temperature; a rejected image is all `none`."""
        rows = []
        for start in range(0, len(images), _BATCH):
            pixels = self._pixels(images[start : start + _BATCH])
            seen = normalize(self._model.get_image_features(pixels).pooler_output, dim=-1)
            cosines = seen @ self._texts.T
            shares = (self._model.logit_scale.exp() * cosines).softmax(dim=1)
            rejected = (cosines.max(dim=1).values < self._rejection).float()[:, None]
            rows.append(torch.cat([shares * (1 - rejected), rejected], dim=1))
        return torch.cat(rows).numpy()

    def threshold(self, labels: tuple[str, ...]) -> float:
        """The same for all labels."""
        return self._presence

    def features(self, images: NDArray[np.uint8]) -> None:
        """None: its features are not compared."""

    def _embedded(self, tokenizer: Any, label: str, templates: Sequence[str]) -> torch.Tensor:
        texts = [template.format(a=with_article(label), n=label) for template in templates]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        vectors = normalize(self._model.get_text_features(**tokens).pooler_output, dim=-1)
        return normalize(vectors.mean(dim=0), dim=-1)

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        side = (self._size, self._size)
        resized = [Image.fromarray(i).resize(side, Image.Resampling.BICUBIC) for i in images]
        scaled = (np.stack([np.asarray(i) for i in resized]) / 255 - self._mean) / self._std
        return torch.from_numpy(scaled).permute(0, 3, 1, 2).float()


def _preprocessing(folder: Path, model: Any) -> tuple[int, _Floats, _Floats]:
    """Side, mean and deviation: of `preprocessor_config.json`, else OpenAI's."""
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mean, std = config.get("image_mean", _OPENAI_MEAN), config.get("image_std", _OPENAI_STD)
    return model.config.vision_config.image_size, np.array(mean), np.array(std)
