"""Word lists by kind, of our own making: what an object, a style, a person or a theme may become.

A painter should become another painter and a theme another theme, so each kind of concept has a list,
in sections, some of one group (`# artists: illustration`). `words/PROVENANCE.md` says who wrote them
and what was left out. No list is ever read for the embedded model, which has its own names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from editforge.ground.names import name_key, names_the_same

_FILES = {"object": "objects", "style": "styles", "person": "people", "broad": "themes"}
KINDS = tuple(_FILES)
_KEPT_ONLY = "(never a target)"


@dataclass(frozen=True)
class Entry:
    """A word or phrase, the heading it stands under, and whether it may take a concept's place."""

    word: str
    section: str
    is_target: bool


@cache
def entries(kind: str) -> tuple[Entry, ...]:
    """The list of one kind, in the order of its file."""
    path = Path(__file__).parent / "words" / f"{_FILES[kind]}.txt"
    found, section = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line.removeprefix("#").strip()
        elif line:
            found.append(Entry(line, section, not section.endswith(_KEPT_ONLY)))
    return tuple(found)


def words_by_kind(kinds: Iterable[str]) -> tuple[str, ...]:
    """The words of some kinds, in the order of KINDS whatever the order asked for, each once."""
    asked = set(kinds)
    first: dict[str, str] = {}
    for kind in KINDS:
        for entry in entries(kind) if kind in asked else ():
            first.setdefault(name_key(entry.word), entry.word)
    return tuple(first.values())


@cache
def kept_only(kind: str) -> frozenset[str]:
    """The words of a kind that may be preserved, and are never a target."""
    return frozenset(entry.word for entry in entries(kind) if not entry.is_target)


@cache
def section_of(kind: str, name: str) -> str | None:
    """The heading a name stands under: its own, or the longest entry's that names the same.

    `Van Gogh` stands where `Vincent van Gogh` does, `acoustic guitar` where `guitar` does. None: the
    list does not know it.
    """
    key = name_key(name)
    able = [entry for entry in entries(kind) if names_the_same(entry.word, name)]
    able.sort(key=lambda entry: (name_key(entry.word) != key, -len(entry.word)))
    return able[0].section if able else None
