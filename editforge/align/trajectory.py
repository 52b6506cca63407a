"""Which target led when: a table and a picture of the mixture on its way, in the run's log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editforge.align.mixture import Mixture
from editforge.ground.disk import write_json

_SHOWN = 6  # words drawn by name


class Trajectory:
    """The mixture's shares after each of its steps, for all concepts.

    Args:
        mixture: watched.
    """

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._rows: dict[str, list[Tensor]] = {name: [] for name in mixture.candidates}

    def note(self) -> None:
        """Keep the shares as they are now."""
        for concept, rows in self._rows.items():
            rows.append(self._mixture.settled(concept))

    def tensors(self) -> dict[str, Tensor]:
        """All of it, (steps, candidates) per concept, for a checkpoint."""
        return {
            f"shares.{at}": torch.stack(rows) for at, rows in enumerate(self._rows.values()) if rows
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        for at, concept in enumerate(self._rows):
            if (kept := tensors.get(f"shares.{at}")) is not None:
                self._rows[concept] = list(kept)

    def table(self) -> dict[str, list[dict[str, Any]]]:
        """By concept the words that led, each with the mixture's step from which and its share then."""
        found: dict[str, list[dict[str, Any]]] = {}
        for concept, rows in self._rows.items():
            words = self._mixture.candidates[concept].words
            led: list[dict[str, Any]] = []
            for step, shares in enumerate(rows):
                best = int(shares.argmax())
                if not led or led[-1]["word"] != words[best]:
                    led.append(
                        {
                            "step": step + 1,
                            "word": words[best],
                            "share": round(float(shares[best]), 6),
                        }
                    )
            found[concept] = led
        return found

    def save(self, folder: Path, say: Callable[[str], None]) -> None:
        """Write `trajectory.json`, and `trajectory.png` where matplotlib is installed."""
        led = self.table()
        last = {concept: self._mixture.leading(concept, _SHOWN) for concept in led}
        write_json(folder / "trajectory.json", {"led": led, "at_the_end": last})
        try:
            import matplotlib
        except ImportError:
            say("note: no picture of the targets' way: pip install 'editforge[plots]'")
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            len(led), 1, figsize=(7, 2.6 * len(led)), dpi=130, squeeze=False, sharex=True
        )
        for (concept, rows), axis in zip(self._rows.items(), axes[:, 0], strict=True):
            if not rows:
                continue
            shares, words = torch.stack(rows), self._mixture.candidates[concept].words
            steps = range(1, len(shares) + 1)
            axis.plot(steps, shares, color="0.85", linewidth=0.6)
            shown = shares.max(dim=0).values.topk(min(_SHOWN, len(words))).indices.tolist()
            for at in sorted(shown, key=lambda one: -float(shares[-1, one])):
                axis.plot(steps, shares[:, at], label=words[at], linewidth=1.6)
            axis.set_ylabel(f"{concept}: share")
            axis.legend(frameon=False, fontsize=8, loc="upper left")
            axis.spines[["top", "right"]].set_visible(False)
        axes[-1, 0].set_xlabel("steps of the mixture")
        figure.tight_layout()
        figure.savefig(folder / "trajectory.png", metadata={"Software": None})
        pyplot.close(figure)
