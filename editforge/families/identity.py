"""Identity: what tells one base from another, the same from its files and from memory.

A base is its denoiser and its text encoders: an edit is made of what these say. Values are compared
as rounded to float16, so a file in 32 bits, its 16-bit variant, its shards and a pipeline cast to half
are one base. bfloat16 keeps fewer bits than that, so its digest is another one; there the sketch
decides, within that rounding.

The digest costs a pass over all weights: two to three seconds for SD 1.4, once per model. The sketch
is what an edit is held against when it meets a pipeline: random projections of the maps that read text,
and of the first rows of every other weight. Training and merging change every row.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editforge.families.editable import uncompiled
from editforge.families.schema import Family
from editforge.ground.disk import sha256_json
from editforge.ground.errors import EditError, PackageError
from editforge.ground.memory import give_back

_PROBES = 8
_ROWS = 64  # of a weight that is no text-reading map
_TABLE = 2**16
_PIECE = 2**17  # values held in float64 at a time: they stay in the processor's cache
_WITHIN = {torch.bfloat16: 2.0**-8}  # largest relative rounding error; a tensor's is 0.4 of it
_EXACT = 1e-4  # float16 values are the same, and the sketch is kept to six digits
_ROUNDING = "rounding"

Sketch = Mapping[str, Any]

# Denoiser to the bits below the edits that lie on it, by parameter path; `artifacts/ledger.py` keeps it.
beneath: WeakKeyDictionary[nn.Module, Mapping[str, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Piece:
    """One weight: component, name and shape as any loader has them; its values when asked for."""

    component: str
    name: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Identity:
    """Of one base.

    Args:
        sha256: of names, shapes and values rounded to float16; "" where nobody recorded it.
        sketch: group to [norm, projections...], and the rounding error that its values may have. A
            group is a pattern of maps, a text encoder, or the rest of the denoiser. Empty in what
            earlier versions wrote: their digests are of another kind and say nothing here.
    """

    sha256: str
    sketch: Sketch = field(default_factory=dict)

    @classmethod
    def recorded(cls, provenance: Mapping[str, Any]) -> Identity:
        """What an eraser's provenance says of its base.

        Raises:
            PackageError: a sketch that no run writes.
        """
        sketch = provenance.get("base_sketch") or {}
        _check(sketch)
        return cls(str(provenance.get("base_sha256") or ""), sketch)

    def apart(self, other: Identity) -> str | None:
        """How two bases differ, in words; None if they are one, or one of the two is not known."""
        if not (self.sha256 and other.sha256) or bool(self.sketch) != bool(other.sketch):
            return None
        if self.sha256 == other.sha256:
            return None
        if max(_rounding(self.sketch), _rounding(other.sketch)) > _EXACT:
            return difference(self.sketch, other.sketch)
        return difference(self.sketch, other.sketch) or "other weights"


def plain_name(name: str) -> str:
    """A weight's name in any version of the libraries: older ones put `text_model.` before it."""
    return name.removeprefix("text_model.")


def components(family: Family) -> list[str]:
    """What a base is made of."""
    return [family.denoiser, *(part.encoder for part in family.text)]


def identify(pieces: Iterable[Piece], family: Family) -> Identity:
    """Digest and sketch in one pass, one weight in memory per thread."""
    groups = [*(rule.pattern for rule in family.modules.values()), *components(family)]

    def one(piece: Piece) -> tuple[object, _Part]:
        tensor = piece.load().detach()
        half = tensor.to(torch.float16).cpu().contiguous()
        flat = half.reshape(-1)
        digest = hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        row = [piece.component, piece.name, list(piece.shape), digest.hexdigest()]
        return row, _projected(piece, half, tensor.dtype, groups)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = list(pool.map(one, pieces))
    give_back()
    rows = sorted((row for row, _ in found), key=str)
    return Identity(sha256_json(rows), _sum([part for _, part in found]))


def in_memory(pipe: Any, names: Sequence[str]) -> Iterator[Piece]:
    """The weights of a loaded pipeline's components, without edits of ours and adapters on them.

    Raises:
        EditError: a weight is offloaded or quantized, so that its values are not there.
    """
    for component in names:
        module = uncompiled(getattr(pipe, component, None))
        if module is None:
            continue
        below = beneath.get(module, {})
        for name, tensor in _bare(module):
            if tensor.is_meta or type(tensor.detach()) is not Tensor or tensor.itemsize < 2:
                raise EditError(
                    f"the weights of this pipeline's {component} are not in memory as numbers",
                    got=f"{name} is {tensor.dtype} on {tensor.device}",
                    allowed="float16, bfloat16, float32 in memory",
                    next="pipe.remove_all_hooks(), or load the pipeline without quantization",
                )
            own = below.get(f"{component}.{name}", tensor)
            yield Piece(component, plain_name(name), tuple(own.shape), partial(_itself, own))


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def adapters(module: Any) -> list[str]:
    """Names of the peft adapters on a module, loaded or fused; none on a plain one."""
    module = uncompiled(module)
    if module is None:
        return []
    wrapped = any(".base_layer." in name for name, _ in module.named_parameters())
    return sorted(getattr(module, "peft_config", None) or {}) or ["an adapter"] * wrapped


def check_base(provenance: Mapping[str, Any], pipe: Any) -> None:
    """Refuse a pipeline that is not the base of an edit; edits of ours on it are looked through.

    A tenth of a second for SD 1.4. A text encoder that is not there, or not in memory, is not
    compared; an edit that names no base fits any.

    Raises:
        EditError: the pipeline's weights are others, by more than the rounding of its dtype.
    """
    told = Identity.recorded(provenance)
    if not told.sketch:
        return
    groups = [name for name in told.sketch if name != _ROUNDING]
    parts = []
    for component in (name for name in groups if "*" not in name):
        try:
            pieces = list(in_memory(pipe, [component]))
        except EditError:
            continue
        parts += [_projected(piece, piece.load().detach(), None, groups) for piece in pieces]
    gap = difference(told.sketch, _sum(parts))
    if gap is not None:
        raise EditError(
            "this edit belongs to another base model",
            got=f"a pipeline with {gap}",
            allowed=f"{provenance.get('base_model', 'its base')} ({told.sha256[:12]})",
            next="take fused adapters off (pipe.unfuse_lora()), or edit this very pipeline: "
            "editforge.erase(pipe, ...)",
        )


def difference(a: Sketch, b: Sketch) -> str | None:
    """The first group whose weights differ by more than rounding, and by how much; None: none does.

    The mean square of the probes' differences estimates |W_a - W_b|_F^2, to a quarter.
    """
    within = max(_rounding(a), _rounding(b))
    for group in a:
        if group == _ROUNDING or group not in b:
            continue
        (size, *mine), (other_size, *theirs) = a[group], b[group]
        gap = math.sqrt(sum((x - y) ** 2 for x, y in zip(mine, theirs, strict=True)) / _PROBES)
        gap /= max(size, other_size, 1e-30)
        if gap > within:
            return (
                f"other weights in {group}: about {gap:.2g} of their size, {within:.2g} is rounding"
            )
    return None


@dataclass(frozen=True)
class _Part:
    """One weight's part of a sketch."""

    group: str
    square: float
    probes: Tensor
    rounding: float


def _projected(
    piece: Piece, tensor: Tensor, dtype: torch.dtype | None, groups: Sequence[str]
) -> _Part:
    """u^T W v for each probe, in float64: the same number on each processor."""
    path = piece.name.removesuffix(".weight")
    maps = [group for group in groups if "*" in group and fnmatchcase(path, group)]
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.ndim else tensor.reshape(1, 1)
    rows = rows if maps else rows[:_ROWS]
    rounding = _WITHIN.get(dtype or tensor.dtype, _EXACT)
    left = _probes(f"{piece.component}.{piece.name}|rows", rows.shape[0])
    right = _probes(f"{piece.component}.{piece.name}|columns", rows.shape[1])
    total, square = torch.zeros(_PROBES, dtype=torch.float64), 0.0
    step = max(1, _PIECE // max(1, rows.shape[1]))
    for first in range(0, rows.shape[0], step):
        W = rows[first : first + step].to(torch.float16).cpu().double()
        total += (left[first : first + step] * (W @ right)).sum(dim=0)
        flat = W.reshape(-1)
        square += float(flat @ flat)
    return _Part(maps[0] if maps else piece.component, square, total, rounding)


@cache
def _table() -> Tensor:
    return torch.randn(
        _TABLE, _PROBES, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(0)
    )


def _probes(key: str, count: int) -> Tensor:
    """(count, probes): a stretch of one table, which begins elsewhere for each key."""
    table = _table()
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % _TABLE
    if start + count <= _TABLE:
        return table[start : start + count]
    return table[(torch.arange(count) + start) % _TABLE]


def _sum(parts: Sequence[_Part]) -> dict[str, Any]:
    sketch: dict[str, Any] = {}
    for group in sorted({part.group for part in parts}):
        own = [part for part in parts if part.group == group]
        size = math.sqrt(math.fsum(part.square for part in own))
        probes = [
            math.fsum(values) for values in zip(*(p.probes.tolist() for p in own), strict=True)
        ]
        sketch[group] = [float(f"{value:.6g}") for value in (size, *probes)]
    sketch[_ROUNDING] = max((part.rounding for part in parts), default=_EXACT)
    return sketch


def _rounding(sketch: Sketch) -> float:
    return float(sketch.get(_ROUNDING, _EXACT))


def _check(sketch: object) -> None:
    def good(name: object, value: object) -> bool:
        numbers = [value] if name == _ROUNDING else value
        count = 1 if name == _ROUNDING else 1 + _PROBES
        if not isinstance(numbers, list) or len(numbers) != count:
            return False
        finite = all(isinstance(n, float | int) and math.isfinite(n) for n in numbers)
        return finite and (name != _ROUNDING or 0 <= numbers[0] <= max(_WITHIN.values()))

    if not isinstance(sketch, Mapping) or not all(good(*row) for row in sketch.items()):
        raise PackageError(
            "base_sketch is not what a run writes",
            got=str(sketch)[:120],
            allowed=f"a group's name to {1 + _PROBES} finite numbers",
            next="take another copy of it, or run the recipe again",
        )


def _bare(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating weights by the names that they have without adapters; the adapters' own are left out."""
    state = module.state_dict(keep_vars=True)
    wrapped = {name.partition(".base_layer.")[0] for name in state if ".base_layer." in name}
    for name, tensor in state.items():
        parts = name.split(".")
        within = {".".join(parts[:count]) for count in range(1, len(parts))} & wrapped
        if within and ".base_layer." not in name:
            continue
        if tensor.is_floating_point() or isinstance(tensor, nn.Parameter):
            yield name.replace(".base_layer.", "."), tensor
