"""The words of this floor: what a denoiser is given, what a rule makes of it, what is asked.

A guard on a pipeline is a *rule*: at the first step of a picture it reads the text states (`Reading`),
and says which of them become others, which further predictions it asks for in a step, and what these
add to plain guidance

    g = eps(z) + alpha (eps(z, c) - eps(z))

for the samples of the batch that it acts on. Samples that no rule acts on are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """Text states as a denoiser reads them: (n, q, d), and the pooled ones of SDXL (n, p) or None."""

    states: Tensor
    pooled: Tensor | None = None

    def at(self, rows: Tensor) -> Texts:
        """Those of some samples."""
        return Texts(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def with_rows(self, rows: Tensor, other: Texts) -> Texts:
        """A copy in which some samples have other states; the rest keep their bits."""
        states = self.states.clone()
        states[rows] = other.states.to(states)
        pooled = self.pooled
        if pooled is not None and other.pooled is not None:
            pooled = pooled.clone()
            pooled[rows] = other.pooled.to(pooled)
        return Texts(states, pooled)

    def repeated(self, count: int) -> Texts:
        """One text (1, q, d) for each of `count` samples."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Texts(self.states.expand(count, -1, -1), pooled)

    def toward(self, other: Texts, share: float) -> Texts:
        """(1 - share) of these states, `share` of the other's; pooled ones too where both have them."""
        states, pooled = self.states, self.pooled
        if pooled is not None and other.pooled is not None:
            pooled = torch.lerp(pooled, other.pooled.to(pooled), share)
        return Texts(torch.lerp(states, other.states.to(states), share), pooled)


@dataclass(frozen=True)
class Moment:
    """A step of a picture: the how many-th of how many that are run, and the guidance scale."""

    step: int
    steps: int
    alpha: float

    def within(self, window: float) -> bool:
        """Whether it lies in the first `window` (0 to 1) of the steps; the first step does, unless 0."""
        return window > 0 and self.step < max(1, int(round(window * self.steps, 6)))


@dataclass(frozen=True)
class Ask:
    """A further prediction: of which samples (n,), and with which text states."""

    rows: Tensor
    texts: Texts


@dataclass(frozen=True)
class Added:
    """What is added to plain guidance of some samples, shaped like their predictions.

    `rescale` is phi: the share of the result that is brought back to plain guidance's deviation.
    """

    rows: Tensor
    value: Tensor
    rescale: float = 0.0


class Reading(Protocol):
    """One rule, having read the texts of one batch."""

    def conditions(self, given: Texts) -> Texts:
        """The texts that the prompts' predictions are made with; `given` itself if none changes."""
        ...

    def instead_of_empty(self, given: Texts) -> Texts:
        """The texts that the predictions without a prompt are made with."""
        ...

    def asks(self, moment: Moment, empty: Texts) -> Sequence[Ask]:
        """What it wants to know in this step; `empty` are the texts without a prompt."""
        ...

    def adds(
        self, moment: Moment, plain: Tensor, idle: Tensor, drawn: Tensor, told: Sequence[Tensor]
    ) -> Sequence[Added]:
        """What it adds, from the predictions without and with prompt (all samples) and those asked."""
        ...


class Quiet:
    """A reading that leaves everything as it is: what one overrides is all that one changes."""

    def conditions(self, given: Texts) -> Texts:
        """As they are."""
        return given

    def instead_of_empty(self, given: Texts) -> Texts:
        """As they are."""
        return given

    def asks(self, moment: Moment, empty: Texts) -> Sequence[Ask]:
        """Nothing."""
        return ()

    def adds(
        self, moment: Moment, plain: Tensor, idle: Tensor, drawn: Tensor, told: Sequence[Tensor]
    ) -> Sequence[Added]:
        """Nothing."""
        return ()


class Rule(Protocol):
    """A guard made ready for one pipeline."""

    def read(self, prompts: Texts) -> Reading:
        """Read what the prompts of a batch say, at the first step of each picture."""
        ...


class Speaks:
    """A pipeline's text side: a text as the denoiser reads it, on the device that it is asked for."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._known = pipe, dict[str, Texts]()

    @torch.no_grad()
    def __call__(self, text: str) -> Texts:
        """(1, q, d) and (1, p) or None. Read once; the pipeline's own `encode_prompt` does it."""
        if text not in self._known:
            found = self._pipe.encode_prompt(
                prompt=text,
                device=self._pipe._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            self._known[text] = Texts(found[0], found[2] if len(found) > 2 else None)
        return self._known[text]
