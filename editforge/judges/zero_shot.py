"""A judge for models without one: a CLIP model that the user has on disk.

CLIP is no calibrated classifier. An image goes to the label with the nearest text; if even that one
is not near, the image is `none`. Neighbors and unrelated labels belong in the list, or everything
looks like the erased concept. The report names this judge, and one judge gives no second opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from editforge.judges.clip import TEMPLATES, clip_folder
from editforge.judges.core import NONE

UNRELATED = ("a person", "a building", "a landscape", "an animal", "food", "an abstract pattern")


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
        templates: Sequence[str] = TEMPLATES,
        unrelated: Sequence[str] = UNRELATED,
        rejection: float = 0.18,
        presence: float = 0.5,
    ) -> None:
        self._clip = clip_folder(model, templates)
        self.name, self.sha256 = "clip-zero-shot", self._clip.sha256
        texts = tuple(dict.fromkeys((*labels, *unrelated)))
        self.labels = (*texts, NONE)
        self._rejection, self._presence = rejection, presence
        self._texts = self._clip.names(texts)  # (labels, width)

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax at CLIP's own temperature; a rejected image is all `none`."""
        cosines = self._clip.pictures(images) @ self._texts.T
        shares = (self._clip.scale * cosines).softmax(dim=1)
        rejected = (cosines.max(dim=1).values < self._rejection).float()[:, None]
        return torch.cat([shares * (1 - rejected), rejected], dim=1).numpy()

    def threshold(self, labels: tuple[str, ...]) -> float:
        """The same for all labels."""
        return self._presence

    def features(self, images: NDArray[np.uint8]) -> None:
        """None: its features are not compared."""
