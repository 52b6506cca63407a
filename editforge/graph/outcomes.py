"""What the judges see: every concept by the base, and by the model without each of the others.

One picture is one prompt and seed, and its noise hangs on these two alone, so a picture of the base and
the same picture of an edited model differ by the edit. What is finished lies in `outcomes/`, a file for
each erased concept; a killed graph goes on from there, and within a concept from its last batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from editforge.artifacts.eraser import Eraser
from editforge.families.draw import sample
from editforge.graph.place import Place
from editforge.graph.request import Request
from editforge.ground.disk import sha256_json
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from editforge.judges import judge_images
from editforge.recipe.contract import Context
from editforge.recipe.recipe import Recipe
from editforge.run.memory import solve_in_memory

Bools = NDArray[np.bool_]
_AT_ONCE = 256  # pictures in memory


@dataclass(frozen=True)
class Seen:
    """One model's pictures of n concepts, k each; both (n, k).

    `present`: either judge sees the concept, as for an erased one. `kept`: all do, as for the others.
    `becomes`: what the erased concept was sent to; None: nobody says.
    """

    present: Bools
    kept: Bools
    becomes: str | None = None


@dataclass(frozen=True)
class Outcomes:
    """The base's answers and, in the order of `names`, those of the model without each concept."""

    names: tuple[str, ...]
    base: Seen
    edited: tuple[Seen, ...]

    @property
    def lost(self) -> NDArray[np.float64]:
        """(erased, measured, k): 1 where the base's picture shows it and the edited does not."""
        kept = np.stack([seen.kept for seen in self.edited])
        return self.base.kept[None].astype(float) - kept.astype(float)


def observe(request: Request, context: Context, place: Place) -> Outcomes:
    """Draw and judge what is not there yet.

    Raises:
        EditforgeError: a refused edit, a failing judge. What is finished stays.
    """
    model, n = context.model, len(request.names)
    pipe = model.pipeline()
    digest = sha256_json(request.facts)

    def look(drawn: Any, label: str, key: str, base: str | None = None) -> tuple[Bools, Bools]:
        present, kept = [], []
        each = max(1, _AT_ONCE // request.images)  # concepts at once
        for start in range(0, n, each):
            own = set(request.names[start : start + each])
            prompts = [prompt for prompt in request.prompts if prompt.concept in own]
            images = sample(
                drawn,
                prompts,
                request.sampler,
                progress=context.progress,
                label=label,
                workdir=place.work / f"{start:03d}",
                weights=key,
                base=base,
            )
            rows = [prompt.labels for prompt in prompts for _ in prompt.seeds]
            judged = judge_images(images, rows, request.judges)
            present.append(judged.present)
            kept.append(judged.retained)
        return tuple(np.concatenate(rows).reshape(n, -1) for rows in (present, kept))  # type: ignore[return-value]

    path, key = place.outcomes / "base.safetensors", sha256_json([digest, "base"])
    base = _read(path, key, n)
    if base is None:
        base = Seen(*look(pipe, "base", key, model.drawn_by))
        _write(path, key, base)
        place.forget_pictures()
    edited = []
    with context.bar(n, "erasing") as bar:
        for index, recipe in enumerate(request.singles):
            path = place.outcomes / f"erased-{index:03d}.safetensors"
            key = sha256_json([digest, recipe.concepts[0].name])
            seen = _read(path, key, n)
            if seen is None:
                eraser = solve_in_memory(recipe, _quiet(context))
                with eraser.applied(pipe) as without:
                    answers = look(without, f"without {index + 1} of {n}", key)
                seen = Seen(*answers, becomes=_target(eraser))
                _write(path, key, seen)
                place.forget_pictures()
                bar.clear()
                context.say(_line(recipe, index, base, seen))
            edited.append(seen)
            bar.update()
    return Outcomes(request.names, base, tuple(edited))


def _quiet(context: Context) -> Context:
    """An erasing stage among many says what it warns of, and no more."""
    say = context.say

    def warn(line: str) -> None:
        if line.lstrip().startswith("warning:"):
            say(line)

    return replace(context, say=warn)


def _target(eraser: Eraser) -> str | None:
    rows = eraser.provenance.get("erased", ())
    return rows[0].get("target") if rows else None


def _line(recipe: Recipe, index: int, base: Seen, seen: Seen) -> str:
    before, after = base.present[index].mean(), seen.present[index].mean()
    others = np.delete(base.kept.mean(axis=1) - seen.kept.mean(axis=1), index)
    becomes = f" becomes {seen.becomes or 'nothing'!r}"
    return (
        f"{recipe.concepts[0].name!r}{becomes}: drawn {before:.0%} to {after:.0%}; "
        f"the others lose {others.mean():.1%} on average, {others.max():.0%} at most"
    )


def _write(path: Path, key: str, seen: Seen) -> None:
    tensors = {
        "present": torch.from_numpy(seen.present),
        "kept": torch.from_numpy(seen.kept),
    }
    becomes = {} if seen.becomes is None else {"becomes": seen.becomes}
    write_safetensors(path, tensors, {"key": key, **becomes})


def _read(path: Path, key: str, concepts: int) -> Seen | None:
    """What is finished under that key; None: nothing, another request's, or cut short."""
    if not path.is_file():
        return None
    try:
        header = read_header(path)[0]
        found = read_tensors(path)
    except PackageError:
        return None
    whole = set(found) == {"present", "kept"} and all(len(t) == concepts for t in found.values())
    if header.get("key") != key or not whole:
        return None
    present, kept = (found[name].numpy() for name in ("present", "kept"))
    return Seen(present, kept, header.get("becomes"))
