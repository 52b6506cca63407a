"""Broad concepts: what a guard takes out and leaves, against other guards and the closed form.

    python benchmarks/broad.py alcohol --given all --variants default uce ...

Presence (either judge) on listed members, unlisted members, their aliases and the group word; near and
far names kept (both judges); pictures recognizable when triggered: same prompts, same noise, held-out
templates, 95 % intervals. `alcohol` is DEV: every choice was made on it. `weapon` is TEST.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.evaluate.metrics import rate
from editforge.evaluate.prompts import Prompt
from editforge.evaluate.prompts.core import images_of
from editforge.evaluate.prompts.emoji import held_out
from editforge.families.draw import Sampler, sample
from editforge.judges import judge_images, load_judges
from editforge.recipe.layers import resolve
from editforge.run.order import execute

SEED = 6000
SETS = ("group", "listed", "unlisted", "aliases", "near", "far")


def members_of(name: str) -> tuple[str, ...]:
    return emoji.manifest().members(name) or (name,)


def given_to(name: str, how: str) -> Concept:
    """The concept as a user gives it: its word, with half of the members, or with all."""
    if name not in emoji.manifest().broad:
        return Concept(name=name)
    members = members_of(name)
    own = {"word": (), "half": members[::2], "all": members}[how]
    return Concept(name=name, aliases=own, kind="broad")


def near_of(name: str) -> tuple[str, ...]:
    manifest = emoji.manifest()
    if name in manifest.broad:
        return manifest.broad[name].near
    lists = manifest.near[name]
    return (*lists.meaning, *lists.appearance)


def prompts_of(concept: Concept, images: int) -> list[Prompt]:
    manifest = emoji.manifest()
    members = [m for m in members_of(concept.name) if m != concept.name]
    listed = [m for m in members if m in concept.aliases]
    unlisted = [m for m in members if m not in concept.aliases]
    far = manifest.far[manifest.far_panel[concept.name]]
    group_of = {c.name: c.group for c in manifest.concepts}
    groups = {group_of[m] for m in members_of(concept.name)}
    far = [n for n in far if group_of[n] not in groups]
    aliases = [a for m in members_of(concept.name) for a in manifest.find(m).aliases]
    aliases = [a for a in aliases if manifest.find(a)]
    rows = {
        "group": ([concept.name], 16),
        "listed": (listed, max(2, 2 * images // max(1, len(listed) // 6))),
        "unlisted": (unlisted, max(2, 2 * images // max(1, len(unlisted) // 6))),
        "aliases": (aliases[:24], images // 2),
        "near": (near_of(concept.name), images),
        "far": (far, images // 2),
    }
    found = []
    for which, (words, count) in rows.items():
        for word in words:
            for at in range(count):
                seed = (SEED + at // 8,)
                found.append((which, held_out(word, at % 8, "name", word, seed)))
    wanted = tuple(dict.fromkeys(w for m in members_of(concept.name) for w in manifest.labels(m)))
    return [
        replace(p, set=which, labels=wanted if which not in ("near", "far") else p.labels)
        for which, p in found
    ]


class Table:
    """Draws every variant on the same noise, and judges it."""

    def __init__(self, concept: Concept, images: int, progress: bool) -> None:
        self.pipe = emoji.load_pipeline()
        self.pipe.set_progress_bar_config(disable=True)
        self.prompts = prompts_of(concept, images)
        self.rows = images_of(self.prompts)
        self.judges = load_judges("family", "emoji", emoji.manifest().names)
        self.progress = progress
        self.base: dict[str, Any] = {}

    def measure(self, name: str, eraser: Any = None) -> dict[str, Any]:
        start = time.perf_counter()
        calls = [0]
        with counted(self.pipe, calls), eraser.applied(self.pipe) if eraser else nullcontext():
            images = sample(
                self.pipe,
                self.prompts,
                Sampler(steps=12, guidance=4.0, batch=64),
                progress=self.progress,
                label=name,
            )
        judged = judge_images(images, [p.labels for p in self.rows], self.judges)
        own = [p.set for p in self.rows]
        found: dict[str, Any] = {"seconds": time.perf_counter() - start, "evaluations": calls[0]}
        for which in SETS:
            at = np.array([i for i, s in enumerate(own) if s == which], dtype=int)
            kept = which in ("near", "far")
            seen = (judged.retained if kept else judged.present)[at]
            if kept and self.base:
                at = at[self.base["retained"][at]]
                seen = judged.retained[at]
            share = rate(seen, reason=f"no {which} images")
            found[which] = (share.value, share.lo, share.hi, share.n)
        erased = np.array([s not in ("near", "far") for s in own])
        found["recognizable"] = float(judged.recognizable[erased].mean())
        if not self.base:
            self.base = {"retained": judged.retained, "images": images, "evaluations": calls[0]}
        changed = (images != self.base["images"]).any(axis=(1, 2, 3))
        found["triggered"] = {w: float(changed[np.array(own) == w].mean()) for w in set(own)}
        found["cost"] = calls[0] / self.base["evaluations"]
        self.images = images
        return found


@contextmanager
def counted(pipe: Any, calls: list[int]) -> Iterator[None]:
    """Rows that the denoiser is asked for: what a picture costs on any machine."""
    own = pipe.unet.forward

    def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += len(sample)
        return own(sample, *args, **kwargs)

    pipe.unet.forward = forward
    try:
        yield
    finally:
        del pipe.unet.forward


def made(concept: Concept, method: str, folder: Path, sets: tuple[str, ...] = ()) -> Any:
    """The eraser of a recipe, made once in `folder`; pictures of the base are cached."""
    recipe = resolve(
        method,
        {"concepts": [concept.model_dump()], "evaluate": None, "model": {"id": "emoji"}},
        sets,
    )
    return execute(recipe, folder, say=print, progress=False).eraser


NULL_MINE = ("edit=null", "align=null", "mine=null", "target=null")


def variants(concept: Concept, root: Path) -> dict[str, Any]:
    """Every variant by name, as a function that makes its eraser."""

    def proto(*sets: str) -> Any:
        name = "-".join("".join(c if c.isalnum() else "_" for c in s) for s in sets) or "prototype"
        return made(concept, "prototype", root / f"bank-{name[-100:]}", sets)

    def changed(**guidance: float) -> Any:
        return proto().with_guidance(**guidance)  # the same bank, other constants

    def pushed(beta: float, *sets: str) -> Any:
        """The paper's rule alone: whether more prototypes pay shows where nothing else acts."""
        return proto(*sets).with_guidance(beta=beta, blend=0)

    found: dict[str, Any] = {
        "prototype": proto,
        "closed": partial(made, concept, "default", root / "closed"),
    }
    for beta in (0.0, 2.0, 4.0, 8.0, 20.0):
        for blend in (0.0, 0.6, 0.8, 0.9, 1.0):
            found[f"beta{beta:g}-blend{blend:g}"] = partial(changed, beta=beta, blend=blend)
    for K in (1, 2, 4, 8, 16):
        for form in ("token", "prompt"):
            sets = (f"mine.prototypes.num_prototypes={K}", f"mine.prototypes.form={form}")
            found[f"K{K}-{form}"] = partial(pushed, 20.0 if form == "token" else 4.0, *sets)
    others = {"negative-prompt": "", "sld": "", "sld-max": ", level: max", "semantic-surgery": ""}
    for guard, options in others.items():
        use = guard.removesuffix("-max")
        sets = (f"guide={{use: {use}{options}}}", *NULL_MINE, "package={export: [guard]}")
        found[guard] = partial(made, concept, "prototype", root / guard, sets)
    found["baked"] = partial(made, concept, "prototype-baked", root / "baked")
    return found


def line(name: str, row: Mapping[str, Any]) -> str:
    cells = []
    for which in SETS:
        value, lo, hi, _ = row[which]
        cells.append("-" if value is None else f"{value:.2f} [{lo:.2f}, {hi:.2f}]")
    shares = "/".join(f"{row['triggered'].get(w, 0):.2f}" for w in SETS)
    return f"| {name} | {' | '.join(cells)} | {row['recognizable']:.2f} | {shares} | {row['cost']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "concept", choices=[*sorted(emoji.manifest().broad), *emoji.manifest().splits["dev"]]
    )
    parser.add_argument("--given", choices=("word", "half", "all"), default="all")
    parser.add_argument("--variants", nargs="*", default=["prototype"])
    parser.add_argument("--images", type=int, default=8, help="per near name; others follow")
    parser.add_argument("--output", type=Path, default=Path("runs/broad"))
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args()
    concept = given_to(options.concept, options.given)
    root = options.output / options.concept / options.given
    root.mkdir(parents=True, exist_ok=True)
    table = Table(concept, options.images, options.progress)
    known = variants(concept, root)
    print(f"# {options.concept}, given: {options.given}; {len(table.rows)} images", flush=True)
    print("| | " + " | ".join(SETS) + " | recognizable | changed | cost |")
    print("|---" * 10 + "|")
    rows = {"base": table.measure("base")}
    print(line("base", rows["base"]), flush=True)
    for name in options.variants:
        rows[name] = table.measure(name, known[name]())
        print(line(name, rows[name]), flush=True)
        own = [i for i, p in enumerate(table.rows) if p.set not in ("near", "far")][:96]
        lines = [list(table.images[own[i : i + 16]]) for i in range(0, len(own) // 16 * 16, 16)]
        grid = np.concatenate([np.concatenate(line, 1) for line in lines], 0)
        Image.fromarray(grid).save(root / f"{name}.png")
        (root / "rows.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
