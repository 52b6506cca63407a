"""A guard baked into weights: the erased prompt predicts what a guard would make of it.

The prototypes of `mine: prototypes` and the rule of `guide: prototype`, with the one training loop.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from editforge.align.denoiser import Encoded
from editforge.align.objective import EMPTY, ERASE, ERASED, Predictions, toward
from editforge.align.options import LoraOptions
from editforge.align.prompts import ErasedPrompt
from editforge.align.train import train
from editforge.artifacts.prototypes import Prototypes
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import RecipeError
from editforge.guards.gate import scores
from editforge.guards.push import masked
from editforge.guards.words import Texts
from editforge.recipe.contract import AlignInputs, Context
from editforge.recipe.registry import register

BLENDED, PROTOTYPE = "blended", "prototype"


class GuidedConfig(LoraOptions):
    """Options of `align: guided`. methods.md 4.4 and 4.6."""

    beta: float = Field(0.0, ge=0, description="Pull away from the prototype, as in the guard.")
    mask: float = Field(0.005, ge=0, description="Smaller differences of predictions are left out.")
    blend: float = Field(
        0.8, ge=0, le=1, description="Share of the prompt that becomes the target."
    )
    mu: float = Field(1.0, ge=0, description="Of what is kept. Higher: less drift, weaker erasure.")


@register("align", "guided", paper="https://arxiv.org/abs/2603.08271")
def guided(inputs: AlignInputs, config: GuidedConfig, context: Context) -> WeightEdit:
    """The prompt's prediction, under plain guidance at the family's alpha, gives the guard's g.

        goal = eps_0(z, s, c_b) - (beta / alpha) m (eps_0(z, s, p) - eps_0(z, s, ""))
        L = mean |eps_w(z, s, c_e) - goal|^2 + mu mean |eps_w(z, s, kept) - eps_0(z, s, kept)|^2

    c_b blends the prompt's states with those of its target; p is the prototype nearest to the prompt, at
    the place of the empty prompt where it was trained. No gate: weights act on every prompt, so what
    is kept has to be held.

    Raises:
        RecipeError: no prototype was mined.
    """
    found = inputs.neighbors.prototypes
    if found is None:
        raise RecipeError(
            "there are no prototypes to bake",
            allowed="mine: [{use: prototypes}]",
            next="editforge erase CONCEPT --method prototype-baked",
        )
    share = config.beta / context.model.sampler.guidance

    def goal(frozen: Predictions) -> Tensor:
        blended = frozen[ERASE, BLENDED]
        if not share:
            return blended
        away = frozen[ERASE, PROTOTYPE] - frozen[ERASE, EMPTY]
        return blended - share * masked(away, config.mask)

    def blend(prompt: ErasedPrompt, empty: Encoded) -> Encoded:
        own, goal = (Texts(text.states, text.pooled) for text in (prompt.erased, prompt.target))
        blended = own.toward(goal, config.blend)
        return Encoded(blended.states, blended.pooled)

    def nearest(prompt: ErasedPrompt, empty: Encoded) -> Encoded:
        return replace(empty, states=_prototype(found, prompt, empty.states))

    reads = [(ERASE, BLENDED), *([(ERASE, PROTOTYPE), (ERASE, EMPTY)] if share else [])]
    objective = toward((ERASE, ERASED), goal, tuple(reads), config.mu)
    told = {BLENDED: blend, PROTOTYPE: nearest}
    return train(inputs, config, objective, context, told=told)


def _prototype(found: Prototypes, prompt: ErasedPrompt, empty: Tensor) -> Tensor:
    """The conditioning (q, d) of the concept's prototype that a prompt is closest to."""
    rows = found.rows_of(prompt.concept)
    near = scores(
        prompt.erased.states[None], found.tensors["center"], found.tensors["selector"][rows]
    )
    which = rows.start + int(near.argmax())
    if found.form == "prompt":
        return found.tensors["prompt_embeds"][which].to(empty)
    states = empty.clone()
    states[int(found.tensors["position"][which])] = found.tensors["token"][which].to(empty)
    return states
