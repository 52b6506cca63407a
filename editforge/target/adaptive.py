"""The nearest target that is no synonym; of several, the one with the least predicted damage around it.

A word u is moved by W_l (t - c)(A u): by how far the target is, times how much of the concept's
movement the word shares (its *leak*). So unrelated targets do harm, a synonym erases nothing, and the
best choice lies between. AGE finds such targets by training; here the same finding is linear algebra
over the words that `mine` ranked. Where a judge can look, the base's own pictures say what a synonym is
and what can be known at all (`target/look.py`). methods.md 3.8, steps 4, 5 and 7.

Where the family's lists have kinds, a concept becomes a word of its own kind, and of its own section or
group of that list if it stands there: a painter becomes a painter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbor, Neighborhood
from editforge.artifacts.targets import Candidate, Target, Targets
from editforge.families.vocabulary import apart, compared_alike, load_vocabulary
from editforge.ground.errors import EditError
from editforge.recipe.contract import Context, StageConfig, TargetInputs
from editforge.recipe.registry import register
from editforge.target.damage import Damage
from editforge.target.look import Eye, Panel, Survey, survey
from editforge.target.preserve import preserve_list

if TYPE_CHECKING:
    from editforge.families.model import Described
    from editforge.families.schema import Family


class AdaptiveConfig(StageConfig):
    """Options of `target: adaptive`."""

    ridge: float = Field(
        6.5e-4, gt=0, description="As in the edit to come. Higher: locality matters less."
    )
    preserve_weight: float = Field(1.0, ge=0, description="As in the edit to come.")
    num_affected: int = Field(
        50, ge=1, description="Most affected words the damage is averaged over. Higher: less local."
    )
    num_nearest: int = Field(
        1,
        ge=1,
        description="The damage decides among this many nearest. Higher: farther targets, less of them.",
    )
    judge: str | None = Field(
        "family",
        description="Looks at the base's pictures of candidates: family (where it has judges), a "
        "CLIP folder, null: nobody, and the nearest words that may mean the same are passed over.",
    )
    num_looked_at: int = Field(
        3,
        ge=1,
        description="Leading candidates drawn per concept. Higher: more to choose from, slower.",
    )
    most_looked_at: int = Field(
        12,
        ge=1,
        description="Where none of them will do: drawn on until one does, at most so many.",
    )
    pictures: int = Field(
        8, ge=1, description="Of each candidate looked at. Higher: surer, slower."
    )
    max_as_concept: float = Field(
        0.1,
        ge=0,
        le=1,
        description="A word whose pictures pass more often for the concept is none.",
    )
    min_itself: float = Field(
        1.0, ge=0, le=1, description="A word whose pictures are known for it less often is none."
    )
    same_group: bool = Field(
        True,
        description="Words of the concept's own subgroup first, then of its group, where the list "
        "has them.",
    )
    num_listed: int = Field(
        10, ge=1, description="Nearest candidates written to targets.yaml. Higher: slower."
    )

    def draws(self, model: Described, concepts: int) -> int:
        """The concept and the leading candidates, where somebody can look."""
        looks = self.judge is not None and (
            self.judge != "family" or model.family.judge is not None
        )
        return concepts * (self.num_looked_at + 1) * self.pictures if looks else 0


@register("target", "adaptive")
def adaptive(inputs: TargetInputs, config: AdaptiveConfig, context: Context) -> Targets:
    """Choose, of the `num_nearest` most similar candidates, the one with the least damage J.

        G_0     = lam I + c c^T + sum of preserved u u^T + mean mean^T
        leak(u) = c^T G_0^-1 u                              A_0 u, before v is preserved
        A_v u   = leak(u) - w leak(v) (v^T G_0^-1 u) / (1 + w v^T G_0^-1 v)
        J(v)    = displacement(v)^2 * mean over the most affected u of (A_v u)^2

    Ties go to the larger leak, then to the name. At 1 the nearest that is no synonym is taken, which
    is the same rule wherever A does not depend on the target, as in `edit: mean-shift`: there the
    second factor is the same for all, and the first grows with the distance. J is computed where it
    decides or is listed: of the `num_nearest` and of the `num_listed` nearest. Measured: docs/age.md.

    With a judge that knows the concept, nearest is by CLIP's text tower, words of the concept's own
    group come first, and the first `num_nearest` that the pictures pass are what J decides among: a
    word is no target if it is taken for the concept too often, or too seldom for itself.

    Raises:
        EditError: no candidate is left, with the counts of what was passed over.
    """
    alike = compared_alike(context.model.family, inputs.neighbors.source, inputs.concepts)
    panel = _panel(inputs, config, context)
    found: dict[str, Target] = {}
    with context.bar(len(inputs.concepts), "choosing targets") as bar:
        for kinds, concepts in alike.items():
            for target in _of_one_list(concepts, kinds, panel, inputs, config, context):
                found[target.concept] = target
                bar.update()
    chosen = tuple(found[concept.name] for concept in inputs.concepts)
    return Targets(concepts=chosen, preserve=preserve_list(inputs, chosen))


def _of_one_list(
    concepts: Sequence[Concept],
    kinds: tuple[str, ...],
    panel: Panel | None,
    inputs: TargetInputs,
    config: AdaptiveConfig,
    context: Context,
) -> Iterator[Target]:
    """The targets of concepts that are compared with the same words."""
    model = context.model
    known = load_vocabulary(model, inputs.neighbors.source, context.bar, kinds=kinds)
    centers = model.encoder.encode_words([concept.name for concept in concepts]).double()
    mean = known.vectors.mean(dim=0)
    near = [inputs.neighbors.of(concept.name) for concept in concepts]
    damages = [
        Damage(center, own, known, mean, config.ridge, config.preserve_weight, config.num_affected)
        for center, own in zip(centers, near, strict=True)
    ]
    listed = set(known.words)
    # leak of every word for every concept: one product, (V, concepts); ranks words, so float32 will do
    leaks = known.vectors @ torch.stack([damage.direction for damage in damages]).T.float()
    for index, (concept, own, damage) in enumerate(zip(concepts, near, damages, strict=True)):
        rows = [row for row in own.words if row.word in listed]
        found = _surveyed(concept, rows, panel, config, context)
        if found is None and config.same_group and len(kinds) == 1:
            rows = _of_own_section(concept, rows, model.family)
        ranked = damage.of(_listed(own, rows, found, config), leaks[:, index])
        count = sum(row.candidate for row in rows)
        yield _chosen(concept.name, count, ranked, found, config)


def _of_own_section(concept: Concept, rows: list[Neighbor], family: Family) -> list[Neighbor]:
    """The candidates of the concept's own section of a list by kind, else of its group, else all."""
    able = [row for row in rows if row.candidate]
    steps = [apart(family, concept.name, row.word, concept.kind) for row in able]
    return [row for row, step in zip(able, steps, strict=True) if step == min(steps)]


def _panel(inputs: TargetInputs, config: AdaptiveConfig, context: Context) -> Panel | None:
    """Who looks; None where nobody can."""
    family, judge = context.model.family, config.judge
    if judge is None or (judge == "family" and family.judge is None):
        return None
    words = [concept.name for concept in inputs.concepts]
    for concept in inputs.concepts:
        near = inputs.neighbors.of(concept.name).words
        words += [row.word for row in near if row.candidate or row.doubtful]
    return Panel(judge, family, words)


def _surveyed(
    concept: Concept,
    rows: Sequence[Neighbor],
    panel: Panel | None,
    config: AdaptiveConfig,
    context: Context,
) -> Survey | None:
    """What the pictures say of a concept's candidates; None where nobody can look."""
    family = context.model.family
    able = [row for row in rows if row.candidate or row.doubtful]
    if panel is None or not able:
        return None
    words = [row.word for row in able]
    eye = Eye(concept, panel, config.pictures, context)
    if not eye.knows:
        context.say(f"note: no judge knows {concept.name!r}, so nobody looks at its targets")
        return None
    meaning = eye.meaning(words)
    close = meaning or {row.word: row.similarity for row in able}
    kind = concept.kind
    steps = {w: apart(family, concept.name, w, kind) if config.same_group else 0 for w in words}
    order = sorted(words, key=lambda word: (steps[word], -close[word]))
    bounds = config.max_as_concept, config.min_itself
    least, most = config.num_looked_at, max(config.num_looked_at, config.most_looked_at)
    return survey(eye, order, meaning, config.num_nearest, least, most, bounds)


def _listed(
    near: Neighborhood, rows: Sequence[Neighbor], found: Survey | None, config: AdaptiveConfig
) -> list[Neighbor]:
    """Those that J decides among or is listed for.

    Raises:
        EditError: no candidate is left, with the counts of what was passed over.
    """
    wanted = max(config.num_nearest, config.num_listed)
    if found is not None:
        by_word = {row.word: row for row in rows}
        return [by_word[word] for word in found.order[: max(wanted, len(found.seen))]]
    able = [row for row in rows if row.candidate]
    if not able:
        raise EditError(
            f"no target is left for {near.concept!r}",
            got=near.counts or "an empty word list",
            allowed="a word of the list that is neither the concept nor a synonym",
            next="name one (--target TEXT), or give a longer list (--set mine.words=FILE)",
        )
    last = sorted((row.similarity for row in able), reverse=True)[:wanted][-1]
    return [row for row in able if row.similarity >= last]  # and every one as near as the last


def _chosen(
    concept: str,
    count: int,
    ranked: Sequence[Candidate],
    found: Survey | None,
    config: AdaptiveConfig,
) -> Target:
    """The least damage among those that may be the target."""
    if found is None:
        near = sorted(ranked, key=lambda item: -item.similarity)[: config.num_nearest]
        able = {item.word for item in near}
        one = len(able) == 1
        rule = "the nearest" if one else f"least predicted damage of the {len(able)} nearest"
        rule += f" of {count} candidates"
    else:
        able = set(found.passed)
        rule = f"the nearest that will do, of {len(found.seen)} looked at"
    best = next(item for item in ranked if item.word in able)
    others = [item for item in ranked if item is not best]
    if found is not None:
        best, *others = map(found.explained, (best, *others))
        others.sort(key=lambda item: found.order.index(item.word))
    return Target(
        concept=concept,
        target=best.word,
        reason=f"{rule}; similarity {best.similarity:.2f}, leak {best.leak:.3f}",
        candidates=(best, *others[: config.num_listed - 1]),
    )
