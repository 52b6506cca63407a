"""Unnamed neighbors of each erased concept: a shell around its state, and the words inside it.

What a model still draws after an erasure is asked for by states near the erased one, named or not.
The shell says where these lie; the vectors are not stored but drawn again from the seed by whoever
needs them (`ground.shell.neighbors_of`). Random directions need not pass near any word, so each
neighbor is listed with the words nearest to it. Words inside the shell's band of cosines are listed for
review, preserved unless a person says otherwise.

Cosines here are of the states themselves, not of centered ones: they define the shell.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from editforge.artifacts.chosen import templates_of
from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import MinedShell, Neighbor, Neighborhood, Neighbors
from editforge.families.vocabulary import Vocabulary, check_words, load_vocabulary
from editforge.ground.keyed import keyed
from editforge.ground.names import filled, fold, same_words
from editforge.ground.shell import (
    FALLBACK,
    Law,
    calibrated_bounds,
    inside,
    neighbors_of,
    sample_beyond,
    shell_of,
)
from editforge.recipe.contract import Context, MineInputs, StageConfig
from editforge.recipe.registry import register


class PerturbationConfig(StageConfig):
    """Options of `mine: perturbation`. methods.md 2.8."""

    words: str = Field("family", description="family, tokenizer, or a text file, one word a line.")
    bounds: Literal["calibrated", "fixed"] = Field(
        "calibrated", description="Cosine bounds left null: from the words, or 0.70 and 0.95."
    )
    cos_lo: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="S1, the smallest cosine of a neighbor. Lower: farther neighbors.",
    )
    cos_hi: float | None = Field(
        None,
        gt=0,
        le=1,
        description="S2, the largest. Lower: a wider core around the concept itself.",
    )
    distance: float | None = Field(
        None, gt=0, description="D1, the largest |eta|; null: what cos_lo implies. Higher: farther."
    )
    law: Law = Field(
        "tangent_shell",
        description="Neighbors lie in random directions, towards the nearest words outside the "
        "concept, or between paraphrases (its name and aliases in the family's templates).",
    )
    num_along: int = Field(
        32, ge=1, description="Words that the law `words` displaces along. More: wider, thinner."
    )
    num_neighbors: int = Field(32, ge=0, description="K, per edited state. Higher: higher rank.")
    num_beyond: int = Field(
        1000, ge=0, description="M, held outside the neighborhood. Higher: safer, weaker erasure."
    )
    beyond_shell_fraction: float = Field(
        0.25, ge=0, le=1, description="Share of num_beyond that are no words but points of a shell."
    )
    out_lo: float = Field(
        1.5, gt=1, description="Inner radius of that shell, in outer radii of ours."
    )
    out_hi: float = Field(
        3.0, gt=1, description="Its outer radius. Higher: farther points are held."
    )
    num_listed: int = Field(32, ge=0, description="Words inside the band listed, nearest first.")
    num_nearest: int = Field(3, ge=0, description="Words named beside each neighbor.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """A word list that is a file must be there."""
        check_words(self.words)

    def mines(self, concept: Concept) -> tuple[int, int]:
        """K points around each state."""
        return 0, self.num_neighbors


@register("mine", "perturbation", paper="https://arxiv.org/abs/2410.09140")
def perturbation(inputs: MineInputs, config: PerturbationConfig, context: Context) -> Neighbors:
    """The shell of each concept, from its bare name's last state e and the word list.

        S1 = 95th percentile of cos(e, words)       S2 = midpoint of 1 and the largest cos(e, words)
        n  = e + r z,  z a unit tangent,  r uniform between the radii the bounds leave

    The same seed gives the same neighbors; the order of concepts does not matter.

    Raises:
        InfeasibleShell: the bounds exclude each other; RecipeError: a name the encoder cannot read.
    """
    for concept in inputs.concepts:
        context.model.encoder.check(concept.name)
    known = load_vocabulary(context.model, config.words, context.bar, context.team)
    states = context.model.encoder.encode_words([concept.name for concept in inputs.concepts])
    lengths = known.vectors.norm(dim=1).clamp(min=1e-30)
    erased = {fold(name) for concept in inputs.concepts for name in concept.names}
    found = []
    for concept, e in zip(inputs.concepts, states.double(), strict=True):
        cosines = (known.vectors @ e.float() / (lengths * float(e.norm()))).double()  # (V,)
        fit = [
            at
            for at, word in enumerate(known.words)
            if fold(word) not in erased and not any(same_words(word, n) for n in concept.names)
        ]
        found.append(_Miner(concept, e, known, config, context).found(cosines, fit))
    return Neighbors(source=config.words, concepts=tuple(found))


class _Miner:
    """One concept: its bounds, its shell, and what can be said about both."""

    def __init__(
        self,
        concept: Concept,
        e: Tensor,
        known: Vocabulary,
        config: PerturbationConfig,
        context: Context,
    ) -> None:
        self._concept, self._e, self._known = concept, e, known
        self._config, self._context = config, context

    def found(self, cosines: Tensor, fit: list[int]) -> Neighborhood:
        """The neighborhood; `fit` are the words that neither are the concept nor another erased one."""
        config, name = self._config, self._concept.name
        low, high = calibrated_bounds(cosines[fit]) if config.bounds == "calibrated" else FALLBACK
        low, high = config.cos_lo or low, config.cos_hi or high
        shell = shell_of(self._e, config.distance, low, high)
        # refuses bad radii now
        sample_beyond(self._e, shell, config.out_lo, config.out_hi, 0, keyed(0))
        band = sorted((at for at in fit if low <= cosines[at] <= high), key=lambda at: -cosines[at])
        band = band[: config.num_listed]
        self._context.say(
            f"{name!r}: neighbors at cosines {low:.2f} to {high:.2f}, radii {shell.r_lo:.3g} to "
            f"{shell.r_hi:.3g} of {shell.radius:.3g}; {len(band)} words inside, preserved"
        )
        mined = MinedShell(
            source=config.words,
            law=config.law,
            along=self._along(cosines, fit),
            radius=shell.radius,
            r_lo=shell.r_lo,
            r_hi=shell.r_hi,
            cos_lo=low,
            cos_hi=high,
            distance=config.distance,
            num_neighbors=config.num_neighbors,
            num_beyond=config.num_beyond,
            beyond_shell_fraction=config.beyond_shell_fraction,
            out_lo=config.out_lo,
            out_hi=config.out_hi,
            in_band=tuple(self._known.words[at] for at in band),
        )
        # position 0 of the bare name: a ridge on that state alone draws these very neighbors
        ways = mined.away(self._context.model.encoder, name)
        seed, count = self._context.seed, config.num_neighbors
        points = neighbors_of(self._e, mined, ways, count, seed, name, 0)
        mined = mined.model_copy(
            update={
                "accepted": int(inside(self._e, shell, points).sum()),
                "drawn": count,
                "nearest": self._nearest(points),
            }
        )
        rows = tuple(self._row(at, float(cosines[at])) for at in band)
        return Neighborhood(concept=name, shell=mined, words=rows)

    def _along(self, cosines: Tensor, fit: list[int]) -> tuple[str, ...]:
        """What the law displaces along: words that are no name of the concept, or paraphrases of it.

        A paraphrase ends in the name: its state is that of the name's last token there.
        """
        if self._config.law == "words":
            near = sorted(fit, key=lambda at: -cosines[at])[: self._config.num_along]
            return tuple(self._known.words[at] for at in near)
        if self._config.law == "paraphrases":
            templates = templates_of([self._concept.kind], self._context.model.family)
            ending = [text for text in templates if text.endswith(("{n}", "{a}"))]
            names = self._concept.names
            return tuple(dict.fromkeys(filled(text, n) for n in names for text in ending))
        return ()

    def _nearest(self, points: Tensor) -> tuple[dict[str, float], ...]:
        vectors, count = self._known.vectors, self._config.num_nearest
        unit = (points / points.norm(dim=0)).float()  # (d, K)
        cosines = (vectors @ unit) / vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)
        best = cosines.topk(min(count, len(vectors)), dim=0)  # (count, K)
        return tuple(
            {self._known.words[at]: round(value, 3) for at, value in zip(rows, values, strict=True)}
            for rows, values in zip(best.indices.T.tolist(), best.values.T.tolist(), strict=True)
        )

    def _row(self, at: int, cosine: float) -> Neighbor:
        away = float((self._known.vectors[at].double() - self._e).norm() / self._e.norm())
        return Neighbor(
            word=self._known.words[at],
            role="preserve",
            similarity=round(cosine, 4),
            displacement=round(away, 4),
        )
