"""The words of the prompt room: a prompt, a subject, how many images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Set = Literal["name", "alias", "near", "far"]

THRESHOLD_SEEDS = range(1000, 2000)
SCORING_SEEDS = range(4000, 10000)


@dataclass(frozen=True)
class Prompt:
    """One text with the seeds it is drawn with.

    Args:
        id: keys the noise together with a seed; `word/template`, the same in all sets.
        text: what the pipeline gets.
        set: name, alias, near or far.
        name: the word that is drawn.
        concept: the erased concept it tests (name, alias), or the word itself (near, far).
        labels: judge labels that count as this thing, twins included; empty: no judge knows it.
        template: t1 to t8.
        seeds: one image each.
    """

    id: str
    text: str
    set: Set
    name: str
    concept: str
    labels: tuple[str, ...]
    template: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """An erased concept as the gate sees it: other words for it, what is near it, what is far.

    `aliases_given` says that the only other words are those the eraser was given.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    aliases: tuple[str, ...]
    aliases_given: bool
    near: tuple[str, ...]
    far: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """How many images the gate draws, a model. Several erased concepts share them.

    Args:
        name: images of the erased names in all, and as many of the aliases.
        least: images of each erased name, at least.
        names: near names, and as many far ones; twice as many, each with half the images, for
            several erased concepts.
        images: images of each near or far name.
    """

    name: int = 32
    least: int = 4
    names: int = 8
    images: int = 8


@dataclass(frozen=True)
class GatePrompts:
    """All prompts of one gate, the erased subjects, and what had to be left out, in words."""

    prompts: tuple[Prompt, ...]
    subjects: tuple[Subject, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[Prompt]:
        """The prompt of each image, in the order of `sample`."""
        return [prompt for prompt in self.prompts for _ in prompt.seeds]

    @property
    def drawn(self) -> int:
        """Images that the base and the edited model draw in all."""
        return 2 * len(self.rows)

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Labels by word, in order of first use."""
        return {prompt.name: prompt.labels for prompt in self.prompts}
