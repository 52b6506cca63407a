"""Names that are perhaps no one name: a list behind commas, or the weights and brackets of a prompt.

`violence, nudity, harm` are three concepts to other erasers and one phrase to a text encoder;
`(violin:1.2)` is a violin to a user interface and seven odd tokens here. Neither is guessed: it is asked
which of the two is meant. A parenthesis behind a name, `Mickey Mouse (Disney)`, belongs to it; so does a
comma between digits, `10,000 Maniacs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from editforge.ground.errors import RecipeError

_BETWEEN = re.compile(r"(?<!\d)[,，]|[,，](?!\d)|[;|、；]|(?<!\S)(?:AND|BREAK)(?!\S)")
_NETWORK = re.compile(r"<\w+:[^<>]*>")
_WEIGHED = re.compile(r"[(\[{]+([^()\[\]{}]*):\s*-?\d*\.?\d+\s*[)\]}]+")
_WRAPPED = re.compile(r"[(\[{]+([^()\[\]{}]*)[)\]}]+")
_WEIGHT = re.compile(r"(?:(?<=[^\W\d]):-?\d*\.\d+|(?<=\S)::-?\d*\.?\d+)$")


def otherwise(name: str) -> list[str] | None:
    """The names that this would be as a list or in a prompt's syntax; None: it is plainly one name."""
    whole = name.strip()
    if not any(letter.isalnum() for letter in whole):
        return None
    text = _WEIGHED.sub(r"\1", _NETWORK.sub(" ", whole)).strip()
    found = []
    for part in _BETWEEN.split(_unwrapped(text)):
        bare = _WEIGHT.sub("", _unwrapped(part.strip())).strip()
        found += [bare] if bare else []
    return None if found == [whole] else list(dict.fromkeys(found))


def _unwrapped(text: str) -> str:
    wrapped = _WRAPPED.fullmatch(text)
    return wrapped[1] if wrapped else text


def refuse_doubtful(
    names: Iterable[str], other: Callable[[str, list[str]], str], one: Callable[[str], str]
) -> None:
    """Ask about the first name that is perhaps none.

    Args:
        names: as they were typed.
        other: from a name and what it would be otherwise to what the user types to mean that.
        one: from a name to what the user types to mean it as it stands.

    Raises:
        RecipeError: with both ways out.
    """
    for name in names:
        found = otherwise(name)
        if found is None:
            continue
        several = len(found) > 1
        raise RecipeError(
            "is this one name, or several?" if several else "is this a name, or a prompt's syntax?",
            got=name,
            allowed=f"{'several' if several else 'the name alone'}: {other(name, found)}"
            if found
            else None,
            next=f"one name, as written: {one(name)}",
        )
