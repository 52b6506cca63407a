"""What the base is asked for to calibrate a foreign judge: the gate's texts, with other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from editforge.evaluate.prompts.core import THRESHOLD_SEEDS, GatePrompts, Prompt, images_of

_SEEDS = 3  # of each text for one concept; fewer where several share near and far names


@dataclass(frozen=True)
class ExamplePrompts:
    """Prompts at threshold seeds, which no gate scores; `halves` is 0 or 1 for each picture.

    No text is in both halves, and the texts of each set of labels are shared out between them.
    """

    prompts: tuple[Prompt, ...]
    halves: NDArray[np.int_]

    @property
    def rows(self) -> list[Prompt]:
        """The prompt of each picture, in the order of `sample`."""
        return images_of(self.prompts)


def example_prompts(plan: GatePrompts) -> ExamplePrompts:
    """Every text of a gate, targets included, with seeds of its own."""
    seeds = -(-_SEEDS // len(plan.subjects))
    first = THRESHOLD_SEEDS.start
    asked = {prompt.id + prompt.text: prompt for prompt in (*plan.prompts, *plan.reference)}
    own = tuple(range(first, first + seeds))
    prompts = tuple(replace(prompt, seeds=own) for prompt in asked.values())
    return ExamplePrompts(prompts, _halves(prompts))


def _halves(prompts: Sequence[Prompt]) -> NDArray[np.int_]:
    """The first text of one label is in one half, that of the next label in the other.

    So both halves have every template: else pictures on colored backgrounds are strange to a judge that
    was fitted on white ones.
    """
    turns: dict[tuple[str, ...], int] = {}
    found = []
    for prompt in prompts:
        turn = turns.setdefault(prompt.labels, len(turns) % 2)
        found += [turn % 2] * len(prompt.seeds)
        turns[prompt.labels] = turn + 1
    return np.array(found)
