"""The two judges of the embedded model, with thresholds measured on its own samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from editforge import emoji
from editforge.ground.errors import PackageError
from editforge.judges.calibration import calibration, label_key
from editforge.judges.core import NONE

_BATCH = 128


class EmojiJudge:
    """Judge a (ResNet) or b (ConvNeXt): 240 names and `none`, float32.

    Args:
        which: a or b.
    """

    def __init__(self, which: Literal["a", "b"]) -> None:
        self._which = which
        self._model = emoji.load_judge(which)
        self.name = f"emoji-{which}"
        self.sha256 = emoji.judge_digest(which)
        names: Any = self._model.config.id2label
        self.labels: tuple[str, ...] = tuple(names[index] for index in range(len(names)))
        if (*emoji.manifest().names, NONE) != self.labels:
            raise PackageError(f"{self.name} has other labels than the manifest")

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Softmax over the 241 classes."""
        rows = [self._model(pixel_values=batch).logits.softmax(dim=1) for batch in _batches(images)]
        return torch.cat(rows).numpy()

    def threshold(self, labels: tuple[str, ...]) -> float:
        """The calibrated threshold of a name with its twins, or of a whole group."""
        return calibration().thresholds[self._which][label_key(labels)]

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The feature maps after each stage."""
        maps = [
            self._model(pixel_values=batch, output_hidden_states=True).hidden_states
            for batch in _batches(images)
        ]
        return [torch.cat(stage).numpy() for stage in zip(*maps, strict=True)]


def _batches(images: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(images[start : start + _BATCH]).permute(0, 3, 1, 2)
        # One layout for all: another one is summed in another order, and the last bit differs.
        yield batch.contiguous().float() / 127.5 - 1  # (n, 3, 64, 64) in [-1, 1]
