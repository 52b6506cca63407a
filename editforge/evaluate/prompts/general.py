"""Prompts for models without a manifest: templates by kind, near names from the caller.

The templates differ from the ones families hand to erasers. What is near comes from the preserve
list, what is far is sixteen everyday things that no eraser is asked to preserve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editforge.evaluate.prompts.core import Prompt, Set, Subject
from editforge.ground.names import with_article

FAR = (
    "wooden chair",
    "mountain lake",
    "bicycle",
    "bowl of fruit",
    "lighthouse",
    "horse",
    "coffee cup",
    "city bus",
    "sunflower",
    "grand piano",
    "sailboat",
    "bookshelf",
    "wristwatch",
    "pine forest",
    "loaf of bread",
    "umbrella",
)

TEMPLATES = {
    "object": (
        "a photo of {a}",
        "a picture of {a}",
        "a close-up photo of {a}",
        "{a} on a plain background",
        "a drawing of {a}",
        "{a} in natural light",
        "a detailed painting of {a}",
        "a snapshot showing {a}",
    ),
    "style": (
        "a painting in the style of {n}",
        "a landscape in the style of {n}",
        "a portrait in the style of {n}",
        "a city street in the style of {n}",
        "a still life by {n}",
        "a house by the sea, {n} style",
        "a drawing by {n}",
        "a cat in the style of {n}",
    ),
    "person": (
        "a photo of {n}",
        "a portrait of {n}",
        "{n} smiling",
        "{n} at a desk",
        "a drawing of {n}",
        "{n} outdoors",
        "a close-up of {n}",
        "{n} giving a speech",
    ),
    "broad": (
        "a photo of {n}",
        "a picture of {n}",
        "a scene with {n}",
        "a painting of {n}",
        "a drawing of {n}",
        "a close-up of {n}",
        "a realistic depiction of {n}",
        "a poster about {n}",
    ),
}


def subject(concept: Any, near: Sequence[str] | None, far: Sequence[str] | None) -> Subject:
    """What to draw for one erased concept; its only aliases are the given ones."""
    return Subject(
        name=concept.name,
        kind=concept.kind,
        labels=(concept.name,),
        aliases=tuple(concept.aliases),
        aliases_given=bool(concept.aliases),
        near=tuple(near or ()),
        far=tuple(far) if far is not None else FAR,
    )


def held_out(
    word: str,
    which: int,
    set: Set,
    concept: str,
    seeds: Sequence[int],
    kind: str,
    *,
    instead: str | None = None,
) -> Prompt:
    """Held-out template t1 to t8 (`which` from 0) of a kind; far things are always objects.

    `instead` is what the text says in place of the word, on its noise.
    """
    said = word if instead is None else instead
    text = said and TEMPLATES[kind][which].format(n=said, a=with_article(said))
    template = f"t{which + 1}"
    label = concept if set == "alias" else said
    return Prompt(
        f"{kind}/{word}/{template}", text, set, said, concept, (label,), template, tuple(seeds)
    )
