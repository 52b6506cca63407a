"""The words of the prompt room: a prompt, a subject, how many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Set = Literal["name", "alias", "near", "far", "reference"]

THRESHOLD_SEEDS = range(1000, 2000)
SCORING_SEEDS = range(4000, 10000)


@dataclass(frozen=True)
class Prompt:
    """One text with the seeds it is drawn with.

    Args:
        id: keys the noise together with a seed; `word/template`, the same in all sets.
        text: what the pipeline gets.
        set: name, alias, near, far, or reference: a name prompt with the target in its place.
        name: the word that is drawn.
        concept: the erased concept it tests (name, alias, reference), or the word itself.
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
        least: images of each erased name, at least; half as many of its aliases.
        names: near names, and as many far ones; twice as many for several erased concepts.
        images: images of each near or far name.
        reference: images of each target at most, by the base alone.
        several: near and far names for several erased concepts, times those for one.
    """

    name: int = 64
    least: int = 8
    names: int = 8
    images: int = 8
    reference: int = 32
    several: int = 2

    def of(self, turn: int, subjects: int, *, alias: bool) -> int:
        """Images of the name of one of the erased concepts, or of its aliases."""
        least = self.least // 2 if alias else self.least
        if self.least:
            return max(least, self.name // subjects)
        return self.name // subjects + (turn < self.name % subjects)


# To look at, where nothing judges: 16 pictures of both models, however many concepts there are.
FEW = Counts(name=2, least=0, names=2, images=1, reference=0, several=1)


@dataclass(frozen=True)
class GatePrompts:
    """All prompts of one gate, the erased subjects, and what had to be left out, in words.

    `prompts` are drawn by both models, `reference` by the base alone: what it draws for a target.
    `kinds` says which labels are no objects.
    """

    prompts: tuple[Prompt, ...]
    reference: tuple[Prompt, ...]
    subjects: tuple[Subject, ...]
    notes: tuple[str, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> list[Prompt]:
        """The prompt of each image, in the order of `sample`."""
        return images_of(self.prompts)

    @property
    def drawn(self) -> int:
        """Images that the base and the edited model draw in all."""
        return 2 * len(self.rows) + len(images_of(self.reference))

    @property
    def labels(self) -> tuple[str, ...]:
        """What a judge must tell apart: every label of every prompt, in order of first use."""
        own = (label for p in (*self.prompts, *self.reference) for label in p.labels if label)
        return tuple(dict.fromkeys(own))


def images_of(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompt of each image, in the order of `sample`."""
    return [prompt for prompt in prompts for _ in prompt.seeds]
