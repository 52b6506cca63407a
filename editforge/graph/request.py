"""What a graph is asked for: concepts, prompts, judges; and every refusal, before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from editforge.evaluate.prompts import SCORING_SEEDS, Prompt
from editforge.evaluate.prompts import emoji as emoji_prompts
from editforge.evaluate.prompts import general as general_prompts
from editforge.evaluate.scores import knows
from editforge.families.draw import Sampler, own_size, sampling_dtype
from editforge.families.model import Model
from editforge.ground.errors import RecipeError, did_you_mean
from editforge.ground.names import fold
from editforge.judges import Judge, load_judges
from editforge.recipe.line import LINE, Step
from editforge.recipe.recipe import Recipe
from editforge.run.check import check, check_model
from editforge.run.job import Job
from editforge.run.public import public_recipe

SCHEMA = "editforge.graph/1"
IMAGES = 16
_TEMPLATES = 8
_SEEDS = 64  # of one block, as the gate has them
_MOST = _TEMPLATES * _SEEDS


@dataclass(frozen=True)
class Request:
    """A checked request.

    `prompts` are of all concepts in order, `images` pictures each; `facts` is plain JSON data that
    decides every picture and every answer, without a path.
    """

    recipe: Recipe
    images: int
    prompts: tuple[Prompt, ...]
    judges: tuple[Judge, ...]
    sampler: Sampler
    dtype: str
    facts: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, in order."""
        return tuple(concept.name for concept in self.recipe.concepts)

    @property
    def singles(self) -> tuple[Recipe, ...]:
        """The recipe that erases each concept alone."""
        return alone(self.recipe)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Concept to the judge labels that count as it."""
        return {prompt.concept: prompt.labels for prompt in self.prompts}


def alone(recipe: Recipe) -> tuple[Recipe, ...]:
    """One recipe for each concept of a recipe."""
    return tuple(recipe.model_copy(update={"concepts": (one,)}) for one in recipe.concepts)


def check_request(recipe: Recipe, images: int, listed: bool = False) -> None:
    """Refuse what no model can mend: too few concepts, no judge, too many pictures.

    Args:
        recipe: of all concepts together.
        images: of each concept.
        listed: more concepts come from a word list.

    Raises:
        EditforgeError: the first fault found.
    """
    if len(recipe.concepts) < 2 and not listed:
        raise RecipeError(
            "a graph needs at least two concepts",
            got=", ".join(concept.name for concept in recipe.concepts),
            allowed="names, or --words all for every name of the model's own list",
            next="editforge graph violin umbrella bicycle --output runs/graph",
        )
    if not 1 <= images <= _MOST:
        raise RecipeError("no such number of images", got=images, allowed=f"1 to {_MOST}")
    if recipe.continue_from is not None:
        raise RecipeError(
            "a graph erases one concept at a time",
            got="continue_from: an earlier edit would be in every erasure",
            next="leave continue_from out",
        )
    if recipe.evaluate is None or recipe.evaluate.judge is None:
        raise _without_judge("none was asked for")
    for single in alone(recipe):
        check(single)


def request(recipe: Recipe, model: Model, images: int) -> Request:
    """Prompts and judges for a recipe of all concepts, on a model that is open.

    Raises:
        RecipeError: no judge, or a concept that a judge does not know.
    """
    for single in alone(recipe):
        check_model(single, model)
    assert recipe.evaluate is not None
    family = model.family.name
    prompts = tuple(
        p for concept in recipe.concepts for p in _prompts(concept, family, recipe.seed, images)
    )
    labels = tuple(dict.fromkeys(label for p in prompts for label in p.labels))
    judges = load_judges(recipe.evaluate.judge, family, labels)
    if not judges:
        raise _without_judge(f"family {family} has none of its own")
    _check_known(prompts, judges)
    pipe = model.pipeline()
    sampler = model.sampler
    sampler = replace(sampler, size=sampler.size or own_size(pipe))
    dtype = sampling_dtype(pipe, None)
    public = public_recipe(recipe, model.label)
    facts = {
        "schema": SCHEMA,
        "recipe": {k: v for k, v in public.items() if k not in ("package", "evaluate")},
        "stages": {step.name: step.version for step in _steps(recipe)},
        "code": _code(recipe),
        "base": model.digest,
        "device": model.device,
        "dtype": dtype,
        "sampler": sampler.record(),
        "judges": [{"name": judge.name, "sha256": judge.sha256} for judge in judges],
        "images": images,
        "prompts": [[p.id, p.text, list(p.labels), list(p.seeds)] for p in prompts],
    }
    return Request(recipe, images, prompts, judges, sampler, dtype, facts)


def _prompts(concept: Any, family: str, seed: int, images: int) -> list[Prompt]:
    """Held-out templates in turn, each with as many seeds as it takes."""
    blocks = len(SCORING_SEEDS) // _SEEDS
    start = SCORING_SEEDS.start + seed % blocks * _SEEDS
    drawer: Any = emoji_prompts.held_out
    if family != "emoji":
        drawer = partial(general_prompts.held_out, kind=concept.kind)
    found = []
    for template in range(min(_TEMPLATES, images)):
        own = range(start, start + len(range(template, images, _TEMPLATES)))
        found.append(drawer(concept.name, template, "name", concept.name, tuple(own)))
    return found


def _check_known(prompts: Sequence[Prompt], judges: Sequence[Judge]) -> None:
    unknown = dict.fromkeys(p.concept for p in prompts if not knows(judges, p.labels))
    if not unknown:
        return
    first, labels = next(iter(unknown)), [label for label in judges[0].labels if label != "none"]
    raise RecipeError(
        f"no judge knows {', '.join(unknown)}",
        got=", ".join(judge.name for judge in judges),
        allowed=did_you_mean(fold(first), labels)[:400],
        next="leave it out, or name a CLIP model: --judge FOLDER",
    )


def _without_judge(why: str) -> RecipeError:
    return RecipeError(
        "a graph needs a judge, who says what a picture shows",
        got=why,
        allowed="family on the embedded model, or the folder of a CLIP model",
        next="--judge FOLDER",
    )


def _code(recipe: Recipe) -> dict[str, str]:
    """Digests of strangers' code that erases."""
    job = Job(recipe)
    return {name: digest for step in _steps(recipe) for name, digest in job.code(step).items()}


def _steps(recipe: Recipe) -> list[Step]:
    return [step for step in LINE if step.inputs and step.config(recipe) is not None]
