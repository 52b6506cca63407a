"""Eraser: what takes a concept out of a pipeline, whether it changes weights or steers sampling.

The gate, `evaluate`, `package` and `load_edit` know this protocol and nothing of what is behind it.
`WeightEdit` fulfils it; so does whatever an implementation of `guide` makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable


class Acting(Protocol):
    """What can be drawn with: an eraser, or a shipped artifact that its user has loaded."""

    @property
    def strength(self) -> float:
        """1 is the method's own; a proposal of the gate is relative to it."""
        ...

    def applied(self, pipe: Any) -> AbstractContextManager[Any]:
        """The pipeline that erases, inside `with`; afterwards `pipe` is what it was, bit for bit."""
        ...


@runtime_checkable
class Eraser(Acting, Protocol):
    """What an erasing stage makes, and a package ships.

    Guarantee of every implementation: `load(path)` is what was given to `save(path)`; equal erasers
    give equal bytes; `scaled(0)` draws what the base draws.
    """

    file: ClassVar[str]  # its name in the folder of its stage, one safetensors file
    header: ClassVar[str]  # the key of its header that names it as one of its kind

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Method, base, erased concepts, checks: plain JSON data, no path."""
        ...

    def scaled(self, strength: float) -> Self:
        """The same with its strength multiplied by `strength`."""
        ...

    def explained(self, facts: Mapping[str, Any]) -> Self:
        """The same with `facts` added to its provenance; what it says itself stays."""
        ...

    def described(self) -> dict[str, Any]:
        """What a card and `editforge.json` say of it: strength, size, exactness; plain JSON data."""
        ...

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        ...

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            PackageError: damaged, not finite, or of another kind.
        """
        ...
