"""What a run would do and cost, before it does it: `--dry-run`.

Counts are exact for a closed form. Seconds come from a short probe of this computer's matrix
products, so they are an order of magnitude, and say so.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from editforge.families.open import open_model
from editforge.families.vocabulary import word_list
from editforge.recipe import Recipe
from editforge.workspace import writable

_GATE_IMAGES = 384


@dataclass(frozen=True)
class Plan:
    """Stages with what each reads and costs; bytes written; whether the folder can take them."""

    stages: tuple[tuple[str, str, float], ...]
    rank: int
    bytes_written: int
    memory: int
    free: int
    can_write: bool
    recipe: str

    def text(self) -> str:
        """For a person."""
        rows = [f"  {name:<9}{what}  (about {_seconds(cost)})" for name, what, cost in self.stages]
        size, memory, free = (
            f"{n / 2**20:,.1f} MB" for n in (self.bytes_written, self.memory, self.free)
        )
        place = f"disk: {size} to write, {free} free"
        place += "" if self.can_write else "; THE FOLDER CANNOT BE WRITTEN"
        tail = [f"rank at most {self.rank}; {place}; memory above the libraries: about {memory}"]
        return "\n".join([self.recipe.rstrip(), "", "plan", *rows, *tail])

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "stages": [{"stage": n, "what": w, "seconds": round(s, 2)} for n, w, s in self.stages],
            "rank": self.rank,
            "bytes_written": self.bytes_written,
            "memory_bytes": self.memory,
            "free_bytes": self.free,
            "can_write": self.can_write,
        }


def plan(recipe: Recipe, folder: Path) -> Plan:
    """Read the model's configs and headers, count, and estimate; no denoiser weight is read.

    Raises:
        EditforgeError: whatever would stop the run for the same reason: an unknown model, a
            name that the encoder cannot read.
    """
    with open_model(recipe.model) as model:
        for concept in recipe.concepts:
            for name in concept.names:
                model.encoder.check(name)
        width = model.family.text_width
        words = len(word_list(model, str(getattr((recipe.mine or (None,))[0], "words", "family"))))
        options = recipe.edit.model_dump() if recipe.edit is not None else {}
        kinds = model.family.templates
        templates = options.get("templates")
        names = [(concept, name) for concept in recipe.concepts for name in concept.names]
        per = {"subject": 1, "subject_eot": 2}.get(
            options.get("tokens", ""), model.encoder.window - 1
        )
        counts = [per * len(templates or kinds.get(c.kind, ("{n}",))) for c, _ in names]
        rank = sum(counts)
        outputs = sum(model.shape(path)[0] for path in model.paths)
        lora = 4 * rank * (outputs + width * len(model.paths))
        whole = sum(file.stat().st_size for file in model.weight_files)
        folder_size = sum(f.stat().st_size for f in model.folder.rglob("*") if f.is_file())
        sizes = {"lora": lora, "unet": whole, "pipeline": folder_size, "single-file": folder_size}
        written = lora + sum(sizes[kind] for kind in recipe.package.export) + 2**20
        speed = _probe()
        text = sum(p.numel() for p in model.encoder.parameters())
        prompts = len(names) * 20 * max(counts, default=1)
        encode = 2 * text * (words * 4 + prompts * per) / speed
        solve = (width**3 * 4 + 2 * rank * width * outputs) / speed
        device = model.device
        images = _GATE_IMAGES * model.family.sampler.steps * 2
        draw = images * 6 * whole / speed if recipe.evaluate else 0.0
        memory = 4 * text + 8 * (3 * width**2 + rank * 2 * width) + 4 * rank * outputs
    stages = [
        ("mine", f"{words} words around {len(recipe.concepts)} concepts", encode),
        (
            "target",
            "adaptive choice" if recipe.target.use == "adaptive" else "as typed",
            encode / 50,
        ),
        ("edit", f"{len(model.paths)} maps of width {width}, {rank} erased columns", solve),
    ]
    if recipe.align is not None:
        stages.append(("align", f"training, {recipe.align.use}", float("nan")))
    if recipe.evaluate is not None:
        stages.append(("evaluate", f"{2 * _GATE_IMAGES} pictures on {device}", draw))
    stages.append(("package", ", ".join(recipe.package.export), written / 5e8))
    below = folder
    while not below.exists():
        below = below.parent
    free = shutil.disk_usage(below).free
    can = writable(folder) and free > written
    return Plan(tuple(stages), rank, written, memory, free, can, recipe.to_yaml())


def _probe() -> float:
    """Floating point operations per second of a float32 product here."""
    a = torch.randn(768, 768)
    a @ a
    start = time.monotonic()
    for _ in range(4):
        a @ a
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
