"""What candidates look like: the base's own pictures of them, judged. methods.md 3.8, step 5.

Spelling cannot tell that a whale is drawn like a dolphin, nor that a model draws no shrimp that anybody
would know. So the leading candidates are drawn from the base model. What is taken for the erased concept
is a synonym to the eye; what is not taken for itself is no target, because whatever becomes of the
concept could not be known either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from editforge.artifacts.concepts import Concept
from editforge.artifacts.targets import Candidate
from editforge.families.draw import Shown, sample
from editforge.families.schema import Family
from editforge.ground.errors import EditError
from editforge.ground.names import filled
from editforge.judges import judge_images, labels_of, load_judges
from editforge.judges.clip import load_clip
from editforge.recipe.contract import Context


@dataclass(frozen=True)
class Seen:
    """Shares of a word's pictures.

    Args:
        itself: that every judge takes for the word.
        as_concept: that some judge takes for the erased concept.
        image: cosine of its mean picture with the concept's, in CLIP; None without CLIP.
    """

    itself: float
    as_concept: float
    image: float | None


class Panel:
    """Who says what a picture shows, loaded once for all concepts.

    Args:
        judge: `family` or a CLIP folder.
        family: of the model.
        words: all that may be asked for, the erased names among them.
    """

    def __init__(self, judge: str, family: Family, words: Sequence[str]) -> None:
        self.judges = load_judges(judge, family.name, tuple(dict.fromkeys(words)))
        self.clip = load_clip(judge, family.name)


class Eye:
    """Looks at candidates of one erased concept.

    Args:
        concept: what is erased.
        panel: judges, and CLIP.
        pictures: of each word.
        context: model, progress.
    """

    def __init__(self, concept: Concept, panel: Panel, pictures: int, context: Context) -> None:
        self.concept, self._kind = concept.name, concept.kind
        self._pictures, self._context = pictures, context
        self._family = context.model.family
        self._judges, self._clip = panel.judges, panel.clip
        self._labels = labels_of(self._family.name, concept.name)

    @property
    def knows(self) -> bool:
        """Whether there is a judge, and all of them know the concept."""
        known = [set(self._labels) <= set(judge.labels) for judge in self._judges]
        return bool(self._labels and known) and all(known)

    def meaning(self, words: Sequence[str]) -> dict[str, float]:
        """How alike each word and the concept are to CLIP's text tower; empty without CLIP.

        Cosine of centered states, x - mean over the words: what all words share says nothing.
        """
        if self._clip is None:
            return {}
        rows = self._clip.names([self.concept, *words])
        rows = normalize(rows - rows[1:].mean(dim=0), dim=-1)
        return dict(zip(words, (rows[1:] @ rows[0]).tolist(), strict=True))

    def look(self, word: str) -> Seen:
        """Draw a word, and judge what is there."""
        images = self._drawn(word)
        asked = [self._labels] * len(images)
        as_concept = judge_images(images, asked, self._judges).present
        own = [labels_of(self._family.name, word)] * len(images)
        itself = judge_images(images, own, self._judges).retained
        image = None
        if self._clip is not None:
            image = float(self._look(images) @ self._own_look)
        return Seen(float(itself.mean()), float(as_concept.mean()), image)

    @cached_property
    def _own_look(self) -> Tensor:
        return self._look(self._drawn(self.concept))

    def _look(self, images: NDArray[np.uint8]) -> Tensor:
        assert self._clip is not None
        return normalize(self._clip.pictures(images).mean(dim=0), dim=-1)

    def _drawn(self, word: str) -> NDArray[np.uint8]:
        """The base's pictures of a word in the templates that an eraser may use, one batch."""
        templates = self._family.templates.get(self._kind, ("{n}",))[: self._pictures]
        seeds = [range(at, self._pictures, len(templates)) for at in range(len(templates))]
        prompts = [
            Shown(f"look/{text}/{word}", filled(text, word), tuple(own))
            for text, own in zip(templates, seeds, strict=True)
        ]
        return sample(
            self._context.model.pipeline(),
            prompts,
            self._context.model.sampler,
            progress=False,
            base=self._context.model.drawn_by,
        )


@dataclass(frozen=True)
class Survey:
    """What was found of one concept's candidates.

    Args:
        order: nearest first.
        meaning: see `Eye.meaning`; empty without CLIP.
        seen: of those looked at.
        refused: why one of them is no target.
        passed: those that may be the target; where none may, the one known most often for itself.
    """

    order: tuple[str, ...]
    meaning: Mapping[str, float]
    seen: Mapping[str, Seen]
    refused: Mapping[str, str]
    passed: tuple[str, ...]

    def explained(self, candidate: Candidate) -> Candidate:
        """A candidate with what was found of it."""
        word = candidate.word
        facts: dict[str, Any] = {"reason": self.refused.get(word, "")}
        if word in self.meaning:
            facts["meaning"] = round(self.meaning[word], 4)
        if (seen := self.seen.get(word)) is not None:
            facts |= {k: v if v is None else round(v, 4) for k, v in asdict(seen).items()}
        return candidate.model_copy(update=facts)


def survey(
    eye: Eye,
    order: Sequence[str],
    meaning: Mapping[str, float],
    wanted: int,
    least: int,
    most: int,
    bounds: tuple[float, float],
) -> Survey:
    """Look at the leading candidates, and on until `wanted` of them will do.

    Args:
        eye: of the concept.
        order: the words, nearest first.
        meaning: see `Survey`.
        wanted: how many to let pass.
        least: to look at, for a person to compare.
        most: to look at.
        bounds: a word is refused if more than the first share of its pictures pass for the concept,
            or less than the second for itself.

    Raises:
        EditError: all words looked at are drawn like the concept.
    """
    seen: dict[str, Seen] = {}
    refused: dict[str, str] = {}
    for word in order[:most]:
        one = seen[word] = eye.look(word)
        if one.as_concept > bounds[0]:
            refused[word] = "drawn like the concept"
        elif one.itself < bounds[1]:
            refused[word] = "seldom known for what it is"
        if len(seen) >= least and len(seen) - len(refused) >= wanted:
            break
    passed = [word for word in seen if word not in refused][:wanted]
    if not passed:
        apart = [word for word in seen if seen[word].as_concept <= bounds[0]]
        if not apart:
            raise EditError(
                f"no target is left for {eye.concept!r}: all are drawn like it",
                got=", ".join(seen) or "no word",
                next="name one (--target TEXT), or --set target.most_looked_at=30",
            )
        passed = [max(apart, key=lambda word: seen[word].itself)]  # of equals the nearest
        refused[passed[0]] += ", and taken because none looked at is known more often"
    return Survey(tuple(order), dict(meaning), seen, refused, tuple(passed))
