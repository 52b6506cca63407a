"""Members of a broad concept that nobody listed: *beer mug* for *alcohol*.

A broad word is seldom what a prompt says. A word of the list is a member if its text lies near the
concept's, or less near and the model's pictures of the concept show it. Either alone is not enough:
*cigarette* is near *alcohol*, and a jumble of glasses looks like a *rocket*.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbor
from editforge.families.metric import metric_cosines, text_metric
from editforge.families.model import TextModel
from editforge.families.vocabulary import Vocabulary
from editforge.ground.names import fold

SHOWN = 0.5  # share of `similarity` that is enough for a word that the pictures show


@dataclass(frozen=True)
class Kin:
    """Similarity of every word of a list to one broad concept; see `mine: vocabulary`."""

    words: tuple[str, ...]
    similarity: tuple[float, ...]
    displacement: tuple[float, ...]

    def near(self, least: float, among: Collection[str] | None = None) -> list[str]:
        """Words at least so similar, the nearest first."""
        order = sorted(range(len(self.words)), key=lambda at: -self.similarity[at])
        found = [self.words[at] for at in order if self.similarity[at] >= least]
        return found if among is None else [word for word in found if word in among]

    def rows(self, words: Sequence[str], reason: str) -> list[Neighbor]:
        """Rows of neighbors.yaml that erase words with the concept."""
        place = {word: at for at, word in enumerate(self.words)}
        return [
            Neighbor(
                word=word,
                role="erase",
                similarity=round(self.similarity[place[word]], 4),
                displacement=round(self.displacement[place[word]], 4),
                reason=reason,
            )
            for word in words
        ]


def kin_of(concept: Concept, known: Vocabulary, model: TextModel) -> Kin:
    """How near each word of a list is to a concept, its own names left out."""
    gone = {fold(name) for name in concept.names}
    fit = [at for at, word in enumerate(known.words) if fold(word) not in gone]
    mean, metric = known.vectors.mean(dim=0), text_metric(model)
    own = model.encoder.encode_words([concept.name])[0] - mean
    away = known.vectors[fit] - mean
    similar = metric_cosines(away, own[None], metric)[:, 0]
    moved = (away - own).norm(dim=1) / own.norm().clamp(min=1e-30)
    return Kin(
        tuple(known.words[at] for at in fit),
        tuple(similar.tolist()),
        tuple(moved.tolist()),
    )
