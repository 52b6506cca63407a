"""What a person sees while training goes on: losses and pictures, in the run's log, in no digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editforge.align.denoiser import Denoiser
from editforge.align.options import LoraOptions, check_tracker
from editforge.align.prompts import Prompts
from editforge.align.rows import Student
from editforge.families.draw import sample
from editforge.recipe.contract import Context

_ROWS = 4  # concepts and preserved names shown, as many of each


@dataclass(frozen=True)
class _Shown:
    id: str
    text: str
    seeds: tuple[int, ...] = (0, 1)


class Watch:
    """Grids and trackers of one training; process 0 alone keeps them, and only with a log folder.

    Args:
        options: how often, and which tracker.
        context: the log folder.
        denoiser: draws the pictures, with the adapter on.
        adapter: as it is at the step shown.
        prompts: whose names are drawn.

    Raises:
        RecipeError: the tracker's library is not installed.
    """

    def __init__(
        self,
        options: LoraOptions,
        context: Context,
        denoiser: Denoiser,
        adapter: Student,
        prompts: Prompts,
    ) -> None:
        self._adapter, self._denoiser = adapter, denoiser
        self._folder = context.log / "align" if context.log and context.team.leads else None
        self._every = options.grid_every
        shown = dict.fromkeys(prompt.concept for prompt in prompts.erased)
        self._names = [*list(shown)[:_ROWS], *prompts.preserved[:_ROWS]]
        self._sampler = replace(context.model.sampler, size=options.size)
        self._tracker = _tracker(options.tracker, self._folder)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracker is not None:
            self._tracker.finish()

    def after(self, step: int, losses: Mapping[str, float]) -> None:
        """Note the losses of a step, and draw if it is time."""
        if self._tracker is not None:
            self._tracker.log(dict(losses), step=step)
        if self._folder is None or self._every is None or step % self._every:
            return
        picture = self.grid()
        self._folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self._folder / f"step-{step:06d}.png")
        if self._tracker is not None:
            self._tracker.log_images({"grid": picture[None]}, step=step, dataformats="NHWC")

    def grid(self) -> NDArray[np.uint8]:
        """Each name with two seeds, now: erased ones first, (2 h, n w, 3)."""
        texts = [_Shown(f"align/{name}", name) for name in self._names]
        with self._adapter.student():
            images = sample(self._denoiser.pipe, texts, self._sampler, progress=False)
        n, h, w, channels = images.shape
        tiles = images.reshape(n // 2, 2, h, w, channels).transpose(1, 2, 0, 3, 4)
        return tiles.reshape(2 * h, n // 2 * w, channels)


def _tracker(name: str | None, folder: Path | None) -> Any:
    if name is None:
        return None
    from accelerate.tracking import TensorBoardTracker

    check_tracker(name)
    if folder is None:
        return None
    from accelerate import PartialState

    PartialState()  # the tracker asks it which process is the first
    folder.mkdir(parents=True, exist_ok=True)
    tracker = TensorBoardTracker("tensorboard", logging_dir=str(folder))
    tracker.start()
    return tracker
