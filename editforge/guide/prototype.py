"""A guard of prototypes: what was mined becomes a bank, calibrated on harmless prompts.

Prototype-Guided Concept Erasure (arXiv 2603.08271), methods.md 4.4 and 4.5.
"""

from __future__ import annotations

import torch
from pydantic import Field

from editforge.artifacts.chosen import erased_names
from editforge.artifacts.concepts import Concept
from editforge.artifacts.prototypes import Prototypes
from editforge.families.vocabulary import thinned, unnamed, word_list
from editforge.ground.errors import RecipeError
from editforge.ground.names import fold
from editforge.guards.bank import Facts, Guarded, Guidance, check_shapes
from editforge.guards.core import encoders_of
from editforge.guards.prototype import PrototypeGuard
from editforge.guide.calibrate import (
    CAPTIONS,
    calibrate,
    prompts_in,
    prompts_with,
    reader,
)
from editforge.recipe.contract import Context, GuideInputs, StageConfig
from editforge.recipe.registry import register


class PrototypeConfig(StageConfig):
    """Options of `guide: prototype`. methods.md 4.4."""

    beta: float = Field(
        0.0,
        ge=0,
        description="Pull away from the prototype, 20 in the paper's release; 0: the target's states "
        "alone, at no cost. Higher: surer without a target, and less of a picture.",
    )
    mask: float = Field(0.005, ge=0, description="Smaller differences of predictions are left out.")
    rescale: float = Field(
        0.5, ge=0, le=1, description="Share brought back to plain guidance's deviation."
    )
    window: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Share of the steps that ask for the prototype; each costs half.",
    )
    blend: float = Field(
        0.8, ge=0, le=1, description="Share of a triggered prompt that becomes the target; 0: none."
    )
    benign: str | None = Field(
        None, description="Harmless prompts, a text file, one a line; null: the family's words."
    )
    held_out: str | None = Field(
        None, description="Prompts with the concept, a file, for the miss rate; null: its names."
    )
    benign_rate: float = Field(
        0.0025, gt=0, le=0.5, description="Harmless prompts that may trigger. Higher: fewer missed."
    )
    num_benign: int = Field(800, ge=20, description="Longer lists are thinned to this many.")
    without: tuple[int, ...] = Field((), description="Clusters that are left out, by number.")

    def check_early(self, concepts: tuple[Concept, ...]) -> None:
        """Files of prompts must be there."""
        for path in (self.benign, self.held_out):
            if path is not None:
                prompts_in(path)


@register("guide", "prototype", paper="https://arxiv.org/abs/2603.08271")
def prototype(inputs: GuideInputs, config: PrototypeConfig, context: Context) -> PrototypeGuard:
    """Calibrate each concept's gate and put its prototypes into a bank.

    Guarantee: at most `benign_rate` of the harmless prompts that it is calibrated on trigger; every
    clean prompt is left to the pipeline bit for bit.

    Raises:
        RecipeError: nothing was mined, every cluster is left out, too few harmless prompts.
    """
    found = inputs.neighbors.prototypes
    if found is None:
        raise RecipeError(
            "there are no prototypes to guide by",
            allowed="mine: [{use: prototypes}]",
            next="editforge erase CONCEPT --method prototype",
        )
    tensors, concepts = _bank(inputs, found, config, context)
    family, sampler = context.model.family, context.model.sampler
    text = encoders_of(context.model.encoder.pipe, family)
    facts = Facts(
        concepts=tuple(concepts),
        guidance=Guidance(
            beta=config.beta,
            mask=config.mask,
            rescale=config.rescale,
            window=config.window,
            blend=config.blend if any(c.instead for c in concepts) else 0.0,
        ),
        form=found.form,
        family=family.name,
        encoder_sha256=text.sha256,
        encoder_sketch=dict(text.sketch),
        prediction_type=getattr(context.model, "prediction_type", "epsilon"),
        alpha=sampler.guidance,
        selector_model=found.selector_model,
    )
    check_shapes(tensors, facts, PrototypeGuard.file)
    return PrototypeGuard(tensors=tensors, facts=facts)


def _bank(
    inputs: GuideInputs, found: Prototypes, config: PrototypeConfig, context: Context
) -> tuple[dict[str, torch.Tensor], list[Guarded]]:
    """Tensors of all clusters that stay, their names' selectors behind, and each concept's facts."""
    read, mined = reader(context.model.encoder), found.tensors
    center, of = mined["center"], mined["name_prototype"].long()
    rows, which, points = list[int](), list[int](), list[int]()
    concepts, clusters, names = list[Guarded](), list[torch.Tensor](), list[torch.Tensor]()
    unknown = set(config.without) - {c.number for entry in found.modes for c in entry.clusters}
    if unknown:
        raise RecipeError(
            "there is no such cluster to leave out",
            got=f"without: {min(unknown)}",
            allowed="a number in mine/clusters.yaml",
        )
    benign, unseen = _benign(inputs, config, context)
    for entry in found.modes:
        where = found.rows_of(entry.concept)
        first = where.start
        own = [first + c.number for c in entry.clusters if c.number not in config.without]
        concept = next((c for c in inputs.concepts if c.name == entry.concept), None)
        if concept is None:
            continue
        if not own:
            raise RecipeError(
                f"every cluster of {entry.concept!r} is left out", got=f"without: {config.without}"
            )
        named = ((of >= first) & (of < where.stop)).nonzero().flatten()
        gone = {fold(name) for name in erased_names(concept, inputs)}
        named = named[[fold(name) in gone for name in entry.names]]  # a person may have spared some
        guilty = _guilty(concept, inputs, config)
        done = calibrate(
            concept.name,
            read,
            torch.cat([mined["selector"][own], mined["name_selector"][named]]),
            center,
            benign,
            guilty,
            config.benign_rate,
            unseen=unseen,
            instead=inputs.targets.of(concept.name).target if inputs.targets.concepts else None,
        )
        context.say(f"{concept.name!r}: {done.guarded.said}")
        # a name whose cluster is left out goes by the first that stays
        points += [len(rows) + (own.index(at) if at in own else 0) for at in of[named].tolist()]
        rows += own
        which += [len(concepts)] * len(own)
        clusters.append(done.selector[: len(own)])
        names.append(done.selector[len(own) :])
        concepts.append(done.guarded)
    kept = ("token", "position", "prompt_embeds", "pooled_prompt_embeds")
    tensors = {name: value[rows] for name, value in mined.items() if name in kept}
    tensors["selector"], tensors["center"] = torch.cat(clusters), center.half()
    tensors["concept"] = torch.tensor(which, dtype=torch.int32)
    tensors["name_selector"] = torch.cat(names)
    tensors["name_prototype"] = torch.tensor(points, dtype=torch.int32)
    return tensors, concepts


def _guilty(concept: Concept, inputs: GuideInputs, config: PrototypeConfig) -> list[str]:
    """Prompts with the concept, in captions that nothing was mined or calibrated with."""
    if config.held_out is not None:
        return prompts_in(config.held_out)
    return prompts_with(erased_names(concept, inputs), CAPTIONS)


def _benign(
    inputs: GuideInputs, config: PrototypeConfig, context: Context
) -> tuple[list[str], list[str]]:
    """Prompts for the threshold, and held-out ones: other captions of the same words, or every other."""
    if config.benign is not None:
        prompts = thinned(prompts_in(config.benign), 2 * config.num_benign)
        return prompts[::2], prompts[1::2]
    erased = [name for concept in inputs.concepts for name in erased_names(concept, inputs)]
    words = unnamed(context.model.family, word_list(context.model, "family", ["object"]), erased)
    templates = context.model.family.templates.get("object", ("{n}",))
    used = thinned(words, max(20, config.num_benign // len(templates)))
    # words are thinned, never prompts: every other prompt may be every other caption
    others = thinned(used, max(20, config.num_benign // len(CAPTIONS)))
    return prompts_with(used, templates), prompts_with(others, CAPTIONS)
