"""A judge for models without one: a CLIP model of the user's, from a folder or the Hub.

CLIP is no calibrated classifier. An image goes to the label with the nearest text; if even that one
is not near, the image is `none`. Neighbors and unrelated labels belong in the list, or everything
looks like the erased concept. The report names this judge, and one judge gives no second opinion.

`fitted` sets it by the base's own pictures x, each asked to show a label, by maximum likelihood:

    p(label | x) = softmax( s (x - m) . text of label + b(label) )

with the mean picture m, a temperature s, an offset b for each label; and `none` is what lies beyond a
line between the pictures and their wrecks. Not more: a head for each label learns the backgrounds of
its pictures, which an edit leaves as they are. On DEV such a head knew 98 % of the pictures at new
seeds, and at new prompts no more than the offsets alone (docs/judges.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from editforge.judges.clip import TEMPLATES, clip_folder
from editforge.judges.core import NONE
from editforge.judges.wrecks import wrecks

UNRELATED = ("a person", "a building", "a landscape", "an animal", "food", "an abstract pattern")
BY_KIND = {
    "object": TEMPLATES,
    "style": ("a painting in the style of {n}", "a picture by {n}", "{n}"),
    "person": ("a photo of {n}", "a portrait of {n}", "{n}"),
    "broad": ("a photo of {n}", "a picture of {n}", "{n}"),
}
_HOLD_OFFSET = 3e-3  # ridge of the offsets: a few pictures of a label do not outvote its text
_HOLD_LINE = 1e-2
_SCALE = 10.0  # cosines of pictures differ by a tenth
_WRECKED = 0.2  # the weight of all wrecks beside all pictures: fewer whole ones are lost


@dataclass(frozen=True)
class _Fit:
    """What the base's own pictures say: m, s, b, and the line to the wrecks."""

    mean: Tensor
    scale: Tensor
    offset: Tensor
    line: Tensor
    bias: Tensor


class ClipZeroShotJudge:
    """Softmax over cosine similarities to label texts, with a rejection threshold.

    Args:
        model: a local folder: `config.json`, `model.safetensors`, the tokenizer. Nothing is
            downloaded.
        labels: what to tell apart. More labels: fewer false presences.
        kinds: label to object, style, person or broad, which chooses its texts; left out: object.
        unrelated: labels added so that other content has somewhere to go.
        rejection: cosine under which even the best label is `none`, until it is fitted. Higher:
            more `none`. Real CLIP models give 0.2 to 0.3 to a fitting text.
        presence: summed probability from which a label counts as present, until it is calibrated.
        source: where the model came from, for the report.
    """

    names_things = True

    def __init__(
        self,
        model: Path,
        labels: Sequence[str],
        *,
        kinds: Mapping[str, str] | None = None,
        unrelated: Sequence[str] = UNRELATED,
        rejection: float = 0.18,
        presence: float = 0.5,
        source: Mapping[str, str] | None = None,
    ) -> None:
        self._clip = clip_folder(model)
        self.name, self.sha256 = "clip-zero-shot", self._clip.sha256
        self.source = dict(source or {})
        texts = tuple(dict.fromkeys((*labels, *unrelated)))
        self.labels = (*texts, NONE)
        self._rejection, self._presence = rejection, presence
        own = kinds or {}
        rows = [self._clip.names([t], BY_KIND[own.get(t, "object")]) for t in texts]
        self._texts = torch.cat(rows)  # (labels, width)
        self._fit: _Fit | None = None
        self._seen: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As above if fitted, else at CLIP's own temperature; a rejected image is all `none`."""
        seen, fit = self._pictures(images), self._fit
        if fit is None:
            cosines = seen @ self._texts.T
            shares = (self._clip.scale * cosines).softmax(dim=1)
            none = (cosines.max(dim=1).values < self._rejection).float()[:, None]
        else:
            shares = _logits(seen, self._texts, fit.mean, fit.scale, fit.offset).softmax(dim=1)
            none = (_SCALE * seen @ fit.line + fit.bias > 0).float()[:, None]
        return torch.cat([shares * (1 - none), none], dim=1).numpy()

    def threshold(self, labels: tuple[str, ...]) -> float:
        """The same for all labels."""
        return self._presence

    def features(self, images: NDArray[np.uint8]) -> None:
        """None: its features are not compared."""

    def fitted(
        self, images: NDArray[np.uint8], labels: Sequence[tuple[str, ...]]
    ) -> ClipZeroShotJudge:
        """Set by the base's own pictures; those of nothing in particular only say what is whole."""
        whole, broken = self._pictures(images), self._pictures(wrecks(images))
        wanted = torch.tensor([[text in own for text in self.labels[:-1]] for own in labels])
        asked = wanted.any(dim=1)
        mean = whole.mean(dim=0)
        scale, offset = self._offsets(whole[asked], wanted[asked], mean)
        line, bias = _line(whole, broken)
        found = copy(self)  # and what it has seen
        found._fit = _Fit(mean, scale, offset, line, bias)
        return found

    def _offsets(self, seen: Tensor, wanted: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self._clip.scale.detach().log().clone().requires_grad_()
        offset = torch.zeros(len(self._texts), requires_grad=True)
        shown = wanted.any(dim=0)  # a label without pictures has no offset

        def loss() -> Tensor:
            logits = _logits(seen, self._texts, mean, log_scale.exp(), offset * shown)
            right = logits.log_softmax(dim=1).masked_fill(~wanted, -torch.inf).logsumexp(dim=1)
            return _HOLD_OFFSET * offset.square().sum() - right.mean()

        _minimize(loss, [log_scale, offset])
        return log_scale.detach().exp(), offset.detach() * shown

    @torch.no_grad()
    def _pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """(n, width), each picture looked at once."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        new = {key: at for at, key in enumerate(keys) if key not in self._seen}
        if new:
            rows = self._clip.pictures(images[list(new.values())])
            self._seen.update(zip(new, rows, strict=True))
        return torch.stack([self._seen[key] for key in keys])


def _logits(seen: Tensor, texts: Tensor, mean: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return scale * (seen - mean) @ texts.T + offset


def _line(whole: Tensor, broken: Tensor) -> tuple[Tensor, Tensor]:
    """What parts pictures from their wrecks: a ridge logistic regression."""
    seen = torch.cat([whole, broken])
    wrecked = torch.cat([torch.zeros(len(whole)), torch.ones(len(broken))])
    weight = torch.where(wrecked > 0, _WRECKED, 1 - _WRECKED) / len(whole)
    line = torch.zeros(seen.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)

    def loss() -> Tensor:
        scores = _SCALE * seen @ line + bias
        fit = binary_cross_entropy_with_logits(scores, wrecked, weight, reduction="sum")
        return fit + _HOLD_LINE * line.square().sum()

    _minimize(loss, [line, bias])
    return line.detach(), bias.detach()


def _minimize(loss: Callable[[], Tensor], found: list[Tensor]) -> None:
    search = torch.optim.LBFGS(found, max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()
        return value

    search.step(closure)
