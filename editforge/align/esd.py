"""ESD: the erased prompt predicts what the frozen model would under negative guidance."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from editforge.align.objective import EMPTY, ERASE, ERASED, Predictions, toward
from editforge.align.options import LoraOptions
from editforge.align.train import train
from editforge.artifacts.weight_edit import WeightEdit
from editforge.recipe.contract import AlignInputs, Context
from editforge.recipe.registry import register


class EsdConfig(LoraOptions):
    """Options of `align: esd`. methods.md 5.5."""

    eta: float = Field(
        2.0, ge=0, description="Higher pushes further away from the concept; 0 pushes nowhere."
    )
    mu: float = Field(0.0, ge=0, description="Of what is kept; ESD itself keeps nothing.")


@register("align", "esd", paper="https://arxiv.org/abs/2303.07345")
def esd(inputs: AlignInputs, config: EsdConfig, context: Context) -> WeightEdit:
    """The 2025 form with f = c_e; at eta 2 it equals the 2023 form at eta 1.

        L = mean |eps_w(z, s, c_e) - [eps_0(z, s, c_e) - eta (eps_0(z, s, c_e) - eps_0(z, s, ""))]|^2

    A LoRA on the listed modules instead of the modules themselves: ours. The target is not used.

    Reference: Gandikota et al., "Erasing Concepts from Diffusion Models", arXiv 2303.07345.

    Known failure: it knows no target and, at mu 0, keeps nothing: near concepts go too.
    """

    def goal(frozen: Predictions) -> Tensor:
        erased, empty = frozen[ERASE, ERASED], frozen[ERASE, EMPTY]
        return erased - config.eta * (erased - empty)

    objective = toward((ERASE, ERASED), goal, ((ERASE, ERASED), (ERASE, EMPTY)), config.mu)
    return train(inputs, config, objective, context)
