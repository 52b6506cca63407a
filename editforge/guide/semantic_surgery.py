"""Semantic Surgery: the concept's direction is taken out of the text states of prompts that have it.

methods.md 5.9, arXiv 2510.22851; without the paper's second pass, which a visual detector asks for. The
released code takes the maximum over a batch, so that one prompt switches erasing on for another; here
each prompt is looked at alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from editforge.ground.errors import EditError
from editforge.guards.text_guard import CHECKED, TextGuard, check_window
from editforge.guards.words import Quiet, Reading, Speaks, Texts
from editforge.guide.names import facts_of, names_of
from editforge.recipe.contract import Context, GuideInputs, StageConfig
from editforge.recipe.registry import register


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SemanticSurgery(TextGuard):
    """Prompts in which a name is found lose its direction before anything is drawn.

        r_k = mean over positions of cos(H_i(prompt), H_i(c_k) - H_i(""))
        a_k = sigmoid((r_k - threshold) / temperature);  found: a_k > 1/2;  rho = max of those found
        H'  = H(prompt) - rho (H("c_1, c_2, ..") - H(""))           names found, in alphabetical order

    Guarantee: a prompt in which nothing is found keeps its bits, alone and beside others; what a prompt
    becomes depends on no other prompt and on no order of names. `strength` multiplies rho. The pooled
    states of SDXL lose their direction likewise, which the paper does not say.

    Known failure: padding outweighs a short prompt in the mean, so what is near is found as well.

    Args:
        names: c_k, each looked for on its own.
        threshold: -beta of the paper. Higher: fewer prompts are touched.
        temperature: gamma of the paper. Higher: less is taken out of a prompt just above the threshold.
    """

    file: ClassVar[str] = "semantic_surgery.safetensors"
    header: ClassVar[str] = "editforge_semantic_surgery"

    names: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
        Field(min_length=1, max_length=1000),
    ]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.06
    temperature: Annotated[float, Field(gt=0)] = 0.02

    def rule(self, pipe: Any) -> SurgeryRule:
        """The guard on one pipeline."""
        return SurgeryRule(self, Speaks(pipe))


class SurgeryRule:
    """Semantic Surgery on one pipeline."""

    def __init__(self, guard: SemanticSurgery, speaks: Speaks) -> None:
        self._guard, self._speaks = guard, speaks

    def read(self, prompts: Texts) -> Reading:
        """What is found in each prompt."""
        guard, cuts = self._guard, []
        if not guard.strength:
            return Quiet()
        for row, presence in enumerate(self.presence(prompts).tolist()):
            found = [name for name, a in zip(guard.names, presence, strict=True) if a > 0.5]
            if found:
                away = self.direction(", ".join(sorted(set(found))))
                cuts.append(Cut(row, max(presence) * guard.strength, away))
        return Surgery(cuts) if cuts else Quiet()

    def presence(self, prompts: Texts) -> Tensor:
        """The a (n, K) of prompts and names; a prompt's row depends on it alone.

        Raises:
            EditError: a state is NaN or infinite: a prompt that cannot be read is not let through.
        """
        guard = self._guard
        check_window(self._speaks(""), prompts)
        away = torch.cat([self.direction(name).states for name in guard.names])
        away = away.to(prompts.states.device).float()
        mean = torch.stack([_cosine(own.float(), away).mean(dim=1) for own in prompts.states])
        if not torch.isfinite(mean).all():
            raise EditError(
                "a guard cannot read this prompt", got="text states that are NaN or infinite"
            )
        return torch.sigmoid((mean - guard.threshold) / guard.temperature)

    def direction(self, text: str) -> Texts:
        """H(text) - H(""); zero at the begin of text, which has read nothing."""
        said, empty = self._speaks(text), self._speaks("")
        states = said.states - empty.states
        states[:, 0] = 0  # not left to rounding: any direction there would count in the mean
        pooled = None
        if said.pooled is not None and empty.pooled is not None:
            pooled = said.pooled - empty.pooled
        return Texts(states, pooled)


class Cut(NamedTuple):
    """What is taken out of one sample: `share` times `away`."""

    row: int
    share: float
    away: Texts


class Surgery(Quiet):
    """Prompts in which something was found."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self._cuts = cuts

    def conditions(self, given: Texts) -> Texts:
        """Less the direction of what was found, sample by sample."""
        result = given
        for row, share, away in self._cuts:
            at = torch.tensor([row], device=given.states.device)
            result = result.with_rows(at, _without(given.at(at), share, away))
        return result


def _cosine(states: Tensor, away: Tensor) -> Tensor:
    """Of each name and position (K, q), from (q, d) and (K, q, d); 0 where there is no direction."""
    lengths = states.norm(dim=-1) * away.norm(dim=-1)
    return (states * away).sum(dim=-1) / lengths.clamp(min=1e-12)


def _without(given: Texts, share: float, away: Texts) -> Texts:
    pooled = given.pooled
    if pooled is not None and away.pooled is not None:
        pooled = pooled - share * away.pooled.to(pooled)
    return Texts(given.states - share * away.states.to(given.states), pooled)


class SemanticSurgeryConfig(StageConfig):
    """Options of `guide: semantic-surgery`. methods.md 5.9."""

    threshold: float = Field(
        0.06, ge=0, le=1, description="Presence from which on a prompt is changed. Higher: fewer."
    )
    temperature: float = Field(
        0.02, gt=0, description="Softness of the presence. Higher: weaker just above the threshold."
    )


@register("guide", "semantic-surgery", paper="https://arxiv.org/abs/2510.22851")
def semantic_surgery(
    inputs: GuideInputs, config: SemanticSurgeryConfig, context: Context
) -> SemanticSurgery:
    """Take the erased names out of the prompts that have them.

    Raises:
        RecipeError: the text encoder would cut off all names together.
    """
    names = names_of(inputs)
    context.model.encoder.check(", ".join(names))
    return SemanticSurgery(
        names=names,
        threshold=config.threshold,
        temperature=config.temperature,
        provenance=facts_of(inputs),
    )
