"""System: what an edit was solved from, so that a later edit can join it.

Erasing "x" and later "y" one after the other is not the joint solution (methods.md 1.6). `--from` reads
this file and solves both from the base. Preserved concepts are kept by name and read again, because a
word that was preserved may be erased next time; so are the rows that say what each concept became.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editforge.ground.errors import EditError, PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from editforge.ground.names import fold

SCHEMA = "editforge.system/2"  # 1: another digest of the base


@dataclass(frozen=True)
class System:
    """Erased and target columns of one solve, and the names around them.

    Args:
        erased: (d, n), float64.
        target: (d, n), float64.
        erased_owner: the concept of each column.
        preserve: names that must not move.
        rows: provenance of the erased concepts: {name, aliases, kind, target}, and mined words.
        base_sha256: the base's digest.
        method: the edit that solved it; two methods' columns do not mean the same.
        kin: words that mean what is erased, so that a background must not hold them.
        scatter: (d, d) second moment that the method adds to its Gram matrix, if any: the erased
            names' states, or mined samples.
        weight: (n,) of each column against the others; None: all 1.
    """

    erased: Tensor
    target: Tensor
    erased_owner: tuple[str, ...]
    preserve: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    base_sha256: str
    method: str
    kin: tuple[str, ...] = ()
    scatter: Tensor | None = None
    weight: Tensor | None = None

    @property
    def names(self) -> list[str]:
        """Every erased name, alias and mined word."""
        return [
            name
            for row in self.rows
            for name in (row["name"], *row["aliases"], *row.get("mined", ()))
        ]

    def joined(self, earlier: System) -> System:
        """Both systems as one; what is erased in either is preserved in none.

        Raises:
            EditError: another base or method, the same concept twice, or a target that is erased.
        """
        for what, mine, theirs in (
            ("base model", self.base_sha256[:12], earlier.base_sha256[:12]),
            ("method", self.method, earlier.method),
        ):
            if mine != theirs:
                raise EditError(f"the earlier edit has another {what}", got=theirs, allowed=mine)
        both = replace(
            self,
            erased=torch.cat([earlier.erased, self.erased], dim=1),
            target=torch.cat([earlier.target, self.target], dim=1),
            erased_owner=(*earlier.erased_owner, *self.erased_owner),
            rows=(*earlier.rows, *self.rows),
            kin=tuple(dict.fromkeys((*earlier.kin, *self.kin))),
        )
        moments = [one.scatter for one in (earlier, self) if one.scatter is not None]
        if moments:
            both = replace(both, scatter=sum(moments[1:], start=moments[0]))
        if self.weight is not None or earlier.weight is not None:
            both = replace(both, weight=torch.cat([_weights(earlier), _weights(self)]))
        gone = [fold(name) for name in both.names]
        twice = sorted({name for name in both.names if gone.count(fold(name)) > 1})
        if twice:
            raise EditError("the earlier edit erases this already", got=", ".join(twice))
        lost = [str(row["target"]) for row in both.rows if fold(str(row["target"])) in gone]
        if lost:
            raise EditError(
                "what one edit erases is the other's target",
                got=", ".join(lost),
                next="erase them together: editforge erase X Y",
            )
        kept: dict[str, str] = {}
        for name in (*self.preserve, *earlier.preserve):
            if fold(name) not in gone:
                kept.setdefault(fold(name), name)
        return replace(both, preserve=tuple(kept.values()))

    def save(self, path: Path) -> None:
        """Write one safetensors file, float64."""
        body = {
            "schema": SCHEMA,
            "erased_owner": self.erased_owner,
            "preserve": self.preserve,
            "rows": self.rows,
            "base_sha256": self.base_sha256,
            "method": self.method,
            "kin": self.kin,
        }
        tensors = {"erased": self.erased, "target": self.target}
        if self.scatter is not None:
            tensors["scatter"] = self.scatter
        if self.weight is not None:
            tensors["weight"] = self.weight
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
        tensors = read_tensors(path)
        try:
            body = json.loads(metadata["editforge.system"])
            if body.pop("schema") != SCHEMA:
                raise KeyError("schema")
            for key in ("erased_owner", "preserve", "rows", "kin"):
                body[key] = tuple(body[key])
            columns: dict[str, Any] = {name: value.double() for name, value in tensors.items()}
            system = cls(**columns, **body)
            shapes = system.erased.shape, system.target.shape
            if shapes[0] != shapes[1] or shapes[0][1] != len(system.erased_owner):
                raise ValueError(f"columns {shapes}, owners {len(system.erased_owner)}")
            if len(_weights(system)) != len(system.erased_owner):
                raise ValueError(f"{len(_weights(system))} weights")
            _ = system.names
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(
                f"{path.name} holds no system to solve jointly with",
                got=str(error),
                allowed="a run folder of a closed-form edit, or its edit/solve.safetensors",
            ) from None
        return system


def _weights(system: System) -> Tensor:
    ones = torch.ones(len(system.erased_owner), dtype=torch.float64)
    return ones if system.weight is None else system.weight
