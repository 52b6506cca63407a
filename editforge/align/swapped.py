"""A part of the denoiser's parameters, trained as copies that take their places while the student runs.

The teacher reads the base's own tensors, so it stays the base bit for bit; a change is what the copy has
become less what the base is. Matrices become low-rank factors with the error said; biases, norms and
convolutions stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from editforge.align.adapter import Adapter, Change
from editforge.artifacts.low_rank import LowRank
from editforge.ground.errors import EditError

Part = Literal["xattn", "noxattn"]


def part_of(denoiser: nn.Module, part: Part) -> list[str]:
    """Parameter names: `xattn` all of cross-attention (`attn2`), `noxattn` all others.

    Raises:
        EditError: the denoiser has none.
    """
    cross = part == "xattn"
    names = [name for name, _ in denoiser.named_parameters() if (".attn2." in name) == cross]
    if not names:
        raise EditError(
            f"this denoiser has no parameter of the part {part}", next="--set align.train=lora"
        )
    return names


class Swapped:
    """Copies in float32 of a part, which start at the base plus a frozen edit.

    Args:
        denoiser: its own parameters are never written.
        names: of the parameters that are trained.
        frozen: factors of an edit that the student has, by path.
        rank: of the factors that matrices become; their rest is dropped, and said.
        device: of the copies.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        names: Sequence[str],
        frozen: Mapping[str, LowRank],
        rank: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._denoiser, self._rank = denoiser, rank
        self._copies: dict[str, nn.Parameter] = {}
        below: dict[str, LowRank] = {}
        for name in names:
            start = denoiser.get_parameter(name).detach().float().clone()
            self._copies[name] = nn.Parameter(start.to(device))
        for path, pair in frozen.items():
            copy = self._copies.get(f"{path}.weight")
            if copy is None:
                below[path] = pair
                continue
            with torch.no_grad():
                copy.add_((pair.B.double() @ pair.A.double()).to(copy))
        self._below = Adapter(denoiser, [], 1, below, seed=0, device=device)
        self._rest = below

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The copies by parameter name."""
        return dict(self._copies)

    @contextmanager
    def student(self) -> Iterator[None]:
        """The copies act inside; leave it only after backward if activations are recomputed."""
        kept: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for name, copy in self._copies.items():
                path, _, own = name.rpartition(".")
                module = self._denoiser.get_submodule(path)
                kept.append((module, own, module._parameters[own]))  # type: ignore[arg-type]
                module._parameters[own] = copy
            with self._below.student():
                yield
        finally:
            for module, own, parameter in reversed(kept):
                module._parameters[own] = parameter

    @torch.no_grad()
    def change(self, values: Mapping[str, Tensor]) -> Change:
        """What the copies, or other values of them, change of the base: the frozen edit included."""
        factors, dense = dict(self._rest), {}
        lost = total = 0.0
        for name, value in values.items():
            base = self._denoiser.get_parameter(name).detach()
            delta = value.detach().cpu().double() - base.cpu().double()
            if delta.ndim != 2 or not name.endswith(".weight"):
                dense[name] = delta.float()
                continue
            U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
            k = min(self._rank, len(S))
            lost += float(S[k:].square().sum())
            total += float(S.square().sum())
            B, A = U[:, :k] * S[:k], Vh[:k]
            factors[name.removesuffix(".weight")] = LowRank(B.float(), A.float())
        error = (lost / total) ** 0.5 if total else 0.0
        facts = {"truncated_to": self._rank, "truncation_error": float(f"{error:.6g}")}
        return Change(factors, dense, facts, whole=True)

    def remove(self) -> None:
        """Nothing of it is left; the denoiser is as it was."""
        self._below.remove()
