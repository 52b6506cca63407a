"""AGE: a model learns to draw a target that its opponent, a mixture of candidates, chooses meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from editforge.align.denoiser import Denoiser
from editforge.align.mixture import Candidates, Mixture
from editforge.align.objective import (
    ERASE,
    ERASED,
    LEADING,
    MIXED,
    MIXTURE,
    Objective,
    Parts,
    Predictions,
    Row,
    Turn,
)
from editforge.align.options import LoraOptions
from editforge.align.prompts import Prompts
from editforge.align.train import Loop, Opponent, prepared, refuse_dense
from editforge.artifacts.chosen import erased_names, kin, provenance_rows
from editforge.artifacts.concepts import Concept
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditError, RecipeError
from editforge.ground.names import filled, fold
from editforge.recipe.contract import AlignInputs, Context
from editforge.recipe.registry import register

OWN: Row = (ERASE, ERASED)
GOAL: Row = (ERASE, MIXED)
KEEP_T: Row = (LEADING, MIXED)


class AgeConfig(LoraOptions):
    """Options of `align: age`. methods.md 3.5 and 3.6."""

    modules: tuple[str, ...] = Field(
        ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        min_length=1,
        description="Endings of the linear maps that get a LoRA. More: stronger, wider effects.",
    )
    rank: int = Field(
        16, ge=1, description="Of each LoRA, or of what a matrix becomes. Higher: more freedom."
    )
    steps: int = Field(
        300, ge=0, description="Of the model; the mixture takes as many between them."
    )
    mixture: Literal["learned", "fixed"] = Field(
        "learned", description="learned: plays against the model; fixed: the stage's own target."
    )
    lam: float = Field(
        1.0, ge=0, description="Of the target being kept. Higher: less drift, weaker erasure."
    )
    erase_target: Literal["plain", "overshoot"] = Field(
        "plain", description="overshoot: past the target by `ng` times the way from the concept."
    )
    ng: float = Field(1.0, ge=0, description="Of the overshoot. Higher: further past the target.")
    space: Literal["eps", "x0"] = Field(
        "eps",
        description="Losses in predicted noise, or in predicted images: noisy times dominate.",
    )
    l1_grad_to_pi: bool = Field(True, description="The erase term moves the mixture too.")
    frozen_l2_grad_to_pi: bool = Field(
        True, description="The keep term moves it through the frozen model too."
    )
    k_closest: int = Field(
        100, ge=1, description="Nearest candidates that play. Higher: more choice, more memory."
    )
    with_concept: bool = Field(
        False, description="The concept plays too, as in the released code. Higher risk of nothing."
    )
    templates: tuple[str, ...] | None = Field(
        None, description="Of what is erased, with {n} or {a}; null: the family's for the kind."
    )
    temperature: float = Field(
        0.1, gt=0, description="Of the Gumbel-softmax. Lower: nearer to one candidate."
    )
    quiet_from: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the training at which its noise is gone; null: never.",
    )
    hard: bool = Field(False, description="One candidate at a time, instead of a mixture.")
    topk: int = Field(2, ge=1, description="Candidates of a soft mixture. Higher: blurrier.")
    pi_lr: float = Field(1e-2, gt=0, description="Of the logits. Higher: faster, rougher.")
    lead_runs: int = Field(
        8, ge=1, description="Sampling runs of a candidate that comes to lead. More: slower."
    )

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """Templates must have a place for the name."""
        super().check_early(concepts)
        for text in self.templates or ():
            if "{n}" not in text and "{a}" not in text:
                raise RecipeError(
                    "a template lacks its place for the name",
                    got=text,
                    allowed="{n} the name, {a} the name with its article",
                )


@register("align", "age", paper="https://arxiv.org/abs/2501.18950")
def age(inputs: AlignInputs, config: AgeConfig, context: Context) -> WeightEdit:
    """Play a game: the model descends, the mixture of targets ascends, in turn.

        T  = y(pi) . M                                         see `mixture`
        L1 = mean |eps_w(z_e, E) - goal|^2,  goal = eps_0(z_e, T)
        L2 = mean |eps_w(z_t, T) - eps_0(z_t, T)|^2
        the model lowers L1 + lam L2, the mixture raises it

    overshoot: the model's goal is eps_0(z_e, T) - ng (eps_0(z_e, E) - eps_0(z_e, T)). Space x0: each
    difference times sqrt((1 - abar) / abar) for models that predict noise, sqrt(1 - abar) for velocity.
    E is a prompt with the concept, T the same with the mixture; z_e are latents of E, z_t of the
    candidate that leads. Raising L1 leads away from synonyms, raising L2 to what the edit disturbs.

    The result says the words that lead at the end as its targets; their way is in the run's log,
    `align/trajectory.json` and `.png`.

    Raises:
        EditError: no candidate besides the concept; RecipeError: as `train`.

    Reference: Bui et al., "Fantastic Targets for Concept Erasure in Diffusion Models and Where To Find
    Them", arXiv 2501.18950.

    Known failure: what is learned may be blurrier than the nearest word that is drawn otherwise; see
    docs/age.md.
    """
    refuse_dense(inputs.edit)
    if config.steps == 0:
        return inputs.edit
    with prepared(inputs, config, context, templates=config.templates) as (
        denoiser,
        model,
        prompts,
    ):
        candidates = {
            concept.name: candidates_of(concept, inputs, config, prompts, denoiser, context)
            for concept in inputs.concepts
        }
        mixture = Mixture(
            candidates,
            temperature=config.temperature,
            hard=config.hard,
            topk=config.topk,
            seed=context.seed,
            device=denoiser.device,
        )
        against = Opponent(mixture, config.pi_lr, config.quiet_from, config.lead_runs)
        turns = turns_of(config, scale_of(config.space, denoiser))
        played = turns if config.mixture == "learned" else turns[:1]
        loop = Loop(config, played, context, denoiser, model, prompts, against)
        loop.run()
        return _explained(loop.on(inputs.edit), mixture, inputs)


def turns_of(config: AgeConfig, scale: Callable[[Tensor], Tensor] | None) -> tuple[Turn, Turn]:
    """The model's turn and the mixture's, with the gradients of methods.md 3.5."""
    lam = config.lam

    def game(goal: Callable[[Predictions], Tensor], reads: tuple[Row, ...]) -> Objective:
        def parts(teacher: Predictions, student: Predictions) -> Parts:
            erase = (student[OWN] - goal(teacher)).square().mean()
            keep = (student[KEEP_T] - teacher[KEEP_T]).square().mean()
            return {"loss": erase + lam * keep, "erase": erase, "keep": keep}

        names = ("loss", "erase", "keep")
        return Objective((*reads, KEEP_T), (OWN, KEEP_T), parts, names, scale)

    def plain(frozen: Predictions) -> Tensor:
        return frozen[GOAL]

    def past(frozen: Predictions) -> Tensor:
        return frozen[GOAL] - config.ng * (frozen[OWN] - frozen[GOAL])

    over = config.erase_target == "overshoot"
    through = [GOAL] if config.l1_grad_to_pi else []
    through += [KEEP_T] if config.frozen_l2_grad_to_pi else []
    return (
        Turn(game(past, (GOAL, OWN)) if over else game(plain, (GOAL,))),
        Turn(
            game(plain, (GOAL,)),
            player=MIXTURE,
            ascends=True,
            teacher=frozenset(through),
            student=frozenset([KEEP_T]),
        ),
    )


def scale_of(space: str, denoiser: Denoiser) -> Callable[[Tensor], Tensor] | None:
    """What a difference of the model's outputs is multiplied by at times (n,), for a space.

    eps: 1, the model's own output, noise or velocity (methods.md 0.3). x0: sqrt((1 - abar) / abar) from
    noise, and sqrt(1 - abar) from velocity v, since x0 = sqrt(abar) z - sqrt(1 - abar) v.
    """
    if space == "eps":
        return None
    scheduler = denoiser.pipe.scheduler
    velocity = scheduler.config.prediction_type == "v_prediction"
    abar = scheduler.alphas_cumprod.double()

    def scale(times: Tensor) -> Tensor:
        a = abar[times.long().cpu()]
        return (1 - a).sqrt() if velocity else ((1 - a) / a).sqrt()

    return scale


def candidates_of(
    concept: Concept,
    inputs: AlignInputs,
    config: AgeConfig,
    prompts: Prompts,
    denoiser: Denoiser,
    context: Context,
) -> Candidates:
    """What a concept may become, encoded in every template of its erased prompts.

    Raises:
        EditError: nothing but the concept is left.
    """
    words = _words(concept, inputs, config)
    templates = prompts.templates(concept)
    states, pooled = [], []
    for template in templates:
        texts = [filled(template, word) for word in words]
        for text in filter(None, texts):  # nothing is a target too
            context.model.encoder.check(text)
        found = denoiser.encode(texts)
        states.append(torch.stack([text.states for text in found]))
        if found[0].pooled is not None:
            pooled.append(torch.stack([one.pooled for one in found if one.pooled is not None]))
    return Candidates(tuple(words), tuple(states), tuple(pooled))


def _words(concept: Concept, inputs: AlignInputs, config: AgeConfig) -> list[str]:
    if config.mixture == "fixed":
        return [inputs.targets.of(concept.name).target]
    erased = {fold(n) for other in inputs.concepts for n in erased_names(other, inputs)}
    erased |= {fold(word) for word in kin(inputs)}
    near = inputs.neighbors.of(concept.name)
    free = [row.word for row in near.words if row.candidate and fold(row.word) not in erased]
    if not free:
        raise EditError(
            f"{concept.name!r} has no candidate to become",
            got=near.counts or "no word besides the concept",
            allowed="words of `mine` with `candidate: true` that are not erased",
            next="give a longer list (--set mine.words=FILE), or --set align.mixture=fixed",
        )
    return [*free[: config.k_closest], *([concept.name] if config.with_concept else [])]


def _explained(edit: WeightEdit, mixture: Mixture, inputs: AlignInputs) -> WeightEdit:
    """The edit with its learned targets: what the gate compares with, and what the card says."""
    learned: Mapping[str, list[tuple[str, float]]] = {
        name: mixture.leading(name) for name in mixture.candidates
    }
    rows = [{**row, "target": learned[str(row["name"])][0][0]} for row in provenance_rows(inputs)]
    facts: dict[str, Any] = {**edit.provenance["align"]}
    facts["targets"] = {name: [list(pair) for pair in own] for name, own in learned.items()}
    return replace(edit, provenance={**edit.provenance, "align": facts, "erased": rows})
