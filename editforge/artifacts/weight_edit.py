"""WeightEdit: what every editing method returns and every exporter consumes.

Per module `<component>.<path>` thin factors `B` (out, r) and `A` (r, in), for the few methods that
need them dense deltas, one strength for all, and provenance. A closed form shares one `A` among all
modules; it is then one tensor in memory and in the file.

The numbers are stored in float32 and added in float64 with one rounding,
`W' = cast(W.double() + strength * B @ A)`, so an edit of zero returns the base bit for bit.
Undo is exact because the original maps are kept while an edit is applied, once per denoiser however
many edits lie on it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from editforge.artifacts.ledger import ledger_of, stacked
from editforge.artifacts.lora.factors import lora_factors
from editforge.artifacts.lora.kohya import write_kohya
from editforge.artifacts.lora.write import write_lora
from editforge.artifacts.low_rank import LowRank as LowRank
from editforge.artifacts.low_rank import reduced, summed
from editforge.families.identity import Identity, check_base
from editforge.families.keys import best_family
from editforge.families.schema import load_family
from editforge.ground.errors import EditError, PackageError
from editforge.ground.files import check_finite, read_header, read_tensors, write_safetensors
from editforge.ground.linalg import product_norm
from editforge.ground.names import same_words

SCHEMA = "editforge.weight_edit/1"
_LOG = logging.getLogger("editforge")


@dataclass(frozen=True, repr=False)
class WeightEdit:
    """A change of weights that can be applied, removed, scaled, added, compared, saved and loaded.

    Args:
        factors: module path, component first (`unet.down_blocks.0...to_k`), to its low-rank change.
        dense: parameter name, component first, to a delta of the parameter's own shape.
        strength: scales the whole change; 1 is the method's own edit, 0 the base bit for bit.
        exact_rank: rank of the change if the factors hold it exactly, None if they were truncated.
        provenance: plain JSON data: method, preset, family, base hash, erased concepts, checks.
    """

    file: ClassVar[str] = "weight_edit.safetensors"
    header: ClassVar[str] = "editforge.weight_edit"

    factors: Mapping[str, LowRank]
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0
    exact_rank: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise EditError("the strength is not a number", got=self.strength)
        for name, pair in self.factors.items():
            check_finite(pair.B, f"{name}.B")
            check_finite(pair.A, f"{name}.A")
        for name, delta in self.dense.items():
            check_finite(delta, name)

    @property
    def rank(self) -> int:
        """The largest number of factor columns of any module; 0 for an empty edit."""
        return max((pair.rank for pair in self.factors.values()), default=0)

    def scaled(self, strength: float) -> WeightEdit:
        """The same edit with its strength multiplied by `strength`; negative values invert it."""
        return replace(self, strength=self.strength * strength)

    def explained(self, facts: Mapping[str, Any]) -> WeightEdit:
        """The same edit with `facts` below what its provenance says already."""
        return replace(self, provenance={**facts, **self.provenance})

    def described(self) -> dict[str, Any]:
        """Strength, ranks and the number of edited weights."""
        return {
            "strength": self.strength,
            "exact_rank": self.exact_rank,
            "rank": self.rank,
            "modules": len(self.factors) + len(self.dense),
        }

    def __repr__(self) -> str:
        """In one line: what becomes what, the rank, how many weights change, how strongly."""
        rows = self.provenance.get("erased")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        told = [f"{row.get('name')!r} -> {row.get('target')!r}" for row in rows[:3]]
        told += [f"and {len(rows) - 3} more"] if len(rows) > 3 else []
        told += [f"rank {self.rank}", f"{len(self.factors) + len(self.dense)} weights"]
        return f"WeightEdit({', '.join(told)}, strength {self.strength:g})"

    def __add__(self, other: WeightEdit) -> WeightEdit:
        """The sum of both changes. Commutative; not the joint solution (methods.md 1.6)."""
        if not isinstance(other, WeightEdit):
            return NotImplemented
        a, b = Identity.recorded(self.provenance), Identity.recorded(other.provenance)
        if (gap := a.apart(b)) is not None:
            raise EditError(
                "the two edits belong to different base models",
                got=f"{a.sha256[:12]} and {b.sha256[:12]}, {gap}",
                next="edit one base with both concepts: editforge erase X Y",
            )
        factors = {
            name: summed(
                self.factors.get(name), self.strength, other.factors.get(name), other.strength
            )
            for name in sorted({*self.factors, *other.factors})
        }
        dense = {
            name: sum(
                (
                    edit.dense[name].double() * edit.strength
                    for edit in (self, other)
                    if name in edit.dense
                ),
                start=torch.zeros((), dtype=torch.float64),
            ).float()
            for name in sorted({*self.dense, *other.dense})
        }
        for mine, theirs in _overlapping(self, other):
            _LOG.warning(
                "warning: %r and %r share words, so their sum changes those twice; solved jointly it "
                "does not: editforge.erase(pipe, [%r, %r])",
                mine,
                theirs,
                mine,
                theirs,
            )
        exact = self.exact_rank is not None and other.exact_rank is not None
        result = WeightEdit(factors, dense, 1.0, None, _join(self.provenance, other.provenance))
        reduced = result.reduced()
        return replace(reduced, exact_rank=reduced.rank if exact else None)

    def reduced(self, tolerance: float = 1e-6) -> WeightEdit:
        """The same change with no idle columns: QR of both factors, SVD of the small core.

        Singular values below `tolerance` times the module's largest are dropped. The relative
        Frobenius error is therefore below `tolerance * sqrt(rank)`. Raising it shrinks the file.
        """
        return replace(
            self, factors={name: reduced(pair, tolerance) for name, pair in self.factors.items()}
        )

    def difference(self, other: WeightEdit) -> float:
        """|delta_a - delta_b| / |delta_a| over all modules, Frobenius; 0 means the same change."""
        squares = [0.0, 0.0]
        for name in {*self.factors, *other.factors}:
            mine, theirs = self.factors.get(name), other.factors.get(name)
            gap = summed(mine, self.strength, theirs, -other.strength)
            squares[0] += product_norm(gap.B, gap.A) ** 2
            size = product_norm(mine.B, mine.A) if mine else 0.0
            squares[1] += (self.strength * size) ** 2
        for name in {*self.dense, *other.dense}:
            zero = torch.zeros(())
            a = self.dense.get(name, zero).double() * self.strength
            b = other.dense.get(name, zero).double() * other.strength
            squares[0] += float((a - b).square().sum())
            squares[1] += float(a.square().sum())
        if squares[1] == 0:
            return 0.0 if squares[0] == 0 else math.inf
        return math.sqrt(squares[0] / squares[1])

    def delta(self, name: str) -> Tensor:
        """The change of one module's weight (or one dense parameter), float64, strength included."""
        if name in self.dense:
            return self.strength * self.dense[name].double()
        pair = self.factors[name]
        return self.strength * (pair.B.double() @ pair.A.double())

    def edited(self, name: str, weight: Tensor) -> Tensor:
        """The weight plus this edit, added in float64 and rounded once to the weight's dtype."""
        return stacked(name, weight, [self])

    def apply(self, pipe: Any) -> None:
        """Add this edit to the denoiser of `pipe`, in place. Undo with `remove`.

        Raises:
            EditError: a module is missing or has another shape, the pipeline is another base than the
                edit's, or it does not compute with the weights that it shows (`families/editable.py`);
                nothing is changed then.
        """
        check_base(self.provenance, pipe)
        paths = {name: f"{name}.weight" for name in self.factors} | {
            name: name for name in self.dense
        }
        shapes: dict[str, tuple[int, ...]] = {n: pair.shape for n, pair in self.factors.items()}
        shapes |= {name: tuple(delta.shape) for name, delta in self.dense.items()}
        ledger_of(pipe).add(self, pipe, {n: (paths[n], shapes[n]) for n in paths})

    def remove(self, pipe: Any) -> None:
        """Take this edit off again; without any edit left the weights are the original bits.

        Raises:
            EditError: this edit is not applied to `pipe`, or the pipeline has come to compute with other
                weights than it shows; the edit stays on then.
        """
        ledger_of(pipe).take_off(self, pipe)

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[Any]:
        """`with edit.applied(pipe):` the edited pipeline; the original weights afterwards."""
        self.apply(pipe)
        try:
            yield pipe
        finally:
            self.remove(pipe)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file; equal edits give equal bytes."""
        tensors: dict[str, Tensor] = {}
        shared: dict[int, str] = {}
        layout: dict[str, str] = {}
        for name in sorted(self.factors):
            pair = self.factors[name]
            layout[name] = shared.setdefault(id(pair.A), f"A.{len(shared):04d}")
            tensors[layout[name]] = pair.A.float()
            tensors[f"B.{name}"] = pair.B.float()
        tensors |= {f"dense.{name}": delta.float() for name, delta in self.dense.items()}
        body = {
            "schema": SCHEMA,
            "strength": self.strength,
            "exact_rank": self.exact_rank,
            "shared": layout,
            "provenance": dict(self.provenance),
        }
        text = json.dumps(body, sort_keys=True, allow_nan=False)
        write_safetensors(Path(path), tensors, {self.header: text})

    @classmethod
    def load(cls, path: Path | str) -> WeightEdit:
        """Read what `save` wrote.

        Raises:
            PackageError: the file is damaged, not finite, or not a WeightEdit.
        """
        path = Path(path)
        metadata, table = read_header(path)
        try:
            body = json.loads(metadata[cls.header])
            if body["schema"] != SCHEMA:
                raise KeyError(body["schema"])
            tensors = read_tensors(path, table)
            factors = {
                name: LowRank(tensors[f"B.{name}"], tensors[shared])
                for name, shared in body["shared"].items()
            }
            dense = {
                n.removeprefix("dense."): t for n, t in tensors.items() if n.startswith("dense.")
            }
            strength, rank, told = float(body["strength"]), body["exact_rank"], body["provenance"]
            if not isinstance(told, dict) or not (rank is None or isinstance(rank, int)):
                raise TypeError(f"exact_rank {rank!r}, provenance {type(told).__name__}")
            return cls(factors, dense, strength, rank, told)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError(
                f"{path.name} is not a WeightEdit of this version",
                got=str(error),
                allowed=SCHEMA,
                next="run the recipe again",
            ) from None

    def save_lora(
        self,
        folder: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        kohya: str | None = None,
        prediction_type: str = "epsilon",
    ) -> Path:
        """Write `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(folder)` reads.

        Args:
            folder: made if it is missing.
            dtype: float32 is lossless; 16 bits halve the file and round.
            kohya: name of a second file, `<name>.safetensors`, for ComfyUI, A1111 and Forge.
            prediction_type: of the base; the kohya file's header names it.

        Raises:
            PackageError: changes that a LoRA cannot hold, or a base that has no kohya format.
        """
        place = Path(folder)
        if kohya is not None:
            widths = {pair.shape[1] for n, pair in self.factors.items() if ".attn2.to_k" in n}
            modules = {name.partition(".")[2] for name in self.factors}
            family = best_family(modules, next(iter(widths), None))
            if family is None:
                raise PackageError(
                    "this edit's base has no kohya format",
                    got=f"{len(modules)} modules of another denoiser",
                    allowed="SD 1.x, SD 2.x, SDXL and what is distilled from them",
                    next="leave out kohya: the diffusers file is the one to use",
                )
            factors, path = lora_factors(self, dtype), place / f"{kohya}.safetensors"
            write_kohya(factors, self, path, load_family(family), prediction_type, {})
        return write_lora(self, place, dtype=dtype)


def _overlapping(a: WeightEdit, b: WeightEdit) -> list[tuple[str, str]]:
    """Pairs of erased names, one of each, of which one says the other: `dog` and `hot dog`."""
    left, right = (
        [str(row["name"]) for row in edit.provenance.get("erased", []) if row.get("name")]
        for edit in (a, b)
    )
    return [(x, y) for x in left for y in right if same_words(x, y)]


def _join(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    parts = [part for side in (a, b) for part in side.get("sum_of", [dict(side)])]
    joined = {**{key: b[key] for key in ("base_sha256", "base_sketch") if key in b}, **a}
    joined["erased"] = [*a.get("erased", []), *b.get("erased", [])]
    joined["combined"] = f"sum of {len(parts)} edits"
    joined["sum_of"] = parts
    return joined
