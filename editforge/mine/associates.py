"""Words that mean the erased concept though nobody typed them: they are erased with it.

Whoever erases "violin" seldom thinks of "viola" and "fiddle", but a denoiser that learned both words
on the same pictures reads them as nearly one: their states are nearer to the concept than to any other
name. No thesaurus is asked, so this works for any text encoder, and whatever it finds is a row of
neighbors.yaml that a person can change.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.families.metric import metric_cosines, text_metric
from editforge.families.vocabulary import check_words, load_vocabulary, unnamed
from editforge.ground.names import fold
from editforge.mine.vocabulary import VocabularyConfig, spellings, synonym_ceiling
from editforge.recipe.contract import Context, MineInputs, StageConfig
from editforge.recipe.registry import register


class AssociatesConfig(StageConfig):
    """Options of `mine: associates`."""

    words: str = Field(
        "tokenizer", description="family, tokenizer, or a text file, one word a line."
    )
    min_similarity: float = Field(
        0.55, ge=0, le=1, description="To the concept, at least. Lower: more words, more mistakes."
    )
    margin: float = Field(
        0.1, ge=0, description="More like the concept than like any other name, by this much."
    )
    limit: int = Field(8, ge=0, description="Words a concept, the nearest first.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A word list that is a file must be there."""
        check_words(self.words)

    def mines(self, concept: Concept) -> tuple[int, int]:
        """Words that mean the concept are erased with it."""
        return self.limit, 0


@register("mine", "associates", paper="https://arxiv.org/abs/2410.09140")
def associates(inputs: MineInputs, config: AssociatesConfig, context: Context) -> Neighbors:
    """Role `erase` for every word w that is nearer to the concept than to anything else with a name.

        s(w, c) >= min_similarity   and   s(w, c) >= s(w, v) + margin for every other name v

    where s is the similarity of `mine: vocabulary` and the names are the family's own lists, of all
    kinds. Only the embedded model's list has every name there is; elsewhere w must also be more like c
    than spelling variants of c are.

    Raises:
        RecipeError: a name the encoder cannot read.
    """
    encoder, metric = context.model.encoder, text_metric(context.model)
    for concept in inputs.concepts:
        encoder.check(concept.name)
    erased = {fold(name) for concept in inputs.concepts for name in concept.names}
    known = load_vocabulary(context.model, config.words, context.bar, context.team)
    family = context.model.family
    listed, curated = family.words is not None, family.words == "emoji"
    names = load_vocabulary(context.model, "family", context.bar, context.team) if listed else known
    mean = names.vectors.mean(dim=0)
    free = set(unnamed(family, names.words, sorted(erased))) if listed else set()
    others = [at for at, name in enumerate(names.words) if name in free]
    taken = {*erased, *(fold(names.words[at]) for at in others)}
    fit = [at for at, word in enumerate(known.words) if fold(word) not in taken]
    vectors = known.vectors[fit] - mean  # (V, d)
    written = [[concept.name, *spellings(concept.name)] for concept in inputs.concepts]
    states = encoder.encode_words([text for texts in written for text in texts]) - mean
    states = states.reshape(len(written), len(written[0]), -1)  # (concepts, spellings, d)
    similar = metric_cosines(vectors, states[:, 0], metric)  # (V, concepts)
    nearest = similar.max(dim=1)
    floor = torch.full((len(fit),), config.min_similarity)
    if others:
        rival = metric_cosines(vectors, names.vectors[others] - mean, metric).max(dim=1).values
        floor = floor.maximum(rival + config.margin)
    found = []
    for index, concept in enumerate(inputs.concepts):
        good = (nearest.indices == index) & (nearest.values >= floor)  # one concept a word
        if not curated:
            ceiling = synonym_ceiling(states[index], metric, VocabularyConfig())
            good &= nearest.values >= (2 if ceiling is None else ceiling)
        order = similar[:, index].argsort(descending=True, stable=True)
        rows = tuple(
            _row(known.words[fit[at]], float(similar[at, index]), vectors[at], states[index, 0])
            for at in order[good[order]][: config.limit].tolist()
        )
        _say(concept, rows, context)
        found.append(Neighborhood(concept=concept.name, words=rows))
    return Neighbors(source=config.words, concepts=tuple(found))


def _row(word: str, similarity: float, state: Tensor, center: Tensor) -> Neighbor:
    away = float((state - center).norm() / center.norm().clamp(min=1e-30))
    return Neighbor(
        word=word,
        role="erase",
        similarity=round(similarity, 4),
        displacement=round(away, 4),
        reason="means the same",
    )


def _say(concept: Concept, rows: tuple[Neighbor, ...], context: Context) -> None:
    if rows:
        listed = ", ".join(f"{row.word} {row.similarity:.2f}" for row in rows)
        context.say(
            f"{concept.name!r} takes with it: {listed}; edit mine/neighbors.yaml to keep one"
        )
