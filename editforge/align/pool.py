"""Noisy latents to train on: partial sampling runs of the frozen model, drawn once and kept.

They do not depend on what is trained, so they are made before it: each entry holds a latent, its time
on the sampler's own grid, and the run it comes from. Runs go in pieces of a fixed size, which the
processes share; a piece on the disk is not drawn again. The pieces do not depend on the number of
processes, so neither does the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from editforge.align.denoiser import Denoiser, Encoded
from editforge.ground.errors import EditError, PackageError, RecipeError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from editforge.ground.keyed import keyed
from editforge.ground.team import Team

_PIECE, _POSITIONS = 16, 16384  # runs at a time, and latent positions at a time


@dataclass(frozen=True)
class Pool:
    """Entries of many runs: `latents` (n, c, h, w) float32, `times` (n,) and `runs` (n,) int64."""

    latents: Tensor
    times: Tensor
    runs: Tensor

    def __len__(self) -> int:
        return len(self.latents)


class Sampler:
    """Deterministic DDIM with guidance on a grid of `steps` times.

    Args:
        denoiser: predicts.
        steps: of a full run. Higher: latents closer to the model's own, slower.
        guidance: 1 is none and costs half. Higher: latents closer to the prompt.
        window: share of the run whose times are kept, 0 the noisiest, 1 the cleanest.
        seed: of the noise and of the times kept.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        steps: int,
        guidance: float,
        window: tuple[float, float],
        seed: int,
    ) -> None:
        self._denoiser, self._guidance, self._seed = denoiser, guidance, seed
        config = dict(denoiser.pipe.scheduler.config)
        # other samplers' configs lack the key, and DDIM's own default would clip latents to [-1, 1]
        self._scheduler: Any = DDIMScheduler.from_config(config, clip_sample=False)
        self._scheduler.set_timesteps(steps)
        self.times: Tensor = self._scheduler.timesteps.long()
        self.allowed = [at for at in range(steps) if window[0] <= (at + 0.5) / steps <= window[1]]
        if not self.allowed:
            raise RecipeError("align.time_range holds no time of the sampler", got=str(window))
        self._empty = denoiser.unconditional()

    def noise(self, *key: object) -> Tensor:
        """Start noise (c, h, w) of one run."""
        return torch.randn(self._denoiser.shape, generator=keyed(self._seed, "noise", *key))

    def kept(self, count: int, *key: object) -> list[int]:
        """Which grid positions of one run are kept: `count` of those allowed, in order."""
        generator = keyed(self._seed, "times", *key)
        order = torch.randperm(len(self.allowed), generator=generator)[:count].tolist()
        return sorted(self.allowed[at] for at in order)

    @torch.no_grad()
    def runs(
        self, noise: Sequence[Tensor], texts: Sequence[Encoded], kept: Sequence[Sequence[int]]
    ) -> list[list[Tensor]]:
        """Latents (c, h, w) of each run before the kept grid positions; a run ends at its last."""
        found: list[list[Tensor]] = [[] for _ in noise]
        z = torch.stack(list(noise)).to(self._denoiser.device) * self._scheduler.init_noise_sigma
        for at in range(max(row[-1] for row in kept) + 1):
            for row, positions in enumerate(kept):
                if at in positions:
                    found[row].append(z[row].clone().cpu())  # z is written again
            active = [row for row, positions in enumerate(kept) if positions[-1] > at]
            if active:
                z[active] = self._step(z[active], at, [texts[row] for row in active])
        return found

    def _step(self, z: Tensor, at: int, texts: list[Encoded]) -> Tensor:
        time, n = self.times[at], len(texts)
        if self._guidance == 1:
            output = self._denoiser(z, time.expand(n), texts)
        else:
            both = self._denoiser(
                torch.cat([z, z]), time.expand(2 * n), [*([self._empty] * n), *texts]
            )
            plain, conditioned = both[:n], both[n:]
            output = plain + self._guidance * (conditioned - plain)
        stepped: Tensor = self._scheduler.step(output, time, z).prev_sample
        return stepped


def build_pool(
    sampler: Sampler,
    texts: Sequence[Encoded],
    count: int,
    *,
    label: str,
    work: Path | None,
    team: Team,
    bar: Any,
) -> Pool:
    """Run every text once and keep `count` times of each run.

    Args:
        sampler: of the frozen model.
        texts: one run each.
        count: kept per run. Higher: more varied latents, more memory, no more time.
        label: of the files; also keys the noise.
        work: this training's own folder, which all processes see; None: every process draws all.
        team: the processes that share the runs.
        bar: one tick per run.
    """
    positions = sampler.noise(label, 0)[0].numel()
    size = max(1, min(_PIECE, _POSITIONS // positions))
    pieces = [range(first, min(first + size, len(texts))) for first in range(0, len(texts), size)]
    paths = [
        work / f"pool-{label}-{at:03d}.safetensors" if work else None for at in range(len(pieces))
    ]
    made: dict[int, dict[str, Tensor]] = {}
    for at, (piece, path) in enumerate(zip(pieces, paths, strict=True)):
        if path is not None and at % team.size != team.rank:
            continue
        if path is None or not _is_done(path):
            made[at] = _draw(sampler, piece, texts, count, label)
            if path is not None:
                write_safetensors(path, made[at], {})
        bar.update(len(piece))
    team.wait()
    loaded = [
        made[at] if path is None or at in made else read_tensors(path)
        for at, path in enumerate(paths)
    ]
    parts = [torch.cat([piece[name] for piece in loaded]) for name in ("latents", "times", "runs")]
    return Pool(*parts)


def _draw(
    sampler: Sampler, piece: range, texts: Sequence[Encoded], count: int, label: str
) -> dict[str, Tensor]:
    kept = [sampler.kept(count, label, run) for run in piece]
    noise = [sampler.noise(label, run) for run in piece]
    found = sampler.runs(noise, [texts[run] for run in piece], kept)
    latents = torch.stack([z for row in found for z in row])
    if not bool(torch.isfinite(latents).all()):
        raise EditError("the base model draws NaN or infinity", next="--set model.dtype=float32")
    return {
        "latents": latents.float(),
        "times": torch.stack([sampler.times[at] for row in kept for at in row]),
        "runs": torch.tensor([run for run, row in zip(piece, kept, strict=True) for _ in row]),
    }


def _is_done(path: Path) -> bool:
    try:
        read_header(path)
    except PackageError:
        return False  # not there, or damaged
    return True
