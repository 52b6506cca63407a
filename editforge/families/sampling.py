"""How a checkpoint's pictures are drawn: as its family says, unless its own configs tell another kind.

A Turbo or LCM checkpoint draws mush in 25 steps at guidance 7.5, and an EDM scheduler has other sigmas
than DPM-Solver++. A gate that judged such pictures would judge the wrong sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from editforge.families.schema import Family, load_family


@dataclass(frozen=True)
class Sampler:
    """DPM-Solver++ of second order, or the checkpoint's own scheduler.

    Args:
        steps: more: finer images, slower.
        guidance: higher: closer to the prompt, less varied; up to 1 is none.
        size: height and width in pixels; None is the pipeline's own.
        batch: images at once; changes memory and speed, never the noise.
        scheduler: class of the checkpoint's own scheduler where that one draws; None: DPM-Solver++.
    """

    steps: int = 25
    guidance: float = 7.5
    size: int | None = None
    batch: int = 8
    scheduler: str | None = None

    def record(self) -> dict[str, Any]:
        """What a report says about the sampler; the batch size changes nothing and stays out."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("batch", "scheduler")}
        if self.scheduler:
            return {"name": self.scheduler, **fields}
        return {"name": "DPMSolverMultistepScheduler", "solver_order": 2, **fields}


def default_sampler(family: str | Family) -> Sampler:
    """Steps and guidance as the family says, at the pipeline's own size.

    The family's `size` is what its published checkpoints have; a fine-tune may have another.
    """
    own = (load_family(family) if isinstance(family, str) else family).sampler
    return Sampler(steps=own.steps, guidance=own.guidance, batch=own.batch)


@dataclass(frozen=True)
class _Kind:
    """A kind of checkpoint that its own scheduler draws; None: as the family says."""

    steps: int | None
    guidance: float | None


_LCM = _Kind(steps=4, guidance=8.0)  # its guidance is an input of the denoiser
_LCM_WITHOUT = _Kind(steps=4, guidance=1.0)
_TURBO = _Kind(steps=4, guidance=0.0)
_EDM = _Kind(steps=None, guidance=3.0)


def own_sampler(
    family: Family,
    unet: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> Sampler:
    """How a checkpoint with these configs is drawn.

    Args:
        family: of the checkpoint.
        unet: config of its denoiser.
        scheduler: config of its scheduler, with the name of its class.
        steps: what the user says instead.
        guidance: what the user says instead.
    """
    sampler, kind = default_sampler(family), _kind(unet, scheduler)
    if kind is not None:
        sampler = replace(
            sampler,
            steps=kind.steps or sampler.steps,
            guidance=sampler.guidance if kind.guidance is None else kind.guidance,
            scheduler=str(scheduler["_class_name"]),
        )
    return replace(
        sampler,
        steps=steps or sampler.steps,
        guidance=sampler.guidance if guidance is None else guidance,
    )


def _kind(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> _Kind | None:
    """LCM, EDM or Turbo; None: none of them.

    Turbo and Lightning have an Euler scheduler with trailing timesteps and predict epsilon; a model
    with trailing timesteps and zero terminal SNR predicts v.
    """
    name = str(scheduler.get("_class_name", ""))
    if name == "LCMScheduler":
        return _LCM if unet.get("time_cond_proj_dim") else _LCM_WITHOUT
    if name.startswith("EDM"):
        return _EDM
    trailing = scheduler.get("timestep_spacing") == "trailing"
    predicts = scheduler.get("prediction_type", "epsilon")
    return _TURBO if trailing and predicts == "epsilon" and name.startswith("Euler") else None
