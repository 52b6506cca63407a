"""What training changes, and its checkpoint: parameters, optimizers, running mean, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from editforge.align.objective import WEIGHTS
from editforge.align.options import LoraOptions
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Player:
    """One side of a game: its parameters by name, float32, moved by AdamW without decay.

    Args:
        weights: trained in place.
        lr: higher: faster, rougher.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], lr: float) -> None:
        self.weights = dict(weights)
        self._optimizer = torch.optim.AdamW(self.weights.values(), lr=lr, weight_decay=0.0)

    def opened(self, on: bool) -> None:
        """Let gradients reach its parameters, or none."""
        for weight in self.weights.values():
            weight.requires_grad_(on)

    def move(self) -> None:
        """Take one step with the gradients that lie on the parameters."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and, of those that have moved, the optimizer's state."""
        found = {f"weight.{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            kept = self._optimizer.state[weight]
            found |= {f"{moment}.{name}": kept[moment] for moment in _MOMENTS if kept}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `tensors` says."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weight.{name}"])
                kept = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
                moved = {m: v.to(weight.device) if m != "step" else v for m, v in kept.items()}
                if moved:
                    self._optimizer.state[weight] = moved


class State:
    """All players, the running mean of the model's parameters, and the losses so far.

    Args:
        weights: of the model, trained in place.
        options: lr, ema.
        names: of the loss parts.
        others: further players by name.
        turns: whose step it is, in turn.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        options: LoraOptions,
        names: Sequence[str],
        others: Mapping[str, Player] | None = None,
        turns: Sequence[str] = (WEIGHTS,),
    ) -> None:
        self._names, self._decay, self._turns = list(names), options.ema, list(turns)
        self.players = {WEIGHTS: Player(weights, options.lr), **(others or {})}
        self._mean = {name: weight.detach().clone() for name, weight in weights.items()}
        self._history: list[list[float]] = []

    @property
    def step(self) -> int:
        """How many steps are done, of all players together."""
        return len(self._history)

    @property
    def mover(self) -> str:
        """The player whose step is the next."""
        return self._turns[self.step % len(self._turns)]

    def begin(self) -> None:
        """Let gradients reach the mover alone."""
        for name, player in self.players.items():
            player.opened(name == self.mover)

    def advance(self, losses: Sequence[float]) -> None:
        """Let the mover take its step with the gradients that lie on its parameters."""
        player = self.mover
        self.players[player].move()
        self._history.append(list(losses))
        if self._decay is None or player != WEIGHTS:
            return
        # a young mean forgets its start fast, or zero would weigh on short trainings
        done = -(-self.step // len(self._turns))
        decay = min(self._decay, done / (done + 9))
        with torch.no_grad():
            for name, weight in self.players[WEIGHTS].weights.items():
                self._mean[name].lerp_(weight, 1 - decay)

    def values(self) -> Mapping[str, Tensor]:
        """The model's trained parameters by name: the last, or their running mean."""
        return self.players[WEIGHTS].weights if self._decay is None else self._mean

    def losses(self, player: str = WEIGHTS) -> dict[str, float]:
        """Means over the first and the last tenth of a player's steps, six digits."""
        rows = self._history[self._turns.index(player) :: len(self._turns)]
        tenth = max(1, len(rows) // 10)
        table = torch.tensor(rows, dtype=torch.float64)  # (steps, parts)
        means = {"first": table[:tenth].mean(dim=0), "last": table[-tenth:].mean(dim=0)}
        return {
            f"{name}_{when}": float(f"{float(values[at]):.6g}")
            for when, values in means.items()
            for at, name in enumerate(self._names)
        }

    def save(self, path: Path, more: Mapping[str, Tensor] | None = None) -> None:
        """Write everything that the next step reads.

        Args:
            path: of the file.
            more: what else is to be found again, by name.
        """
        tensors = {f"more.{name}": tensor for name, tensor in (more or {}).items()}
        for player, own in self.players.items():
            tensors |= {f"{player}.{name}": tensor for name, tensor in own.tensors().items()}
        if self._decay is not None:
            tensors |= {f"mean.{name}": mean for name, mean in self._mean.items()}
        tensors["history"] = torch.tensor(self._history, dtype=torch.float64)
        write_safetensors(path, tensors, {"parts": ",".join(self._names)})

    def restore(self, path: Path) -> dict[str, Tensor]:
        """Go on from a checkpoint; without one, or with a damaged one, from the beginning.

        Returns:
            What was saved as `more`; nothing if it starts from the beginning.
        """
        try:
            if read_header(path)[0].get("parts") != ",".join(self._names):
                return {}
            tensors = read_tensors(path)
        except PackageError:
            return {}
        whole = all(
            f"{player}.weight.{name}" in tensors
            for player, own in self.players.items()
            for name in own.weights
        )
        if not whole:  # of an earlier version, or of another game
            return {}
        self._history = tensors["history"].tolist()
        for player, own in self.players.items():
            own.restore(_below(tensors, player))
        if self._decay is not None:
            for name, mean in _below(tensors, "mean").items():
                self._mean[name].copy_(mean)
        return _below(tensors, "more")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
