"""From a WeightEdit to the factors of a LoRA file: one rank, the whole scale in B, error measured.

    W' = W + B A,   B = strength * B_edit,   alpha = rank

Guarantee: with alpha = rank and the scale folded in, a reader that knows the header, one that
ignores it and one of the kohya file agree. Padding with zero columns and rows changes nothing. In
float32 the factors are the edit's own, up to the rounding of strength * B; in 16 bits column i of B
and row i of A get equal norms first, and the relative error is measured, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from editforge.artifacts.low_rank import Change, LowRank
from editforge.ground.errors import PackageError
from editforge.ground.files import LazyTensor
from editforge.ground.linalg import product_norm


@dataclass(frozen=True)
class LoraFactors:
    """What both LoRA formats write. Memory: the edit itself; padded tensors exist while written.

    Args:
        component: the denoiser, `unet`.
        modules: paths below the component, sorted.
        rank: the one rank of the component; alpha equals it.
        errors: per module, |written - edit| / |edit| in the Frobenius norm.
    """

    component: str
    modules: tuple[str, ...]
    rank: int
    dtype: torch.dtype
    errors: dict[str, float]
    pairs: dict[str, LowRank]
    strength: float

    @property
    def error(self) -> float:
        """The largest relative error of any module; 0 for an empty or a null edit."""
        return max(self.errors.values(), default=0.0)

    def tensor(self, module: str, side: str) -> LazyTensor:
        """The padded `A` (rank, in) or `B` (out, rank) of one module, made when it is written."""
        pair = self.pairs[module]
        out, width = pair.shape
        shape = (self.rank, width) if side == "A" else (out, self.rank)
        return LazyTensor(self.dtype, shape, partial(self._load, module, side))

    def _load(self, module: str, side: str) -> Tensor:
        left, right = stored_factors(self.pairs[module], self.strength, self.dtype)
        missing = self.rank - left.shape[1]
        if side == "A":
            return torch.nn.functional.pad(right, (0, 0, 0, missing))
        return torch.nn.functional.pad(left, (0, missing))


def lora_factors(
    edit: Change,
    dtype: torch.dtype = torch.float32,
    *,
    component: str = "unet",
) -> LoraFactors:
    """Prepare an edit for both LoRA formats; everything a LoRA cannot say is refused here.

    Args:
        edit: text-encoder modules and dense deltas are refused by name.
        dtype: float32 is lossless; 16 bits halve the file and cost a measured error.
        component: the denoiser's name in the pipeline.

    Raises:
        PackageError: text-encoder modules, dense deltas, or no change at all.
    """
    refuse_other_components(edit, component)
    if edit.dense:
        names = sorted(edit.dense)
        raise PackageError(
            f"a LoRA cannot carry the dense deltas of {len(names)} parameters",
            got=", ".join(names[:4]) + (" ..." if len(names) > 4 else ""),
            next="export the whole denoiser instead: --export unet",
        )
    if not edit.factors:
        raise PackageError("this edit changes no module, there is nothing to write")
    pairs = {name.partition(".")[2]: pair for name, pair in sorted(edit.factors.items())}
    errors = {name: _error(pair, edit.strength, dtype) for name, pair in pairs.items()}
    widest = max(1, *(pair.rank for pair in pairs.values()))
    return LoraFactors(component, tuple(sorted(pairs)), widest, dtype, errors, pairs, edit.strength)


def stored_factors(pair: LowRank, strength: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """B with the strength folded in and A, in the dtype that is stored."""
    if dtype in (torch.float32, torch.float64):
        return (strength * pair.B.double()).to(dtype), pair.A.to(dtype)
    left, right = strength * pair.B.double(), pair.A.double()
    norm_b, norm_a = left.norm(dim=0), right.norm(dim=1)
    # Equal norms sqrt(|b||a|) keep both far from the ends of a 16-bit range. An idle column or row
    # (norm zero) makes both zero: their product is zero anyway, and nothing is divided by zero.
    root = (norm_b * norm_a).sqrt()
    scale_b = torch.where(root > 0, root / norm_b.clamp(min=1e-300), 0.0)
    scale_a = torch.where(root > 0, root / norm_a.clamp(min=1e-300), 0.0)
    return (left * scale_b).to(dtype), (right * scale_a[:, None]).to(dtype)


def _error(pair: LowRank, strength: float, dtype: torch.dtype) -> float:
    """|stored - wanted| / |wanted|, from the factors alone: the full matrix is never formed."""
    wanted = (strength * pair.B.double(), pair.A.double())
    stored = tuple(side.double() for side in stored_factors(pair, strength, dtype))
    if not all(bool(torch.isfinite(side).all()) for side in stored):
        raise PackageError(f"the factors overflow {dtype}", next="write them in float32")
    if all(torch.equal(*sides) for sides in zip(stored, wanted, strict=True)):
        return 0.0  # float32 at strength 1 rounds nothing, and no factorization is needed to see it
    gap = (torch.cat([stored[0], -wanted[0]], dim=1), torch.cat([stored[1], wanted[1]], dim=0))
    size = product_norm(*wanted)
    return product_norm(*gap) / size if size > 0 else 0.0


def refuse_other_components(edit: Change, component: str) -> None:
    """Refuse an edit that names modules outside the denoiser, a text encoder's for example."""
    names = [*edit.factors, *edit.dense]
    foreign = sorted(name for name in names if name.partition(".")[0] != component)
    if foreign:
        listed = ", ".join(foreign[:4]) + (" ..." if len(foreign) > 4 else "")
        raise PackageError(
            f"only the denoiser can be packaged, this edit names {len(foreign)} modules outside it",
            got=listed,
            allowed=f"modules of {component}",
            next="text encoders are not edited by any method of this version",
        )
