"""Named neighbors of each erased concept, from a word list and the model's own text encoder.

Words are rejected as targets for two reasons: they are the same word or a phrase that contains it
(`truck` for `garbage truck`), or they mean the same (more alike than the concept's own spelling
variants are, less a margin). What survives, nearest first, is preserved or a candidate target. Where
the family's lists have kinds, a concept is compared with its own kind's: what is erased beside it
changes nothing else.

Similarity is a cosine of centered states in the metric of the maps that will be edited (methods.md
3.8): two words are alike if those maps give alike keys and values, not if their states are close.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.families.by_kind import kept_only
from editforge.families.metric import text_metric
from editforge.families.vocabulary import check_words, compared_alike, load_vocabulary
from editforge.ground.names import (
    CONTAINED,
    fold,
    name_key,
    names_the_same,
    other_number,
    same_words,
    with_article,
)
from editforge.recipe.contract import Context, MineInputs, StageConfig
from editforge.recipe.registry import register


class VocabularyConfig(StageConfig):
    """Options of `mine: vocabulary`."""

    words: str = Field("family", description="family, tokenizer, or a text file, one word a line.")
    k_closest: int = Field(
        100, ge=1, description="Candidates kept per concept. Higher: slower, rarely better."
    )
    num_preserve: int = Field(
        16, ge=0, description="Nearest words preserved per concept. Higher: safer neighbors."
    )
    min_displacement: float = Field(
        0.5, ge=0, description="A target must be at least this far away. Higher: surer erasure."
    )
    synonym_margin: float = Field(
        0.05,
        ge=0,
        description="Below the mean similarity of spelling variants. Higher: more synonyms.",
    )
    min_variant_similarity: float = Field(
        0.6, description="Below it, spelling variants say nothing about synonyms: see skip_top."
    )
    own_word: float = Field(
        0.5,
        description="From which similarity the last word of a longer name is erased with it, if no "
        "other name of the family's list has it. Higher: fewer.",
    )
    skip_top: int = Field(
        3, ge=0, description="Nearest words that are no target where variants cannot tell."
    )
    blocklist: tuple[str, ...] = Field((), description="Words never chosen and never preserved.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A word list that is a file must be there."""
        check_words(self.words)

    def mines(self, concept: Concept) -> tuple[int, int]:
        """The last word of a longer name, at most."""
        return int(len(concept.name.split()) > 1), 0


@register("mine", "vocabulary")
def vocabulary(inputs: MineInputs, config: VocabularyConfig, context: Context) -> Neighbors:
    """Rank the word list around each concept; see the module for the rules.

        s(v) = <c~, v~>_M / (|c~|_M |v~|_M)     similarity, x~ = x - mean of the list
        d(v) = |v - c|_M / |c~|_M               displacement

    Raises:
        RecipeError: a concept that the text encoder cannot read whole.
    """
    for concept in inputs.concepts:
        for text in (*concept.names, *spellings(concept.name)):
            context.model.encoder.check(text)
    alike = compared_alike(context.model.family, config.words, inputs.concepts)
    found: dict[str, Neighborhood] = {}
    with context.bar(len(inputs.concepts), "mining") as bar:
        for kinds, concepts in alike.items():
            for near in _ranked(concepts, kinds, inputs.concepts, config, context):
                found[near.concept] = near
                bar.update()
    return Neighbors(source=config.words, concepts=tuple(found[c.name] for c in inputs.concepts))


def _ranked(
    concepts: Sequence[Concept],
    kinds: tuple[str, ...],
    erased_with: Sequence[Concept],
    config: VocabularyConfig,
    context: Context,
) -> Iterator[Neighborhood]:
    """The neighborhoods of concepts that are compared with the same words."""
    encoder = context.model.encoder
    written = [[concept.name, *spellings(concept.name)] for concept in concepts]
    known = load_vocabulary(context.model, config.words, context.bar, context.team, kinds=kinds)
    metric = text_metric(context.model)
    mean = known.vectors.mean(dim=0)
    own = encoder.encode_words([text for texts in written for text in texts]) - mean
    own = own.reshape(len(written), len(written[0]), -1)  # (concepts, variants, d)
    centers = own[:, 0] @ metric
    sizes = (centers * own[:, 0]).sum(dim=1).clamp(min=1e-30).sqrt()

    def compared(vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity and displacement of words (V, d) to every concept, (V, concepts) each."""
        norms = _norms(vectors, mean, metric)  # (V,)
        inner = vectors @ centers.T - centers @ mean  # <v~, c~>_M
        gap = norms.square()[:, None] - 2 * inner + sizes**2
        return inner / (norms[:, None] * sizes).clamp(min=1e-30), gap.clamp(min=0).sqrt() / sizes

    similarity, displacement = compared(known.vectors)
    curated = config.words == "family" and context.model.family.words == "emoji"
    by_kind = config.words == "family" and context.model.family.words == "kinds"
    kept = frozenset[str]().union(*map(kept_only, kinds)) if by_kind else frozenset[str]()
    folded = [fold(word) for word in known.words]
    listed = frozenset(name_key(word) for word in known.words) if curated else frozenset()
    for index, concept in enumerate(concepts):
        ceiling = None if curated else synonym_ceiling(own[index], metric, config)
        rank = _Ranking(concept, config, erased_with, listed, kept, ceiling)
        order = similarity[:, index].argsort(descending=True, stable=True).tolist()
        near, far = similarity[:, index].tolist(), displacement[:, index].tolist()
        for at in order:
            if not rank.take(known.words[at], folded[at], near[at], far[at]):
                break
        if word := rank.last_word():
            alike, apart = (x[0, index].item() for x in compared(encoder.encode_words([word])))
            if alike >= config.own_word:
                rank.erase(word, alike, apart)
        yield rank.result()


class _Ranking:
    """The rules for one concept, applied to words from the nearest outwards."""

    def __init__(
        self,
        concept: Concept,
        config: VocabularyConfig,
        erased_with: Sequence[Concept],
        listed: frozenset[str],
        kept: frozenset[str],
        ceiling: float | None,
    ) -> None:
        self._concept, self._config, self._kept_only = concept, config, kept
        self._erased = {name_key(name) for one in erased_with for name in one.names}
        named = [one for one in erased_with if one.kind in ("style", "person")]
        self._persons = [name for one in named for name in one.names]
        self._curated, self._listed, self._ceiling = bool(listed), listed, ceiling
        self._is_listed = name_key(concept.name) in self._listed
        self._aliases = {fold(name) for name in concept.aliases}
        self._blocked = {fold(word) for word in config.blocklist}
        self._counts: dict[str, int] = {}
        self._rows: list[Neighbor] = []
        self._candidates = self._kept = self._skipped = 0

    def take(self, word: str, folded: str, near: float, far: float) -> bool:
        """Judge the next word; False once there are enough candidates and preserves."""
        reason = self._by_words(word, folded)
        role, candidate, doubtful = "erase" if reason == "alias" else "ignore", False, ""
        if reason == CONTAINED and self._is_own_thing(word):
            reason, role = "", "preserve"
        elif not reason:
            doubtful = self._means_the_same(near)
            if doubtful and not self._curated:
                reason = doubtful
            else:
                # a curated list has one name a thing: a look-alike is kept, and is no target
                room = self._candidates < self._config.k_closest
                candidate = room and not doubtful and far >= self._config.min_displacement
                candidate = candidate and word not in self._kept_only
                role = "preserve" if self._kept < self._config.num_preserve else "ignore"
        self._kept += role == "preserve"
        self._candidates += candidate
        if reason:
            self._counts[reason] = self._counts.get(reason, 0) + 1
        wanted = self._config.k_closest, self._config.num_preserve
        if len(self._rows) < 3 * max(wanted):
            doubt = bool(doubtful) and far >= self._config.min_displacement
            doubt = doubt and word not in self._kept_only
            self._rows.append(_row(word, role, candidate, near, far, reason, doubt))
        return self._candidates < wanted[0] or self._kept < wanted[1]

    def result(self) -> Neighborhood:
        return Neighborhood(
            concept=self._concept.name, passed_over=self._counts, words=tuple(self._rows)
        )

    def last_word(self) -> str:
        """The last word of a longer name, if no other name of a curated list needs it; or nothing."""
        *before, last = self._concept.name.split()
        key = name_key(self._concept.name)
        others = {part for name in self._listed if name != key for part in name.split()}
        alone = self._curated and before and self._concept.kind == "object"
        return last if alone and name_key(last) not in others else ""

    def erase(self, word: str, near: float, far: float) -> None:
        """A word that means the concept is erased with it."""
        if fold(word) not in self._aliases:
            self._rows.append(_row(word, "erase", False, near, far, "the concept in one word"))

    def _is_own_thing(self, word: str) -> bool:
        """A curated list has one name a thing: `fire` is not the `fire engine`, nor the reverse.

        A name that is not of the list may be what several of its names have in common: `tree`.
        """
        inside = len(word.split()) < min(len(name.split()) for name in self._concept.names)
        return self._curated and (inside or self._is_listed)

    def _by_words(self, word: str, folded: str) -> str:
        if folded in self._aliases:
            return "alias"
        for name in self._concept.names:
            if same := (same_words if self._curated else names_the_same)(word, name):
                return same
        if not self._erased.isdisjoint({name_key(word)} if self._curated else _spans(word)):
            return "erased too"
        if not self._curated and any(names_the_same(word, name) for name in self._persons):
            return "erased too"
        return "blocklist" if folded in self._blocked else ""

    def _means_the_same(self, near: float) -> str:
        if self._ceiling is not None:
            return "means the same" if near > self._ceiling else ""
        if self._skipped < self._config.skip_top:
            self._skipped += 1
            return "among the nearest, perhaps the same"
        return ""


def _norms(vectors: Tensor, mean: Tensor, metric: Tensor) -> Tensor:
    """|v - mean|_M of each row, in pieces: the (V, d) table is never copied whole."""
    parts = []
    for piece in vectors.split(4096):
        x = piece - mean
        parts.append(((x @ metric) * x).sum(dim=1).clamp(min=0).sqrt())
    return torch.cat(parts)


def _row(
    word: str,
    role: str,
    candidate: bool,
    near: float,
    far: float,
    reason: str,
    doubtful: bool = False,
) -> Neighbor:
    return Neighbor.model_validate(
        {
            "word": word,
            "role": role,
            "candidate": candidate,
            "doubtful": doubtful,
            "similarity": round(near, 4),
            "displacement": round(far, 4),
            "reason": reason,
        }
    )


def spellings(name: str) -> list[str]:
    """Ways to write the same thing, which the encoder should place beside it."""
    return [with_article(name), f"the {name}", other_number(name)]


def synonym_ceiling(own: Tensor, metric: Tensor, config: VocabularyConfig) -> float | None:
    """Mean similarity of the concept with its variants, less the margin.

    None if the encoder does not even place variants near each other: they then say nothing.
    """
    weighed = own @ metric
    norms = (weighed * own).sum(dim=1).clamp(min=1e-30).sqrt()
    similarities = (weighed[0] @ own[1:].T) / (norms[0] * norms[1:])
    mean = float(similarities.mean())
    return mean - config.synonym_margin if mean >= config.min_variant_similarity else None


def _spans(name: str) -> set[str]:
    """The keys of a name and of every phrase inside it."""
    parts = name_key(name).split()
    count = len(parts)
    return {" ".join(parts[i:j]) for i in range(count) for j in range(i + 1, count + 1)}
