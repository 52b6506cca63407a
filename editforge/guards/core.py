"""The words of this floor: what a denoiser is given, what a rule makes of it, and a guard.

A guard on a pipeline is a *rule*: at the first step of a picture it reads the text states (`Reading`),
and says which of them become others, which further predictions it asks for in a step, and what these
add to plain guidance

    g = eps(z) + alpha (eps(z, c) - eps(z))

for the samples of the batch that it acts on. Samples that no rule acts on are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from torch import Tensor

from editforge.families.identity import Identity, identify, in_memory
from editforge.families.live import detect_in_memory
from editforge.families.schema import Family
from editforge.ground.errors import EditError


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


@dataclass(frozen=True)
class Moment:
    """A step of a picture: the how many-th of how many that are run, and the guidance scale."""

    step: int
    steps: int
    alpha: float


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


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Base of every guard: `artifacts.eraser.Eraser`, and the calls that a diffusers user makes.

        guard.attach(pipe)          # until
        guard.detach(pipe)          # afterwards pipe draws what it drew, bit for bit
        with guard.on(pipe): ...    # both

    Args:
        strength: 1 is the guard's own, 0 draws what the pipeline draws, bit for bit.
        provenance: method, base, erased concepts: plain JSON data, no path.
    """

    strength: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def rule(self, pipe: Any) -> Rule:
        """Made ready for a pipeline.

        Raises:
            EditError: the pipeline's text side is not the one that the guard was made for.
        """
        raise NotImplementedError

    def attach(self, pipe: Any) -> Self:
        """Steer every picture that `pipe` draws from now on, beside what is attached already.

        Args:
            pipe: a pipeline of diffusers that is made of a family's UNet and text encoders, whatever
                its task. Another pipeline that shares the UNet is not steered: attach to the one that
                draws.

        Raises:
            EditError: it is attached already, another pipeline's guard sits on this UNet, or the
                pipeline is not of the guard's kind.
        """
        from editforge.guards.hook import attach

        attach(self, pipe)
        return self

    def detach(self, pipe: Any) -> None:
        """Take it off again.

        Raises:
            EditError: it is not on this pipeline.
        """
        from editforge.guards.hook import detach

        detach(self, pipe)

    @contextmanager
    def on(self, pipe: Any) -> Iterator[Any]:
        """Attached inside `with`, detached afterwards, also after an error."""
        self.attach(pipe)
        try:
            yield pipe
        finally:
            self.detach(pipe)

    applied = on

    def scaled(self, strength: float) -> Self:
        """The same with its strength multiplied by `strength`."""
        return replace(self, strength=self.strength * strength)

    def explained(self, facts: Mapping[str, Any]) -> Self:
        """The same with `facts` added to its provenance; what it says itself stays."""
        return replace(self, provenance={**facts, **self.provenance})


def encoders_of(pipe: Any, family: Family | None = None) -> Identity:
    """The identity of a pipeline's text encoders, whatever its denoiser is: half a second for SD 1.4."""
    family = family or detect_in_memory(pipe)
    return identify(in_memory(pipe, [part.encoder for part in family.text]), family)


def check_encoders(told: Identity, pipe: Any) -> None:
    """Refuse a pipeline whose text encoders are not those that a guard was made with.

    Raises:
        EditError: other weights, by more than the rounding of a dtype.
    """
    gap = told.apart(encoders_of(pipe))
    if gap is not None:
        raise EditError(
            "this guard belongs to another text encoder",
            got=f"a pipeline with {gap}",
            allowed=f"the text encoder {told.sha256[:12]}",
            next="build a guard for this pipeline: editforge guard build CONCEPT --model MODEL",
        )
