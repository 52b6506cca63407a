"""Guard: what steers sampling, with the calls that a diffusers user makes, and whom it fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

from editforge.families.identity import Identity, identify, in_memory
from editforge.families.schema import Family, load_family
from editforge.ground.errors import EditError
from editforge.guards.words import Rule

_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Guard(ABC):
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

    @abstractmethod
    def rule(self, pipe: Any) -> Rule:
        """Made ready for a pipeline.

        Raises:
            EditError: the pipeline's text side is not the one that the guard was made for.
        """

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
        """The same with its strength multiplied by `strength`.

        Raises:
            EditError: a negative strength, which would draw what must go.
        """
        if not strength >= 0:
            raise EditError("a guard has no negative strength", got=strength, allowed="0 or more")
        return replace(self, strength=self.strength * strength)

    def explained(self, facts: Mapping[str, Any]) -> Self:
        """The same with `facts` added to its provenance; what it says itself stays."""
        return replace(self, provenance={**facts, **self.provenance})


def encoders_of(pipe: Any, family: Family | None = None) -> Identity:
    """The identity of a pipeline's text encoders, whatever its denoiser is: half a second for SD 1.4.

    Without a family: of all that the pipeline has, so that one of a user's own family is known too.
    """
    names = [name for name in _ENCODERS if getattr(pipe, name, None) is not None]
    if family is not None:
        names = [part.encoder for part in family.text]
    # A family groups the weights of its denoiser; those of an encoder are one group in each.
    return identify(in_memory(pipe, names), family or load_family("sd1"))


def check_encoders(told: Identity, pipe: Any) -> None:
    """Refuse a pipeline whose text encoders are not those that a guard was made with.

    Raises:
        EditError: other weights, by more than the rounding of a dtype.
    """
    found = encoders_of(pipe)
    gap = told.apart(found)
    if set(told.sketch) != set(found.sketch):
        gap = f"the text encoders {', '.join(sorted(set(found.sketch) & set(_ENCODERS))) or 'none'}"
    if gap is not None:
        raise EditError(
            "this guard belongs to another text encoder",
            got=f"a pipeline with {gap}",
            allowed=f"the text encoder {told.sha256[:12]}",
            next="build a guard for this pipeline: editforge guard build CONCEPT --model MODEL",
        )
