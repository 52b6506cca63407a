"""System: the vectors an edit was solved from, so that a later edit can join it.

Erasing "x" and later "y" one after the other is not the joint solution (methods.md 1.6). `--from`
reads this file, drops preserve vectors of what is erased now, and solves all of it from the base.
Columns carry their owner's name because a word that was preserved may be erased next time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from editforge.artifacts.concepts import fold
from editforge.errors import EditError, PackageError
from editforge.files import read_header, read_tensors, write_safetensors

SCHEMA = "editforge.system/1"


@dataclass(frozen=True)
class System:
    """Erased, target and preserve vectors of one solve, with weights, owners and the base's hash.

    Shapes: erased, target (d, n); preserve (d, m); erase_weight (n,); preserve_weight (m,).
    `erased_owner` and `preserve_owner` name the concept of each column; `rows` are the provenance
    rows ({name, aliases, kind, target}) of the erased concepts.
    """

    erased: Tensor
    target: Tensor
    preserve: Tensor
    erase_weight: Tensor
    preserve_weight: Tensor
    erased_owner: tuple[str, ...]
    preserve_owner: tuple[str, ...]
    rows: tuple[dict[str, object], ...]
    base_sha256: str

    def joined(self, earlier: System) -> System:
        """This system with an earlier one's columns; what is erased in either is preserved in none.

        Raises:
            EditError: another base, or the same concept erased in both.
        """
        if earlier.base_sha256 != self.base_sha256:
            raise EditError(
                "the earlier edit belongs to another base model",
                got=earlier.base_sha256[:12],
                allowed=self.base_sha256[:12],
            )
        twice = sorted({fold(n) for n in earlier.erased_owner} & {fold(n) for n in self.erased_owner})
        if twice:
            raise EditError(
                "a concept is erased by the earlier edit already", got=", ".join(twice)
            )
        both = replace(
            self,
            erased=torch.cat([earlier.erased, self.erased], 1),
            target=torch.cat([earlier.target, self.target], 1),
            erase_weight=torch.cat([earlier.erase_weight, self.erase_weight]),
            erased_owner=(*earlier.erased_owner, *self.erased_owner),
            rows=(*earlier.rows, *self.rows),
        )
        known = set(self.preserve_owner)
        fresh = [i for i, owner in enumerate(earlier.preserve_owner) if owner not in known]
        both = replace(
            both,
            preserve=torch.cat([self.preserve, earlier.preserve[:, fresh]], 1),
            preserve_weight=torch.cat([self.preserve_weight, earlier.preserve_weight[fresh]]),
            preserve_owner=(*self.preserve_owner, *(earlier.preserve_owner[i] for i in fresh)),
        )
        return both.without(both.erased_owner)

    def without(self, names: Sequence[str]) -> System:
        """The same system with no preserve column owned by one of `names`."""
        gone = {fold(name) for name in names}
        keep = [i for i, owner in enumerate(self.preserve_owner) if fold(owner) not in gone]
        return replace(
            self,
            preserve=self.preserve[:, keep],
            preserve_weight=self.preserve_weight[keep],
            preserve_owner=tuple(self.preserve_owner[i] for i in keep),
        )

    def save(self, path: Path) -> None:
        """Write one safetensors file, float32."""
        body = {
            "schema": SCHEMA,
            "erased_owner": self.erased_owner,
            "preserve_owner": self.preserve_owner,
            "rows": self.rows,
            "base_sha256": self.base_sha256,
        }
        tensors = {name: getattr(self, name).float() for name in _TENSORS}
        write_safetensors(path, tensors, {"editforge.system": json.dumps(body, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> System:
        """Read `solve.safetensors`, or the one inside a run folder.

        Raises:
            PackageError: not such a file, damaged, or of another version.
        """
        if path.is_dir():
            path = path / "edit" / "solve.safetensors"
        metadata, _ = read_header(path)
        try:
            body = json.loads(metadata["editforge.system"])
            if body["schema"] != SCHEMA:
                raise KeyError(body["schema"])
            tensors = {name: value.double() for name, value in read_tensors(path, _TENSORS).items()}
            system = cls(
                **tensors,
                erased_owner=tuple(body["erased_owner"]),
                preserve_owner=tuple(body["preserve_owner"]),
                rows=tuple(body["rows"]),
                base_sha256=body["base_sha256"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(
                f"{path.name} holds no system to solve jointly with",
                got=str(error),
                allowed="a run folder of a closed-form edit, or its edit/solve.safetensors",
            ) from None
        widths = {system.erased.shape[0], system.target.shape[0], system.preserve.shape[0]}
        columns = (system.erased.shape[1], system.preserve.shape[1])
        if len(widths) != 1 or columns != (len(system.erased_owner), len(system.preserve_owner)):
            raise PackageError(f"{path.name} contradicts itself", got=f"{widths}, {columns}")
        return system


_TENSORS = ("erased", "target", "preserve", "erase_weight", "preserve_weight")
