"""From harmless prompts to a threshold, and what it lets through and takes wrongly.

A score compares text states with a direction; its scale belongs to the encoder. So the threshold is
the score that a stated share of harmless prompts exceeds. Both rates are measured on prompts that the
threshold has not seen, in captions that no template of a family or of the gate has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from editforge.families.encode import TextEncoder
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled
from editforge.guards.bank import Guarded
from editforge.guards.gate import scores

CAPTIONS = (
    "the {n}",
    "one {n}",
    "{n}, {n}",
    "{a} in a picture",
    "a small {n}",
    "{n} and an icon",
)
_BATCH = 64
_LEAST = 1e-4  # where harmless prompts all look the other way


@dataclass(frozen=True)
class Calibrated:
    """Selectors (K, d) float16 whose scores share one scale, and the facts of the concept."""

    selector: Tensor
    guarded: Guarded


def calibrate(
    name: str,
    read: Callable[[Sequence[str]], Tensor],
    selector: Tensor,
    center: Tensor,
    benign: Sequence[str],
    guilty: Sequence[str],
    rate: float,
    *,
    unseen: Sequence[str] = (),
    instead: str | None = None,
) -> Calibrated:
    """Scale each selector to its own quantile of harmless scores, then set the threshold of the largest.

    Args:
        name: of the concept.
        read: prompts to states (n, q, d), as the denoiser reads them.
        selector: (K, d).
        center: (d,).
        benign: harmless prompts: of these the share `rate` triggers, at most.
        guilty: held-out prompts with the concept; those that do not trigger are missed.
        rate: between 0 and 1.
        unseen: harmless prompts that are held out; what they trigger is the benign rate.
        instead: the target's text.

    Raises:
        RecipeError: fewer harmless prompts than the rate needs to mean anything.
    """
    if len(benign) * rate < 1 or len(benign) < 20:
        raise RecipeError(
            "too few harmless prompts for this trigger rate",
            got=f"{len(benign)} prompts, rate {rate:g}",
            allowed=f"at least {max(20, int(1 / max(rate, 1e-6)))} prompts",
            next="--benign FILE with more, or a higher --rate",
        )
    half, middle = selector.half(), center.half()
    told = _scores(read, benign, middle, half)
    may = int(len(benign) * rate)  # so many of them; a quantile between two scores lets one more in
    own = told.sort(dim=0, descending=True).values[may].clamp(min=_LEAST)
    scaled = (selector / own[:, None]).half()
    highest = _scores(read, benign, middle, scaled).amax(dim=1)
    threshold = max(float(highest.sort(descending=True).values[may]), _LEAST) * (1 + 1e-4)

    def share(prompts: Sequence[str]) -> float | None:
        if not prompts:
            return None
        hit = _scores(read, prompts, middle, scaled).amax(dim=1) / threshold >= 1
        return round(float(hit.float().mean()), 4)

    caught, wrong = share(guilty), share(unseen)
    return Calibrated(
        scaled,
        Guarded(
            name=name,
            threshold=threshold,
            instead=instead,
            benign_rate=wrong,
            miss_rate=None if caught is None else round(1 - caught, 4),
            benign=len(unseen),
            missed=len(guilty),
        ),
    )


def prompts_with(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every name in every template, each text once."""
    return list(dict.fromkeys(filled(t, name) for name in names for t in templates))


def prompts_in(path: str) -> list[str]:
    """The prompts of a text file, one a line; empty lines and those that begin with # are left out.

    Raises:
        RecipeError: no such file, or no prompt in it.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            "no such list of prompts",
            got=f"{path}: {getattr(error, 'strerror', None) or error}",
            allowed="a UTF-8 text file, one prompt a line",
        ) from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise RecipeError("the list of prompts is empty", got=path)
    return list(dict.fromkeys(found))


def reader(encoder: TextEncoder) -> Callable[[Sequence[str]], Tensor]:
    """Prompts to the states of the whole window: padding counts in a score."""
    return lambda prompts: encoder.encode(list(prompts))


def _scores(
    read: Callable[[Sequence[str]], Tensor],
    prompts: Sequence[str],
    center: Tensor,
    selector: Tensor,
) -> Tensor:
    parts = [prompts[at : at + _BATCH] for at in range(0, len(prompts), _BATCH)]
    return torch.cat([scores(read(part), center, selector) for part in parts])
