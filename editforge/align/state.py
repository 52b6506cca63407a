"""What training changes, and its checkpoint: factors, optimizer, running mean, losses. safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from editforge.align.adapter import Adapter
from editforge.align.options import LoraOptions
from editforge.artifacts.low_rank import LowRank
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class State:
    """The adapter in training, float32: AdamW without decay, and the losses so far.

    Args:
        adapter: its parameters are trained in place.
        options: lr, ema.
        names: of the loss parts.
    """

    def __init__(self, adapter: Adapter, options: LoraOptions, names: Sequence[str]) -> None:
        self._adapter, self._names, self._decay = adapter, list(names), options.ema
        self._weights = dict(adapter.named_parameters())
        self._optimizer = torch.optim.AdamW(self._weights.values(), lr=options.lr, weight_decay=0.0)
        self._mean = {name: w.detach().clone() for name, w in self._weights.items()}
        self._history: list[list[float]] = []

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self._history)

    def advance(self, losses: Sequence[float]) -> None:
        """Take one step with the gradients that lie on the adapter."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._history.append(list(losses))
        if self._decay is None:
            return
        # a young mean forgets its start fast, or zero would weigh on short trainings
        decay = min(self._decay, self.step / (self.step + 9))
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._mean[name].lerp_(weight, 1 - decay)

    def factors(self) -> dict[str, LowRank]:
        """The trained factors by path, on the CPU: the last, or their running mean."""
        return self._adapter.factors(self._weights if self._decay is None else self._mean)

    def losses(self) -> dict[str, float]:
        """Means over the first and the last tenth of all steps, six digits."""
        tenth = max(1, self.step // 10)
        table = torch.tensor(self._history, dtype=torch.float64)  # (steps, parts)
        rows = {"first": table[:tenth].mean(dim=0), "last": table[-tenth:].mean(dim=0)}
        return {
            f"{name}_{when}": float(f"{float(values[at]):.6g}")
            for when, values in rows.items()
            for at, name in enumerate(self._names)
        }

    def save(self, path: Path) -> None:
        """Write everything that the next step reads."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            kept = self._optimizer.state[weight]
            tensors |= {f"{moment}.{name}": kept[moment] for moment in _MOMENTS}
        if self._decay is not None:
            tensors |= {f"mean.{name}": mean for name, mean in self._mean.items()}
        tensors["history"] = torch.tensor(self._history, dtype=torch.float64)
        write_safetensors(path, tensors, {"parts": ",".join(self._names)})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; without one, or with a damaged one, from the beginning."""
        try:
            if read_header(path)[0].get("parts") != ",".join(self._names):
                return
            tensors = read_tensors(path)
        except PackageError:
            return
        self._history = tensors["history"].tolist()
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[f"weight.{name}"])
                kept = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
                moved = {
                    m: value.to(weight.device) if m != "step" else value
                    for m, value in kept.items()
                }
                self._optimizer.state[weight] = moved
                if self._decay is not None:
                    self._mean[name].copy_(tensors[f"mean.{name}"])
