"""Modes of a broad concept: the model's own pictures with and without it, clustered by CLIP.

Prototype-Guided Concept Erasure (arXiv 2603.08271), methods.md 4.3: contrast pairs are drawn from the
same noise, the differences of their pictures in CLIP's space are clustered, and each center gets a
text-side prototype. What comes out steers (`guide: prototype`) or is erased from the weights
(`edit: prototypes`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighborhood, Neighbors
from editforge.artifacts.prototypes import Cluster, Modes, Prototypes
from editforge.families.draw import Shown, sample
from editforge.families.vocabulary import check_words, load_vocabulary, thinned, unnamed
from editforge.ground.errors import RecipeError
from editforge.ground.keyed import keyed
from editforge.ground.names import filled, fold
from editforge.judges.clip import load_clip
from editforge.mine.clusters import drawn_words, modes
from editforge.mine.contrast import pairs_in, pairs_of
from editforge.mine.directions import (
    name_selectors,
    prompts_for,
    selectors_for,
    tokens_for,
)
from editforge.mine.members import SHOWN, Kin, kin_of
from editforge.mine.sheet import Row, sheet_png
from editforge.mine.tower import Tower
from editforge.recipe.contract import Context, MineInputs, StageConfig
from editforge.recipe.registry import register


class PrototypesConfig(StageConfig):
    """Options of `mine: prototypes`. methods.md 4.3."""

    clip: str = Field(
        "family",
        description="Whose picture tower looks: family (the embedded model's), a CLIP folder or Hub "
        "id; its text tower must be the pipeline's.",
    )
    pairs: str | None = Field(
        None, description="A YAML list of [with, without] of your own; null: made from the names."
    )
    num_pairs: int = Field(100, ge=1, le=10_000, description="More: slower, steadier clusters.")
    pictures: int = Field(4, ge=1, le=64, description="Of each prompt of a pair.")
    vectors: Literal["auto", "mean", "cross"] = Field(
        "auto", description="auto: a mean difference a pair up to 4 clusters, all of them above."
    )
    num_prototypes: int | None = Field(
        None, ge=1, le=64, description="K; null: by the coverage of held-out pairs, at most 16."
    )
    form: Literal["token", "prompt"] = Field(
        "token", description="token: one state at the last position; prompt: a whole soft prompt."
    )
    steps: int = Field(400, ge=1, description="Of the text-side alignment.")
    prompt_length: int = Field(4, ge=1, le=16, description="Free tokens of the form prompt.")
    words: str = Field("family", description="Names clusters, and is what prompts say without it.")
    member_similarity: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Of kind broad: words as near as this are members, erased too; half as near, "
        "if the pictures show them. 1: none but those listed.",
    )
    num_words: int = Field(400, ge=16, description="Longer lists are thinned to this many.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """Files of pairs and words must be there; a file of pairs belongs to one concept."""
        check_words(self.words)
        if self.pairs is not None:
            if len(concepts) > 1:
                raise RecipeError(
                    "one file of pairs for several concepts",
                    got=", ".join(concept.name for concept in concepts),
                    next="a run for each, and both guards on the pipeline: guard.attach(pipe)",
                )
            pairs_in(self.pairs)

    def draws(self, model: Any, concepts: int) -> int:
        """Both prompts of every pair."""
        pairs = len(pairs_in(self.pairs)) if self.pairs else self.num_pairs
        return 2 * pairs * self.pictures * concepts

    def mines(self, concept: Concept) -> tuple[int, int]:
        """Members of a broad concept: nobody knows how many before."""
        return (8 if self.finds_members(concept) else 0), 0

    def finds_members(self, concept: Concept) -> bool:
        """Whether words that nobody listed go with a concept."""
        return concept.kind == "broad" and self.member_similarity < 1

    def check_model(self, model: Any) -> None:
        """Only the embedded model has a CLIP of its own."""
        if self.clip == "family" and model.family.judge != "emoji":
            raise RecipeError(
                f"family {model.family.name} comes without a CLIP that sees",
                got="mine.prototypes.clip=family",
                allowed="the CLIP whose text tower the pipeline has: a folder or a Hub id",
                next="--set mine.prototypes.clip=openai/clip-vit-large-patch14 (SD 1.x)",
            )


@dataclass(frozen=True)
class _Drawn:
    """Pictures (pairs, images, h, w, 3) with the concept, and features (pairs, images, w) of both."""

    pictures: NDArray[np.uint8]
    features: Tensor
    without: Tensor


@dataclass(frozen=True)
class _Named:
    """What one concept is called: its names, members that were found, and words that are neither."""

    concept: Concept
    members: tuple[str, ...]
    others: tuple[str, ...]
    kin: Kin

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.concept.names, *self.members)


@register("mine", "prototypes", paper="https://arxiv.org/abs/2603.08271")
def prototypes(inputs: MineInputs, config: PrototypesConfig, context: Context) -> Neighbors:
    """Clusters of every concept, with a prototype and a selector each; members of a broad one.

    Guarantee: both prompts of a pair are drawn from the same noise; equal inputs give equal bytes; a
    killed run goes on with the pictures that it has drawn.

    Raises:
        RecipeError: a CLIP that is not the pipeline's, fewer pairs than clusters.
    """
    clip = load_clip(config.clip, context.model.family.name)
    assert clip is not None  # check_model
    tower = Tower(clip, context.model.encoder, context.model.family)
    entries, vectors, sheets, near = [], [], {}, []
    for at, concept in enumerate(inputs.concepts):
        named = _named(concept, inputs.concepts, config, context)
        drawn = _draw(named, config, context, clip)
        found, shown = _modes(named, drawn, config, context, tower)
        entries.append(found.entry)
        vectors.append(found.tensors)
        sheets[f"clusters-{at}.png"] = _sheet(
            found.entry, drawn, found.tensors["centroid"], context
        )
        rows = named.kin.rows(named.members, "a kind of it")
        rows += named.kin.rows(shown, "drawn for it, and near")
        near.append(Neighborhood(concept=concept.name, words=tuple(rows)))
        context.say(_said(found.entry, [row.word for row in rows]))
    first = 0
    for one in vectors:  # a name's prototype is counted among those of all concepts
        one["name_prototype"] = one["name_prototype"] + first
        first += len(one["selector"])
    tensors = {
        key: torch.cat([one[key] for one in vectors]) for key in vectors[0] if key != "center"
    }
    tensors["center"] = torch.stack([one["center"] for one in vectors]).mean(dim=0)
    return Neighbors(
        source=config.words,
        concepts=tuple(near),
        prototypes=Prototypes(tensors, config.form, clip.sha256, tuple(entries), sheets),
    )


def _named(
    concept: Concept, concepts: Sequence[Concept], config: PrototypesConfig, context: Context
) -> _Named:
    family, kinds = context.model.family, {"object", concept.kind}  # a theme's members are objects
    known = load_vocabulary(context.model, config.words, context.bar, context.team, kinds=kinds)
    kin = kin_of(concept, known, context.model)
    gone = {fold(name) for other in concepts for name in other.names}
    members = kin.near(config.member_similarity) if config.finds_members(concept) else []
    members = [word for word in members if fold(word) not in gone]
    erased = [name for other in concepts for name in other.names]
    others = [w for w in unnamed(family, known.words, erased) if w not in members]
    return _Named(concept, tuple(members), tuple(thinned(others, config.num_words)), kin)


def _draw(named: _Named, config: PrototypesConfig, context: Context, clip: Any) -> _Drawn:
    family, concept = context.model.family, named.concept
    templates = family.templates.get(concept.kind, ("{n}",))
    pairs = (
        pairs_in(config.pairs)
        if config.pairs
        else pairs_of(named.names, templates, config.num_pairs)
    )
    pipe, sampler = context.model.pipeline(), context.model.sampler
    key = re.sub(r"\W+", "-", fold(concept.name))

    def drawn(texts: Sequence[str], label: str) -> NDArray[np.uint8]:
        rows = [
            Shown(f"pair/{context.seed}/{concept.name}/{at}", text, range(config.pictures))
            for at, text in enumerate(texts)
        ]
        images = sample(
            pipe,
            rows,
            sampler,
            progress=context.progress,
            label=label,
            workdir=context.work,
            weights=context.model.digest if context.work else None,
            base=context.model.drawn_by,
            team=context.team,
        )
        return images.reshape(len(pairs), config.pictures, *images.shape[1:])

    with_ = drawn([pair.with_concept for pair in pairs], f"{key} with")
    without = drawn([pair.without for pair in pairs], f"{key} without")
    seen = [clip.pictures(images.reshape(-1, *images.shape[2:])) for images in (with_, without)]
    features = [rows.reshape(len(pairs), config.pictures, -1) for rows in seen]
    return _Drawn(with_, *features)


@dataclass(frozen=True)
class _Found:
    entry: Modes
    tensors: dict[str, Tensor]


def _modes(
    named: _Named, drawn: _Drawn, config: PrototypesConfig, context: Context, tower: Tower
) -> tuple[_Found, list[str]]:
    """Clusters and vectors of one concept, and words near it that its pictures show."""
    concept, (pairs, pictures) = named.concept, drawn.features.shape[:2]
    if config.num_prototypes and config.num_prototypes > pairs:
        raise RecipeError(
            "more prototypes than pairs", got=config.num_prototypes, allowed=f"1 to {pairs}"
        )
    found = modes(
        drawn.features, drawn.without, config.num_prototypes, config.vectors, context.seed
    )
    K = len(found.centers)
    generator = keyed(context.seed, "prototypes", concept.name)
    if config.form == "token":
        aligned = tokens_for(found.centers, tower, config.steps, generator)
        at = torch.full((K,), tower.window - 1, dtype=torch.int32)
        tensors = {"token": aligned.states, "position": at}
    else:
        aligned = prompts_for(found.centers, tower, config.steps, config.prompt_length, generator)
        tensors = {"prompt_embeds": aligned.states}
    everything = [*named.names, *named.others]
    texts = tower.clip.names(everything)
    flat = [features.flatten(0, 1) for features in (drawn.features, drawn.without)]
    shown = []
    if config.finds_members(concept):
        seen = drawn_words(flat[0], flat[1], texts, everything)
        shown = named.kin.near(SHOWN * config.member_similarity, set(seen) & set(named.others))
    templates = context.model.family.templates.get("object", ("{n}",))
    kept = [word for word in named.others if word not in shown]
    ends, features = tower.read([filled(t, word) for word in kept for t in templates])
    selector, center = selectors_for(found.centers, ends, features)
    tensors |= {"centroid": found.centers, "selector": selector, "center": center}
    own = [filled(t, name) for name in named.names for t in templates]
    states = tower.read(own)[0].reshape(len(named.names), len(templates), -1)
    tensors["name_selector"] = name_selectors(states, ends, center)
    # the cluster that a name's own text is nearest to
    near = texts @ found.centers.T  # (names + V, K)
    tensors["name_prototype"] = near[: len(named.names)].argmax(dim=1).int()
    clusters = []
    for number in range(K):
        order = near[:, number].argsort(descending=True, stable=True)[:6].tolist()
        clusters.append(
            Cluster(
                number=number,
                share=round(float((found.labels == number).float().mean()), 4),
                cosine=round(float(aligned.cosine[number]), 4),
                words={everything[at]: round(float(near[at, number]), 4) for at in order},
            )
        )
    entry = Modes(
        concept=concept.name,
        pairs=pairs,
        pictures=pictures,
        coverage={number: round(value, 4) for number, value in found.coverage.items()},
        clusters=tuple(clusters),
        names=named.names,
    )
    return _Found(entry, tensors), shown


def _said(entry: Modes, members: Sequence[str]) -> str:
    what = f"{entry.concept!r}: {len(entry.clusters)} prototypes of {entry.pairs} pairs"
    taken = f"; it takes with it {', '.join(members)}" if members else ""
    return f"{what}{taken}; look at mine/clusters-*.png before you trust them"


def _sheet(entry: Modes, drawn: _Drawn, centers: Tensor, context: Context) -> bytes:
    """Of each cluster the drawings whose difference from their pair's mean is nearest, and farthest."""
    away = torch.nn.functional.normalize(
        drawn.features - drawn.without.mean(dim=1, keepdim=True), dim=-1
    ).flatten(0, 1)
    near = away @ centers.T
    own = near.argmax(dim=1)
    images = drawn.pictures.reshape(-1, *drawn.pictures.shape[2:])
    rows = []
    for cluster in entry.clusters:
        mine = (own == cluster.number).nonzero().flatten()
        order = mine[near[mine, cluster.number].argsort(descending=True, stable=True)].tolist()
        rows.append(
            Row(
                f"{cluster.number}: {cluster.share:.0%}",
                cluster.words,
                images[order[:6]],
                images[order[max(6, len(order) - 3) :]],
            )
        )
    footer = emoji.CREDIT if context.model.family.name == "emoji" else ""
    return sheet_png(rows, f"{entry.concept}: {len(rows)} clusters", footer)
