"""Student and teacher in one denoiser: a frozen edit and a LoRA, added by hooks and switched off.

The low-rank products are added to the outputs of the chosen Linears while the student is on. Off, a
hook returns nothing and the module's own output goes on untouched, so the teacher is the base bit for
bit and no second copy of the weights exists. The factors belong to the adapter, not to the denoiser:
its modules, names and parameters stay what they were, whoever owns it, and however it is sharded.

Not peft's injection: that renames modules of a pipeline the user still holds, copies the closed form's
shared factor once per module, and has no single switch for a frozen and a trained adapter together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from editforge.align.options import matching
from editforge.artifacts.low_rank import LowRank
from editforge.ground.keyed import keyed


def linear_paths(denoiser: nn.Module, endings: Sequence[str]) -> list[str]:
    """Paths of the Linears that end in one of `endings` (`attn2.to_k`), in name order.

    Raises:
        RecipeError: an ending that no Linear has; the near ones are named.
    """
    known = [path for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    return matching(known, endings)


@dataclass(frozen=True)
class Change:
    """What training changed, without the component's name.

    Args:
        factors: by path.
        dense: by parameter name.
        facts: for the provenance.
        whole: the edit that training started from is in it already.
    """

    factors: Mapping[str, LowRank]
    dense: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    whole: bool


class Adapter(nn.Module):
    """LoRA factors in float32 and a frozen edit below them, hooked into a denoiser.

    The up-matrices B start at zero: the first prediction is that of the frozen edit alone.

    Args:
        denoiser: hooked until `remove`; its parameters are not touched.
        paths: Linears that get a LoRA.
        rank: of each LoRA; alpha equals it, so the scale is 1. Raising it: more freedom, more memory.
        frozen: factors of an edit that the student has and the teacher has not, by path.
        seed: the down-matrices A are drawn from it and the path.
        device: where the factors live.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        paths: Sequence[str],
        rank: int,
        frozen: Mapping[str, LowRank],
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.paths, self._on = list(paths), False
        self.A, self.B = nn.ParameterList(), nn.ParameterList()
        for path in self.paths:
            out, width = denoiser.get_parameter(f"{path}.weight").shape
            draw = torch.rand(rank, width, generator=keyed(seed, "lora", path))
            self.A.append(nn.Parameter(((2 * draw - 1) / math.sqrt(width)).to(device)))
            self.B.append(nn.Parameter(torch.zeros(out, rank, device=device)))
        moved: dict[int, Tensor] = {}  # a closed form shares one A among all maps

        def place(tensor: Tensor) -> Tensor:
            return moved.setdefault(id(tensor), tensor.to(device, torch.float32))

        self._frozen = {path: (place(pair.A), place(pair.B)) for path, pair in frozen.items()}
        index = {path: at for at, path in enumerate(self.paths)}
        self._hooks = [
            denoiser.get_submodule(path).register_forward_hook(self._hook(path, index.get(path)))
            for path in sorted({*self.paths, *self._frozen})
        ]

    def _hook(self, path: str, at: int | None) -> Any:
        frozen = self._frozen.get(path)

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._on:
                return None
            x = args[0].float()
            if frozen is not None:
                output = output + linear(linear(x, frozen[0]), frozen[1]).to(output.dtype)
            if at is not None:
                output = output + linear(linear(x, self.A[at]), self.B[at]).to(output.dtype)
            return output

        return add

    @contextmanager
    def student(self) -> Iterator[None]:
        """Edit and LoRA act inside; leave it only after backward if activations are recomputed."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def factors(self, values: Mapping[str, Tensor] | None = None) -> dict[str, LowRank]:
        """The LoRA as it is now, or with other values of its parameters, by path, on the CPU."""
        source = dict(self.named_parameters()) if values is None else values
        own = {name: value.detach().cpu().clone() for name, value in source.items()}
        return {path: LowRank(own[f"B.{at}"], own[f"A.{at}"]) for at, path in enumerate(self.paths)}

    def change(self, values: Mapping[str, Tensor]) -> Change:
        """What these values of its parameters change of the model that has the frozen edit."""
        return Change(self.factors(values), {}, {}, whole=False)

    def remove(self) -> None:
        """Take the hooks off; the denoiser is as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
