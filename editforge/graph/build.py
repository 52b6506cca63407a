"""From names to a graph in a folder: check, erase each, draw, judge, and write what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from editforge.families.model import Model
from editforge.families.open import open_model
from editforge.families.vocabulary import check_words, word_list
from editforge.graph.graph import Graph, graph_of
from editforge.graph.outcomes import observe
from editforge.graph.page import PAGE, page
from editforge.graph.pictures import draw_pictures
from editforge.graph.place import Place
from editforge.graph.request import IMAGES, check_request, request
from editforge.graph.text import read_text
from editforge.ground.disk import write_text
from editforge.ground.errors import RecipeError
from editforge.ground.names import fold
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.recipe.recipe import Recipe

ALL = "all"  # as a word list: every name of the model's own


def measure(
    concepts: Sequence[str],
    output: Path | str,
    *,
    words: str | None = None,
    kind: str = "object",
    method: str = "default",
    preset: str | None = None,
    options: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    images: int = IMAGES,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Graph:
    """Erase each concept alone and measure what every other one loses.

        Delta(e, v) = G_0(v) - G_e(v)      G(v): share of v's pictures that all judges call v

    Guarantee: the base and every edited model draw the same prompts on the same noise. The same call on
    a folder that a killed one left goes on from the finished concepts and ends with the same bytes.
    n concepts cost n + 1 times n * images pictures, and n erasers.

    Args:
        concepts: at least two, names or aliases that the judge knows.
        output: a new or empty folder, or an earlier graph of the same request.
        words: `all` for every name of the model's own list, or a text file, one name a line; beside
            `concepts`.
        kind: object, style, person or broad.
        method: a method name or a recipe file.
        preset: a named block of the method's values.
        options: `stage.key=value` texts, as `--set` takes them.
        overrides: recipe keys, as `model`, `seed`, `evaluate`, `target`.
        images: pictures of each concept by each model. More: narrower intervals.
        progress: bars on stderr.
        say: takes one line for the user.

    Raises:
        EditforgeError: bad input, before anything is drawn; a refused edit. What is finished stays.

    Reference: the measurement of Bui et al., "Fantastic Targets for Concept Erasure in Diffusion Models
    and Where to Find Them" (AGE), with intervals of our own; methods.md 3.3.

    Known failure: with few pictures a small damage is not told from none; the interval says so.
    """
    concepts = [concepts] if isinstance(concepts, str) else list(concepts)

    def asked(names: Sequence[str]) -> Recipe:
        rows = [{"name": name, "kind": kind} for name in names]
        return resolve(method, {**(overrides or {}), "concepts": rows}, options, preset=preset)

    if not concepts and words is None:
        raise RecipeError("no concepts", allowed="names, or --words", next="editforge graph --help")
    if words not in (None, ALL):
        check_words(words)
    # A recipe has a concept; until the word list is read, any stands in for its names.
    recipe = asked(concepts or ["a"])
    check_request(recipe, images, listed=words is not None)
    with open_model(recipe.model, say) as model:
        if words is not None:
            own = {fold(name) for name in concepts}
            recipe = asked([*concepts, *(w for w in _words(model, words) if fold(w) not in own)])
            check_request(recipe, images)
        return _measured(recipe, model, Path(output), images, progress, say)


def _measured(
    recipe: Recipe,
    model: Model,
    output: Path,
    images: int,
    progress: bool,
    say: Callable[[str], None],
) -> Graph:
    wanted = request(recipe, model, images)
    context = Context(model, recipe.seed, progress, say=say)
    with Place(output, wanted.facts) as place:
        n = len(wanted.names)
        say(
            f"{n} concepts, {images} images each: {n * images} by the base, {n * n * images} without one"
        )
        outcomes = observe(wanted, context, place)
        graph = graph_of(wanted, outcomes, read_text(wanted, context), model)
        graph.save(output)
        write_text(output / PAGE, page(graph))
        if note := draw_pictures(graph, output):
            say(note)
    return graph


def _words(model: Model, source: str) -> tuple[str, ...]:
    if source == ALL and model.family.words != "emoji":
        raise RecipeError(
            "this model has no list of names of its own",
            got=f"family {model.family.name}",
            allowed="all on the embedded model, or a text file with one name a line",
            next="--words FILE",
        )
    return word_list(model, "family" if source == ALL else source)
