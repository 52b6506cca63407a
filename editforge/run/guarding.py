"""What can be done with a bank besides its run: calibrate it anew, look at it, bake it into weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from editforge.families.config import ModelConfig
from editforge.families.draw import Shown, sample
from editforge.families.model import Model
from editforge.families.open import open_model
from editforge.ground.disk import write_atomic
from editforge.ground.errors import PackageError, RecipeError
from editforge.guards.bank import Facts, Guarded
from editforge.guards.prototype import PrototypeGuard
from editforge.guide.calibrate import calibrate, prompts_in, reader
from editforge.package.facts import base_config
from editforge.recipe.layers import resolve
from editforge.recipe.recipe import Recipe

_CELL, _GAP, _SIDE, _TOP = 160, 8, 260, 40
Say = Callable[[str], None]


def recalibrated(
    place: str,
    output: Path,
    benign: Path,
    *,
    held_out: Path | None = None,
    rate: float = 0.01,
    model: str | None = None,
    say: Say = lambda line: None,
) -> PrototypeGuard:
    """A bank with thresholds from other harmless prompts; its vectors keep their directions.

    Every other prompt of the list is left out of the threshold and says the benign rate.

    Args:
        place: of the bank.
        output: the file to write.
        benign: harmless prompts, one a line.
        held_out: prompts with the concept, one a line, for the miss rate; of a bank of one concept.
        rate: of harmless prompts that may trigger.
        model: the base; None: the one that the bank names.
        say: takes a line for the user.

    Raises:
        RecipeError: too few prompts, or prompts with the concept for several concepts.
        PackageError: no bank there, or it does not say what its base is.
    """
    guard, prompts = PrototypeGuard.from_pretrained(place), prompts_in(str(benign))
    guilty = prompts_in(str(held_out)) if held_out else []
    if guilty and len(guard.facts.concepts) > 1:
        raise RecipeError(
            "whose prompts are these?",
            got=", ".join(concept.name for concept in guard.facts.concepts),
            allowed="--held-out with a bank of one concept",
        )
    tensors, concepts = dict(guard.tensors), list[Guarded]()
    K, concept_of = len(tensors["selector"]), tensors["concept"].long()[guard.points]
    names = tensors.get("name_selector", tensors["selector"][:0])
    selector = torch.cat([tensors["selector"], names])
    with _opened(guard, model, say) as base:
        read = reader(base.encoder)
        for at, concept in enumerate(guard.facts.concepts):
            own = concept_of == at
            done = calibrate(
                concept.name,
                read,
                selector[own].float(),
                tensors["center"].float(),
                prompts[::2],
                guilty,
                rate,
                unseen=prompts[1::2],
                instead=concept.instead,
            )
            selector[own] = done.selector
            concepts.append(done.guarded)
            say(f"{concept.name!r}: {done.guarded.said}")
    facts = Facts.model_validate(
        {**guard.facts.model_dump(), "concepts": [c.model_dump() for c in concepts]}
    )
    told = {**guard.provenance, "calibrated_again": {"rate": rate, "prompts": len(prompts)}}
    tensors["selector"] = selector[:K]
    if len(names):
        tensors["name_selector"] = selector[K:]
    found = replace(guard, tensors=tensors, facts=facts, provenance=told)
    found.save(output)
    return found


@dataclass(frozen=True)
class Tried:
    """One prompt: the concepts that it triggered, and whether its pictures are the stock ones."""

    prompt: str
    triggered: tuple[str, ...]
    untouched: bool


def tried(
    place: str,
    prompts: Sequence[str],
    output: Path,
    *,
    seed: int = 0,
    pictures: int = 4,
    strength: float = 1.0,
    model: str | None = None,
    device: str | None = None,
    progress: bool = False,
    say: Say = lambda line: None,
) -> list[Tried]:
    """Draw prompts stock and guarded from the same noise, side by side, into one PNG.

    Raises:
        RecipeError: no prompt. PackageError: no bank, or it does not say what its base is.
    """
    if not prompts or pictures < 1:
        raise RecipeError("nothing to draw", next='editforge guard try BANK --prompt "..."')
    guard = PrototypeGuard.from_pretrained(place).scaled(strength)
    with _opened(guard, model, say, device) as base:
        pipe, sampler = base.pipeline(), base.sampler
        rows = [
            Shown(f"try/{at}", text, range(seed, seed + pictures))
            for at, text in enumerate(prompts)
        ]
        acts = guard.triggered(pipe, prompts)
        stock = sample(pipe, rows, sampler, progress=progress, label="stock", base=base.drawn_by)
        with guard.on(pipe):
            steered = sample(pipe, rows, sampler, progress=progress, label="guarded")
    shape = (len(prompts), pictures, *stock.shape[1:])
    stock, steered = stock.reshape(shape), steered.reshape(shape)
    found = [
        Tried(text, names, bool((a == b).all()))
        for text, names, a, b in zip(prompts, acts, stock, steered, strict=True)
    ]
    data = _side_by_side(found, stock, steered)
    write_atomic(output, lambda file: file.write(data))
    return found


def baked_recipe(run: Path, *, lora: bool, sets: Sequence[str] = ()) -> Recipe:
    """The recipe that bakes what a prototype run has found: same concepts, base, seed and mining.

    Args:
        run: of a recipe with `mine: prototypes`.
        lora: train the LoRA after the closed form.
        sets: `stage.key=value` texts that win.

    Raises:
        RecipeError: no run there, or one that mined no prototypes.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            "this folder is no run", got=str(run), next="editforge guard build CONCEPT"
        )
    own = resolve(str(path))
    if not any(config.use == "prototypes" for config in own.mine or ()):
        raise RecipeError(
            "this run has no prototypes", got=f"method {own.method}", allowed="method prototype"
        )
    body = own.model_dump(mode="json")
    kept = {key: body[key] for key in ("concepts", "model", "seed", "preserve", "mine", "evaluate")}
    if own.target is not None:
        kept["target"] = body["target"]
    if not lora:
        kept["align"] = None
    return resolve("prototype-baked", kept, sets)


@contextmanager
def _opened(
    guard: PrototypeGuard, model: str | None, say: Say, device: str | None = None
) -> Iterator[Model]:
    told = str(guard.provenance.get("base_model", ""))
    config = ModelConfig(id=model) if model else base_config(told, _revision(guard))
    if config is None:
        raise PackageError(
            "the bank cannot name its base", got=told or "no name", next="name it: --model FOLDER"
        )
    if device is not None:
        config = config.model_copy(update={"device": device})
    with open_model(config, say) as base:
        yield base


def _revision(guard: PrototypeGuard) -> str | None:
    found: Any = guard.provenance.get("base_revision")
    return found if isinstance(found, str) else None


def _side_by_side(
    rows: Sequence[Tried], stock: NDArray[np.uint8], steered: NDArray[np.uint8]
) -> bytes:
    count = stock.shape[1]
    width = _SIDE + 2 * count * (_CELL + _GAP) + 3 * _GAP
    sheet = Image.new("RGB", (width, _TOP + len(rows) * (_CELL + _GAP)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for side, label in enumerate(("stock", "guarded")):
        x = _SIDE + side * (count * (_CELL + _GAP) + 2 * _GAP)
        draw.text((x, 12), label, fill=(32, 33, 36), font=ImageFont.load_default(16))
    for at, row in enumerate(rows):
        top = _TOP + at * (_CELL + _GAP)
        said = ", ".join(row.triggered) or ("stock, bit for bit" if row.untouched else "changed")
        draw.text(
            (12, top + 8), _fit(row.prompt), fill=(32, 33, 36), font=ImageFont.load_default(14)
        )
        draw.text((12, top + 30), said, fill=(112, 117, 122), font=ImageFont.load_default(13))
        for side, pictures in enumerate((stock[at], steered[at])):
            for column, pixels in enumerate(pictures):
                x = _SIDE + side * (count * (_CELL + _GAP) + 2 * _GAP) + column * (_CELL + _GAP)
                cell = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
                sheet.paste(cell, (x, top))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _fit(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
