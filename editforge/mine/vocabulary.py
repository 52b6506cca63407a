"""Named neighbors of each erased concept, from a word list and the model's own text encoder.

Words are rejected as targets for two reasons: they are the same word or a phrase that contains it
(`truck` for `garbage truck`), or they mean the same (more alike than the concept's own spelling
variants are, less a margin). What survives, nearest first, is preserved or a candidate target.

Similarity is a cosine of centered states in the metric of the maps that will be edited (methods.md
3.8): two words are alike if those maps give alike keys and values, not if their states are close.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from editforge.artifacts.concepts import Concept, fold, with_article
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.families.metric import text_metric
from editforge.families.vocabulary import Vocabulary, load_vocabulary
from editforge.registry import register
from editforge.stages import Context, MineInputs, StageConfig


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
        0.05, ge=0, description="Below the mean similarity of spelling variants. Higher: more synonyms."
    )
    skip_top: int = Field(
        3, ge=0, description="Nearest words skipped as synonyms where variants cannot tell."
    )
    blocklist: tuple[str, ...] = Field((), description="Words never chosen and never preserved.")


@register("mine", "vocabulary")
def vocabulary(inputs: MineInputs, config: VocabularyConfig, context: Context) -> Neighbors:
    """Rank the word list around each concept; see the module for the rules.

    Raises:
        RecipeError: a concept that the text encoder cannot read whole.
    """
    known = load_vocabulary(context.model, config.words, context.bar)
    metric = text_metric(context.model)
    mean = known.vectors.mean(dim=0)
    centered = known.vectors - mean  # (V, d)
    weighed = centered @ metric
    norms = (weighed * centered).sum(dim=1).clamp(min=0).sqrt()  # (V,)
    erased = {fold(name) for concept in inputs.concepts for name in concept.names}
    found = []
    for concept in inputs.concepts:
        texts = [concept.name, *_variants(concept.name)]
        for text in (*concept.names, *texts):
            context.model.encoder.check(text)
        own = context.model.encoder.encode_words(texts) - mean
        found.append(
            _neighborhood(concept, own, known, metric, (centered, weighed, norms), erased, config)
        )
    return Neighbors(source=config.words, concepts=tuple(found))


def _neighborhood(
    concept: Concept,
    own: Tensor,
    known: Vocabulary,
    metric: Tensor,
    table: tuple[Tensor, Tensor, Tensor],
    erased: set[str],
    config: VocabularyConfig,
) -> Neighborhood:
    centered, weighed, norms = table
    center = own[0]
    size = float((center @ metric @ center).clamp(min=1e-30).sqrt())
    similarity = (weighed @ center) / (norms * size).clamp(min=1e-30)
    squares = norms.square() - 2 * (weighed @ center) + size**2
    displacement = squares.clamp(min=0).sqrt() / size
    ceiling = _synonym_ceiling(own, metric, config.synonym_margin)
    aliases = {fold(name) for name in concept.aliases}
    blocked = {fold(word) for word in config.blocklist}
    counts: dict[str, int] = {}
    rows: list[Neighbor] = []
    candidates = kept = skipped = 0
    for index in similarity.argsort(descending=True, stable=True).tolist():
        word = known.words[index]
        near, far = float(similarity[index]), float(displacement[index])
        role, reason = "ignore", _same_words(word, concept.name)
        if fold(word) in aliases:
            role, reason = "erase", "alias"
        elif fold(word) in erased and not reason:
            reason = "erased too"
        elif fold(word) in blocked:
            reason = "blocklist"
        elif not reason and (near > ceiling if ceiling else skipped < config.skip_top):
            skipped += 1
            reason = "means the same" if ceiling else "among the nearest, perhaps a synonym"
        if reason:
            counts[reason] = counts.get(reason, 0) + 1
            if len(rows) < 2 * config.k_closest:
                rows.append(_row(word, role, False, near, far, reason))
            continue
        candidate = far >= config.min_displacement
        role = "preserve" if kept < config.num_preserve else "ignore"
        rows.append(_row(word, role, candidate, near, far, ""))
        kept += role == "preserve"
        candidates += candidate
        if candidates == config.k_closest:
            break
    return Neighborhood(concept=concept.name, passed_over=counts, words=tuple(rows))


def _row(word: str, role: str, candidate: bool, near: float, far: float, reason: str) -> Neighbor:
    return Neighbor.model_validate(
        {
            "word": word,
            "role": role,
            "candidate": candidate,
            "similarity": round(near, 4),
            "displacement": round(far, 4),
            "reason": reason,
        }
    )


def _variants(name: str) -> list[str]:
    """Ways to write the same thing, which the encoder should place beside it."""
    plural = name[:-1] if name.endswith("s") else f"{name}s"
    return [with_article(name), f"the {name}", plural]


def _synonym_ceiling(own: Tensor, metric: Tensor, margin: float) -> float | None:
    """Mean similarity of the concept with its variants, less the margin; None if they say nothing."""
    weighed = own @ metric
    norms = (weighed * own).sum(dim=1).clamp(min=1e-30).sqrt()
    similarities = (weighed[0] @ own[1:].T) / (norms[0] * norms[1:])
    mean = float(similarities.mean()) - margin
    return mean if mean > 0 else None


def _same_words(word: str, name: str) -> str:
    """Why two names are one by spelling alone, or an empty text."""
    a, b = (fold(text).split() for text in (word, name))
    if [_singular(part) for part in a] == [_singular(part) for part in b]:
        return "same word"
    short, long = sorted(([_singular(p) for p in a], [_singular(p) for p in b]), key=len)
    spans = (long[i : i + len(short)] for i in range(len(long) - len(short) + 1))
    return "one contains the other" if short and short in list(spans) else ""


def _singular(word: str) -> str:
    for ending, replacement in (("ies", "y"), ("ses", "s"), ("xes", "x"), ("ches", "ch")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + replacement
    plural = word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3
    return word[:-1] if plural else word
