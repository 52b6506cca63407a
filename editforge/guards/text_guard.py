"""TextGuard: a guard that is texts and numbers alone, and what of its file is believed.

Every number is checked where a guard is made, so also where a stranger's file is read: a negative scale
would draw the concept instead of erasing it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from editforge.ground.errors import EditError, PackageError
from editforge.ground.files import read_header, write_safetensors
from editforge.guards.core import Guard
from editforge.guards.words import Texts

CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class TextGuard(Guard):
    """Base of guards without tensors; a subclass is a pydantic dataclass with the config `CHECKED`.

    It belongs to no text encoder: its texts are read by the pipeline that it is attached to.

    Args:
        strength: 1 is the guard's own, 0 draws what the pipeline draws, bit for bit; never below.
    """

    file: ClassVar[str]
    header: ClassVar[str]

    strength: Annotated[float, Field(ge=0)] = 1.0

    def described(self) -> dict[str, Any]:
        """What a card says: its strength, texts and numbers."""
        body = asdict(self)
        return {key: value for key, value in body.items() if key != "provenance"}

    def save(self, path: Path) -> None:
        """Write one safetensors file; all is in its header, the tensor is there because one must be."""
        body = json.dumps(asdict(self), sort_keys=True)
        write_safetensors(path, {"guard": torch.zeros(1)}, {self.header: body})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; nothing of it is believed unchecked.

        Raises:
            PackageError: damaged, of another kind, a number that no such guard may have.
        """
        metadata, _ = read_header(path)
        if cls.header not in metadata:
            raise PackageError(
                f"{path.name} is no {cls.__name__}", allowed=f"a header with {cls.header}"
            )
        try:
            return TypeAdapter(cls).validate_json(metadata[cls.header])
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in fault["loc"]) or "header"
            raise PackageError(
                f"{path.name} holds no {cls.__name__} that this version reads",
                got=f"{where}: {str(fault.get('input'))[:80]!r}",
                allowed=fault["msg"],
                next="take another copy of it, or make it again",
            ) from None


def repeated(said: Texts, like: Texts) -> Texts:
    """One text (1, q, d) for each sample of `like` (n, q, d), in its dtype and on its device.

    Raises:
        EditError: the samples' prompts have another window, as those that a user joins from parts.
    """
    check_window(said, like)
    pooled = None
    if said.pooled is not None and like.pooled is not None:
        pooled = said.pooled.to(like.pooled)
    return Texts(said.states.to(like.states), pooled).repeated(len(like.states))


def check_window(said: Texts, like: Texts) -> None:
    """Refuse prompts whose states are shaped unlike those of a text that the pipeline reads.

    Raises:
        EditError: another number of positions, or another width.
    """
    if said.states.shape[1:] != like.states.shape[1:]:
        raise EditError(
            "this guard cannot be joined with these prompt_embeds",
            got=f"positions and width {tuple(like.states.shape[1:])}",
            allowed=f"those of the pipeline's own prompts, {tuple(said.states.shape[1:])}",
        )
