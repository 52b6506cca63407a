"""LECO-like: no text is the target, pushed away from the concept; preserve prompts are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from editforge.align.objective import EMPTY, ERASE, ERASED, Predictions, toward
from editforge.align.options import LoraOptions
from editforge.align.train import train
from editforge.artifacts.weight_edit import WeightEdit
from editforge.recipe.contract import AlignInputs, Context
from editforge.recipe.registry import register


class LecoConfig(LoraOptions):
    """Options of `align: leco`. methods.md 5.6."""

    rank: int = Field(4, ge=1, description="Of each LoRA; alpha equals it. Higher: more freedom.")
    latents: Literal["pool", "current"] = Field(
        "current", description="pool: runs of the frozen model, made once; current: as LECO does."
    )
    eta: float = Field(
        1.0, ge=0, description="Higher pushes further away; 0 maps the concept to no text at all."
    )
    mu: float = Field(1.0, ge=0, description="Of what is kept; LECO itself keeps nothing.")


@register("align", "leco", paper=None)
def leco(inputs: AlignInputs, config: LecoConfig, context: Context) -> WeightEdit:
    """Positive text c_e, neutral and unconditional text empty, plus a keep term of ours.

        L = mean |eps_w(z, s, c_e) - [eps_0(z, s, "") - eta (eps_0(z, s, c_e) - eps_0(z, s, ""))]|^2
            + mu mean |eps_w(z, s, H_b) - eps_0(z, s, H_b)|^2

    At mu 0 and eta 1 this is ESD's loss of 2023.
    """

    def goal(frozen: Predictions) -> Tensor:
        erased, empty = frozen[ERASE, ERASED], frozen[ERASE, EMPTY]
        return empty - config.eta * (erased - empty)

    objective = toward((ERASE, ERASED), goal, ((ERASE, ERASED), (ERASE, EMPTY)), config.mu)
    return train(inputs, config, objective, context)
