"""An eraser beside its base, a prompt at a time: what `editforge try` shows, without the page.

The base stays in memory once; the eraser is put on for its half of a pair and taken off again. A full
checkpoint cannot be: its own pipeline lies beside the base's as long as the trial is open.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from editforge.artifacts.eraser import Eraser
from editforge.artifacts.report import RESULTS, SCHEMA, NameRate, Verdict
from editforge.families.config import ModelConfig
from editforge.families.draw import Sampler, Shown, sample
from editforge.families.model import Model
from editforge.families.open import open_model
from editforge.families.schema import Family
from editforge.ground.disk import read_json
from editforge.ground.errors import PackageError, RecipeError
from editforge.ground.names import filled
from editforge.package.exports import exporter
from editforge.package.facts import Claims, base_config, read_claims, repository
from editforge.recipe.layers import resolve
from editforge.run.found import Found, find
from editforge.run.load import load_edit
from editforge.run.saved import local_folder

STRENGTHS, STEPS, GUIDANCES = (0.0, 2.0), (1, 100), (0.0, 20.0)
SEEDS = (0, 2**31 - 1)
NOISE = "try/0"  # of the first prompt of `guard try`: a seed there and here is the same picture
_ASKED, _NEAR, _KEPT = 3, 3, 16
Say = Callable[[str], None]


@dataclass(frozen=True)
class About:
    """What is known of an eraser before it is tried.

    Args:
        erased: concept and what it becomes; "" is nothing, None is not said.
        base: what the base is called; never a path.
        verdict: of its report, or None.
        examples: prompts to begin with: its own names first, then near ones that must stay.
        weights: it changes weights, so a user can take it out again or turn it round.
    """

    erased: tuple[tuple[str, str | None], ...]
    base: str
    verdict: Verdict | None = None
    examples: tuple[str, ...] = ()
    weights: bool = True


@dataclass(frozen=True)
class Pair:
    """Two pictures on the same noise, (height, width, 3) uint8, and what of the prompt was not read."""

    base: NDArray[np.uint8]
    edited: NDArray[np.uint8]
    cut: str = ""


@dataclass
class Trial:
    """A base and an eraser in memory. Whoever draws waits for whoever drew first.

    Args:
        pipe: the base's pipeline; after each pair it is what it was, bit for bit.
        model: the base, for its tokenizer and family.
        eraser: of a full checkpoint None.
        whole: the pipeline of a full checkpoint, else None.
        about: for the page.
    """

    pipe: Any
    model: Model
    eraser: Eraser | None
    whole: Any
    about: About
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _drawn: OrderedDict[Any, NDArray[np.uint8]] = field(default_factory=OrderedDict, repr=False)

    @property
    def family(self) -> Family:
        """Of the base."""
        return self.model.family

    @property
    def sampler(self) -> Sampler:
        """As the gate draws; one picture at a time."""
        return replace(self.model.sampler, batch=1)

    @property
    def has_strength(self) -> bool:
        """A full checkpoint has its strength inside."""
        return self.eraser is not None

    def draw(
        self,
        prompt: str,
        seed: int,
        *,
        strength: float = 1.0,
        steps: int | None = None,
        guidance: float | None = None,
        tick: Callable[[float], None] = lambda share: None,
    ) -> Pair:
        """Base and edited from the same noise, as the gate draws.

        The noise is keyed by the seed alone, so that two prompts can be compared. The base's last
        pictures are kept: another strength draws one picture, not two.

        Args:
            prompt: what to draw; what the text encoder cannot read is said in `Pair.cut`.
            seed: of the noise.
            strength: 1 is the eraser as it ships, 0 the base bit for bit.
            steps: None: as the checkpoint is drawn.
            guidance: None: as the checkpoint is drawn.
            tick: takes the share that is done.

        Raises:
            RecipeError: no prompt, or a number out of bounds.
            EditforgeError: the model draws NaN.
        """
        text, cut = self._read(prompt)
        own = self.sampler
        seed = int(_within("the seed", seed, SEEDS))
        strength = _within("the strength", strength, STRENGTHS)
        steps = int(_within("steps", own.steps if steps is None else steps, STEPS))
        guidance = _within("guidance", own.guidance if guidance is None else guidance, GUIDANCES)
        if not self.has_strength and strength != 1:
            raise RecipeError(
                "a full checkpoint has its strength inside", got=strength, allowed="1"
            )
        sampler = replace(own, steps=steps, guidance=guidance)
        row, key = [Shown(NOISE, text, (seed,))], (text, seed, steps, guidance)
        with self._lock:
            base = self._drawn.get(key)
            first = 0.5 if base is None else 0.0
            if base is None:
                base = _one(self.pipe, row, sampler, lambda share: tick(first * share))
                self._drawn[key] = base
                while len(self._drawn) > _KEPT:
                    self._drawn.popitem(last=False)
            with self._erasing(strength) as pipe:
                edited = _one(pipe, row, sampler, lambda share: tick(first + (1 - first) * share))
        return Pair(base, edited, cut)

    def _erasing(self, strength: float) -> Any:
        if self.eraser is None:
            return nullcontext(self.whole)
        return self.eraser.scaled(strength).applied(self.pipe)

    def _read(self, prompt: str) -> tuple[str, str]:
        """The prompt as it is drawn, and its end that the text encoder does not see."""
        text = " ".join(str(prompt).split())
        if not text:
            raise RecipeError("no prompt", allowed="what to draw, in words")
        reader = self.model.reader
        ids, room = reader.tokens(text), reader.window - 2
        if len(ids) <= room:
            reader.check(text)
            return text, ""
        tokenizer = getattr(self.pipe, self.family.text[0].tokenizer)
        return text, str(tokenizer.decode(ids[room:])).strip()


@contextmanager
def trial(
    place: str,
    *,
    model: str | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Iterator[Trial]:
    """Open an eraser and its base for as long as they are tried.

    Args:
        place: a run, a package or a repository of it, a bank, a LoRA file, or a Hub id.
        model: the base; None: the one that the run or package names.
        device: where to draw; None: as recorded, or the best there is.
        say: takes a line for the user.

    Raises:
        PackageError: no eraser there, another base than its own, or a base that nobody names.
        EditError: the base does not take it.
    """
    where = local_folder(place)
    found = _found(where, place)
    if found.base is None and model is None:
        raise PackageError(
            "it cannot name its base",
            got=found.claims.base_model or "no name",
            next="name it: --model FOLDER",
        )
    given: dict[str, str | None] = {"base": None}
    given |= {"id": model, "revision": None} if model is not None else {}
    given |= {"device": device} if device is not None else {}
    config = (found.base or ModelConfig()).model_copy(update={**found.loading, **given})
    say(f"opening {config.id}")
    with ExitStack() as stack:
        base = stack.enter_context(open_model(config, say))
        acting = found.eraser(base, config.id)
        pipe = base.pipeline()
        # Tried on at once: what the base does not take is refused before there is a page.
        on = acting.applied(pipe)
        whole = stack.enter_context(on) if found.edit is None else None
        if found.edit is not None:
            with on:
                pass
        about = _about(found, where, base)
        yield Trial(pipe, base, found.edit, whole, about)


def _found(place: Path, typed: str) -> Found:
    """What lies there; whatever has a strength as the eraser itself."""
    own = (place / "recipe.yaml").is_file()
    folder = None if own else repository(place)
    if folder is not None:
        found = find(place, typed)
        adapter = found.form is not None and exporter(found.form).relation == "adapter"
        return replace(found, edit=load_edit(found.place)) if adapter else found
    edit = load_edit(place)
    claims = read_claims(edit.provenance, typed)
    base = base_config(claims.base_model, claims.base_revision)
    if own:
        base = resolve(str(place / "recipe.yaml")).model
    return Found(None, place, claims, edit, base)


def _about(found: Found, place: Path, base: Model) -> About:
    claims, folder = found.claims, repository(place)
    report = place / "evaluate" if (place / "recipe.yaml").is_file() else folder
    verdict, near = _judged(report / RESULTS) if report is not None else (None, ())
    return About(
        tuple((row.name, row.target) for row in claims.erased),
        base.label,
        verdict,
        _examples(claims, near or claims.preserve, base.family),
        weights=not found.edit or "modules" in found.edit.described(),
    )


def _judged(file: Path) -> tuple[Verdict | None, tuple[str, ...]]:
    """The verdict of a report and its near names, without its pictures: a package has few of them."""
    if not file.is_file():
        return None, ()
    body = read_json(file)
    try:
        if body["schema"] != SCHEMA:
            raise KeyError("schema")
        names = [NameRate.model_validate(row) for row in body["names"]]
        verdict = Verdict.model_validate(body["verdict"])
    except (ValidationError, KeyError, TypeError):
        raise PackageError(
            f"{RESULTS} is damaged", next="evaluate again: editforge evaluate DIR"
        ) from None
    return verdict, tuple(row.name for row in names if row.set == "near")


def _examples(claims: Claims, near: tuple[str, ...], family: Family) -> tuple[str, ...]:
    if not claims.erased:
        return ()
    templates = family.templates.get(claims.erased[0].kind, ("{n}",))
    own = [name for concept in claims.concepts for name in concept.names]
    names = [*own[:_ASKED], *near[:_NEAR]]
    return tuple(filled(templates[min(1, len(templates) - 1)], name) for name in names)


def _within(what: str, value: Any, bounds: tuple[float, float]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not bounds[0] <= number <= bounds[1]:
        allowed = f"{bounds[0]:g} to {bounds[1]:g}"
        raise RecipeError(f"{what} is out of bounds", got=value, allowed=allowed)
    return number


def _one(
    pipe: Any, row: list[Shown], sampler: Sampler, tick: Callable[[float], None]
) -> NDArray[np.uint8]:
    done = 0

    def passed(*_: Any) -> None:
        nonlocal done
        done += 1
        tick(min(1.0, done / sampler.steps))

    counted = pipe.unet.register_forward_hook(passed)
    try:
        return sample(pipe, row, sampler, progress=False)[0]
    finally:
        counted.remove()
