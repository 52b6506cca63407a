"""What a run would do and cost, before it does it: `--dry-run`.

Counts are exact for a closed form. Seconds come from a short probe of this computer's matrix
products, so they are an order of magnitude, and say so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from editforge.artifacts.system import System
from editforge.evaluate.prompts import FEW, gate_prompts
from editforge.evaluate.prompts.examples import example_prompts
from editforge.families.open import describe
from editforge.families.outline import Outline
from editforge.families.vocabulary import words_of
from editforge.judges import known_to_family
from editforge.package.exports import exporter
from editforge.recipe.line import LINE
from editforge.recipe.recipe import Recipe
from editforge.run.check import check, check_model
from editforge.run.workspace import writable
from editforge.target.fixed import FixedConfig

_NUMBERS = {
    "background_drift": "other words drift by about",
    "condition": "condition at most about",
}


@dataclass(frozen=True)
class Plan:
    """Stages with what each reads and costs; bytes written; whether the folder can take them."""

    stages: tuple[tuple[str, str, float], ...]
    rank: int | None
    bytes_written: int
    memory: int
    free: int
    can_write: bool
    recipe: str
    bytes_fetched: int = 0
    foreseen: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """For a person."""
        rows = [f"  {name:<9}{what}  (about {_seconds(cost)})" for name, what, cost in self.stages]
        size, memory, free = (
            f"{n / 2**20:,.1f} MB" for n in (self.bytes_written, self.memory, self.free)
        )
        place = f"disk: {size} to write, {free} free"
        place += "" if self.can_write else "; THE FOLDER CANNOT BE WRITTEN"
        bound = "rank not known before" if self.rank is None else f"rank at most {self.rank}"
        bound += "".join(f"; {_NUMBERS[name]} {value:.2g}" for name, value in self.foreseen.items())
        tail = [f"{bound}; {place}; memory above the libraries: about {memory}"]
        return "\n".join([self.recipe.rstrip(), "", "plan", *rows, *tail])

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "stages": [
                {"stage": n, "what": w, "seconds": None if s != s else round(s, 2)}
                for n, w, s in self.stages
            ],
            "rank": self.rank,
            "foreseen": dict(self.foreseen),
            "bytes_fetched": self.bytes_fetched,
            "bytes_written": self.bytes_written,
            "memory_bytes": self.memory,
            "free_bytes": self.free,
            "can_write": self.can_write,
        }


def plan(recipe: Recipe, folder: Path) -> Plan:
    """Read the recipe and the model's configs, count, and estimate; no weight is read or fetched.

    Raises:
        EditforgeError: whatever would stop the run before anything is mined.
    """
    check(recipe)
    with describe(recipe.model) as model:
        check_model(recipe, model)
        kinds = {concept.kind for concept in recipe.concepts}
        words = sum(
            len(
                words_of(model.family, model.reader, str(getattr(config, "words", "family")), kinds)
            )
            for config in recipe.mine or ()
        )
        names, around = _mined(recipe)
        rank = _rank(recipe, model, names, around)
        width, paths = model.family.text_width, model.paths
        ahead = recipe.edit.foreseen(names, width) if recipe.edit else {}
        outputs = sum(model.shapes[f"{path}.weight"][0] for path in paths)
        known = width if rank is None else rank  # no edit of these maps has more
        lora = 4 * known * (outputs + width * len(paths))
        written = _written(recipe, model, lora)
        speed = _probe(model.device)
        text = sum(weight.numel() for weight in model.reader.parameters())
        encode = 2 * text * words * 4 / speed
        solve = (width**3 * 4 + 2 * known * width * outputs) / speed
        pictures = _pictures(recipe, model)
        sampler = model.sampler
        looked = recipe.target.draws(model, len(recipe.concepts)) if recipe.target else 0
        seen = sum(config.draws(model, len(recipe.concepts)) for config in recipe.mine or ())
        drawn = pictures or looked or seen
        one = (
            model.image_flops(sampler.steps, sampler.guidance, model.family.sampler.size)
            if drawn
            else 0.0
        )
        memory = 4 * text + 8 * (3 * width**2 + known * 2 * width) + 4 * known * outputs
        fetched = sum(model.downloads.values())
    maps = f"{len(paths)} maps of width {width}"
    bound = "its rank is known once it is solved" if rank is None else f"rank at most {rank}"
    unknown = float("nan")
    adaptive = getattr(recipe.target, "use", "") == "adaptive"
    most = "" if isinstance(recipe.target, FixedConfig) else "at most "
    costs = {
        "mine": (
            f"{words} words around {len(recipe.concepts)} concepts"
            + (f", {seen} pictures" if seen else ""),
            encode + seen * one / speed,
        ),
        "target": (
            f"adaptive choice{f', {looked} pictures' if looked else ''}"
            if adaptive
            else "as typed",
            encode / 50 + looked * one / speed,
        ),
        "edit": (f"{maps}, {bound}", solve),
        "align": (f"training, {getattr(recipe.align, 'use', '')}", unknown),
        "guide": (f"changes no weight, {getattr(recipe.guide, 'use', '')}", 3.0),
        "evaluate": (f"{most}{pictures} pictures on {model.device}", pictures * one / speed),
        "package": (", ".join(recipe.package.export), written / 5e8),
    }
    stages = [(s.name, *costs[s.name]) for s in LINE if s.config(recipe) is not None]
    if model.downloads:
        what = f"{len(model.downloads)} files of {model.label}, {fetched / 2**20:,.1f} MB"
        stages.insert(0, ("download", what, unknown))
    below = folder
    while not below.exists():
        below = below.parent
    free = shutil.disk_usage(below).free
    can = writable(folder) and free > written
    yaml = recipe.to_yaml()
    return Plan(tuple(stages), rank, written, memory, free, can, yaml, fetched, ahead)


def _mined(recipe: Recipe) -> tuple[int, int]:
    """Erased names with aliases and mined words, and the points around a state, both at most.

    Those of an earlier edit are not counted.
    """
    names = sum(len(concept.names) for concept in recipe.concepts)
    found = [[config.mines(one) for config in recipe.mine or ()] for one in recipe.concepts]
    names += sum(words for own in found for words, _ in own)
    return names, max(sum(points for _, points in own) for own in found)


def _rank(recipe: Recipe, model: Outline, names: int, around: int) -> int | None:
    """The rank of what all stages add, at most; None if one of them cannot say."""
    own = getattr(recipe.edit, "templates", None)
    kinds = [model.family.templates.get(concept.kind, ("{n}",)) for concept in recipe.concepts]
    templates = len(own) if own else max(map(len, kinds))
    total = 0
    for config in (recipe.edit, recipe.align):
        if config is None:
            continue
        rank = config.rank_of(names, templates, model.reader.window, around)
        if rank is None:
            return None
        total += min(rank, model.family.text_width)
    if recipe.continue_from is not None:
        total += System.load(Path(recipe.continue_from).expanduser()).erased.shape[1]
    return min(total, model.family.text_width)


def _written(recipe: Recipe, model: Outline, lora: int) -> int:
    """Bytes of the eraser itself and of all exports."""
    wanted = recipe.package
    exports = [exporter(name).bytes(model, wanted.dtype, lora) for name in wanted.export]
    return lora + sum(exports) + 2**20


def _pictures(recipe: Recipe, model: Outline) -> int:
    """Images that the gate draws, from its own prompts; what is chosen later has a placeholder.

    A chosen target that is a near or far name is not drawn as one, so with it they may be fewer.
    """
    if recipe.evaluate is None:
        return 0
    family, judge = model.family, recipe.evaluate.judge
    aim = recipe.target.of if isinstance(recipe.target, FixedConfig) else lambda name: ""
    kept = [""] * 8 if recipe.preserve == "auto" else recipe.preserve
    prompts = partial(
        gate_prompts,
        recipe.concepts,
        family.name,
        near=None if family.judge else [word or f"near {at}" for at, word in enumerate(kept)][:8],
        targets={concept.name: aim(concept.name) for concept in recipe.concepts},
        seed=recipe.seed,
    )
    whole = prompts()
    foreign = not known_to_family(judge)
    judged = foreign or (judge is not None and family.judge is not None)
    judged = judged and any(subject.labels for subject in whole.subjects)
    if not judged:
        return prompts(counts=FEW).drawn
    return whole.drawn + (len(example_prompts(whole).rows) if foreign else 0)


def _probe(device: str) -> float:
    """Floating point operations per second of a float32 product on the device."""
    a = torch.randn(768, 768, device=device)
    (a @ a).sum().item()
    start = time.monotonic()
    for _ in range(4):
        total = (a @ a).sum()
    total.item()  # what runs beside us has ended
    return 4 * 2 * 768**3 / max(time.monotonic() - start, 1e-6)


def _seconds(value: float) -> str:
    if value != value:
        return "minutes"
    return (
        "under a second"
        if value < 1
        else f"{value:.0f} s"
        if value < 90
        else f"{value / 60:.0f} min"
    )
