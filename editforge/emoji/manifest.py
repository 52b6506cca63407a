"""What the embedded model knows: names, aliases, splits, neighbors, templates, art styles.

The JSON file in `assets/` is the single source; this file gives it types and the few look-ups that
more than one room needs. Nothing here imports torch, so listing names costs no seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmojiConcept:
    """One of the 240 drawings: how it is called, where it belongs, which styles draw it."""

    index: int
    name: str
    aliases: tuple[str, ...]
    group: str
    subgroup: str
    group_word: str | None
    art: Mapping[str, str]


@dataclass(frozen=True)
class Near:
    """Names near an erased concept: by meaning (hand-made) and by appearance (vision tower)."""

    meaning: tuple[str, ...]
    appearance: tuple[str, ...]


@dataclass(frozen=True)
class Broad:
    """A broad concept: its listed members and the names around them."""

    members: tuple[str, ...]
    near: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """One art style with the package it came from and its license."""

    name: str
    package: str
    version: str
    license: str
    source: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of the embedded model, frozen. Tuples keep the order of the file.

    `far` maps a panel to its names, `far_panel` an erased concept to its panel; `templates` has the
    keys captions, seen and held_out; `colors` maps a background to its RGB values.
    """

    image_size: int
    concepts: tuple[EmojiConcept, ...]
    styles: tuple[Style, ...]
    colors: Mapping[str, tuple[int, int, int]]
    templates: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, tuple[str, ...]]
    near: Mapping[str, Near]
    far: Mapping[str, tuple[str, ...]]
    far_panel: Mapping[str, str]
    twins: tuple[tuple[str, ...], ...]
    multi: Mapping[str, tuple[str, ...]]
    broad: Mapping[str, Broad]

    @property
    def names(self) -> tuple[str, ...]:
        """The 240 names in the order of the judges' classes."""
        return tuple(concept.name for concept in self.concepts)

    @property
    def words(self) -> tuple[str, ...]:
        """The 180 names an eraser may know: all but RETAIN-60, in manifest order."""
        withheld = frozenset(self.splits["retain60"])
        return tuple(name for name in self.names if name not in withheld)

    @property
    def group_words(self) -> tuple[str, ...]:
        """The words for whole groups, such as *animal*, in order of first use."""
        words = (concept.group_word for concept in self.concepts)
        return tuple(dict.fromkeys(word for word in words if word is not None))

    def find(self, word: str) -> EmojiConcept | None:
        """The concept with this name, or else the only one with this alias; None if unknown."""
        named = [concept for concept in self.concepts if concept.name == word]
        found = named or [concept for concept in self.concepts if word in concept.aliases]
        return found[0] if len(found) == 1 else None

    def members(self, group_word: str) -> tuple[str, ...]:
        """The names a group word stands for; empty for a word that names no group."""
        if group_word in self.broad:
            return self.broad[group_word].members
        return tuple(c.name for c in self.concepts if c.group_word == group_word)

    def labels(self, word: str) -> tuple[str, ...]:
        """The names that count as this word: itself and twins, or the members of a group."""
        if members := self.members(word):
            return members
        found = self.find(word)
        return (found.name, *self.twins_of(found.name)) if found else ()

    def twins_of(self, name: str) -> tuple[str, ...]:
        """The other names of the same object, `cat face` for `cat`; usually empty."""
        return tuple(
            other for pair in self.twins if name in pair for other in pair if other != name
        )


def read(path: Path) -> Manifest:
    """The manifest in a verified file."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Manifest(
        image_size=raw["image_size"],
        concepts=tuple(
            EmojiConcept(
                index=entry["id"],
                name=entry["name"],
                aliases=tuple(entry["aliases"]),
                group=entry["group"],
                subgroup=entry["subgroup"],
                group_word=entry["group_word"],
                art=dict(entry["art"]),
            )
            for entry in raw["concepts"]
        ),
        styles=tuple(Style(**entry) for entry in raw["styles"]),
        colors={name: (rgb[0], rgb[1], rgb[2]) for name, rgb in raw["colors"].items()},
        templates=_tuples(raw["templates"]),
        splits=_tuples(raw["splits"]),
        near={
            name: Near(tuple(lists["meaning"]), tuple(lists["appearance"]))
            for name, lists in raw["near"].items()
        },
        far=_tuples(raw["far"]),
        far_panel=dict(raw["far_panel"]),
        twins=tuple(tuple(pair) for pair in raw["twins"]),
        multi=_tuples(raw["multi"]),
        broad={
            name: Broad(tuple(lists["members"]), tuple(lists["near"]))
            for name, lists in raw["broad"].items()
        },
    )


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(values) for key, values in lists.items()}
