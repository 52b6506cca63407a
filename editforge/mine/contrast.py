"""Contrast prompts: the same words with the concept and without it.

The concept's words are put into the templates of its kind and dropped from them again: `an emoji of a
violin`, `an emoji`. What differs between the pictures of both is the concept, as the paper has it;
the near-miss phrases of its release leave that out which concept and near miss share.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editforge.ground.disk import read_yaml
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled

_PLACE = re.compile(r"(?:\b(?:in the style of|of|by|with|about|from)\s+)?\{[na]\}(?:\s+style\b)?")
MOST = 10_000


@dataclass(frozen=True)
class Pair:
    """Two prompts that are drawn from the same noise, and which repetition of them this is."""

    with_concept: str
    without: str
    turn: int = 0


def dropped(template: str) -> str:
    """A template without its name and what leads to it: `an emoji of {a}, red` is `an emoji, red`."""
    text = re.sub(r"\s+", " ", _PLACE.sub("", template))
    return re.sub(r"\s*,(\s*,)*", ",", text).strip(" ,")


def pairs_of(names: Sequence[str], templates: Sequence[str], count: int) -> list[Pair]:
    """`count` pairs: every name of a concept in every template, in turn, until there are enough."""
    texts = [(filled(t, name), dropped(t)) for t in templates for name in names]
    return [Pair(*texts[at % len(texts)], at // len(texts)) for at in range(count)]


def pairs_in(path: str) -> list[Pair]:
    """The pairs of a user's YAML file: a list of [with, without], or of mappings with these keys.

    Raises:
        RecipeError: no such file, no pair in it, or a row that is none.
    """
    rows = read_yaml(Path(path).expanduser())
    found = []
    for row in rows if isinstance(rows, list) else []:
        texts = [row.get("with"), row.get("without")] if isinstance(row, dict) else row
        good = (
            isinstance(texts, list) and len(texts) == 2 and all(isinstance(t, str) for t in texts)
        )
        if (
            not good
            or not str(texts[0]).strip()
            or texts[0] == texts[1]
            or max(map(len, texts)) > 2000
        ):
            raise RecipeError(
                f"{Path(path).name} has a row that is no pair of prompts",
                got=str(row)[:120],
                allowed='["a prompt with the concept", "the same without it"]',
            )
        found.append(Pair(*texts))
    if not found or len(found) > MOST:
        raise RecipeError(
            f"{Path(path).name} holds no list of pairs",
            got=len(found),
            allowed=f"1 to {MOST} pairs",
        )
    return found
