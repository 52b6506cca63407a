"""RealEra's alignment: the concept and fresh neighbors of it predict the target, all else stays."""

from __future__ import annotations

from pydantic import Field

from editforge.align.objective import ERASE, NEIGHBOR, TARGET, toward
from editforge.align.options import LoraOptions
from editforge.align.train import train
from editforge.artifacts.weight_edit import WeightEdit
from editforge.recipe.contract import AlignInputs, Context
from editforge.recipe.registry import register


class RealeraConfig(LoraOptions):
    """Options of `align: realera`. methods.md 2.6."""

    mu: float = Field(1.0, ge=0, description="Of what is kept. Higher: less drift, weaker erasure.")
    concept_share: float = Field(
        0.5, ge=0, le=1, description="Samples at the concept itself; the rest at fresh neighbors."
    )


@register("align", "realera", paper="https://arxiv.org/abs/2410.09140")
def realera(inputs: AlignInputs, config: RealeraConfig, context: Context) -> WeightEdit:
    """Train a LoRA on top of the closed form.

        L = mean |eps_w(z, s, H_n) - eps_0(z, s, H_t)|^2
            + mu mean |eps_w(z, s, H_b) - eps_0(z, s, H_b)|^2

    H_n is a prompt with the concept, displaced at the name's tokens i by eta |h_i| / |e|; eta is drawn
    anew for each sample. H_t is the same prompt with the target, H_b a prompt or a point beyond.

    Reference: Liu et al., "RealEra", arXiv 2410.09140; the equation is our reconstruction.

    Known failure: without a mined shell no neighbor is drawn, and residue stays.
    """
    objective = toward(
        (ERASE, NEIGHBOR), lambda frozen: frozen[ERASE, TARGET], ((ERASE, TARGET),), config.mu
    )
    return train(inputs, config, objective, context, concept_share=config.concept_share)
