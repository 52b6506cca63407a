"""What a concept becomes decides what else breaks: kinds of targets, one eraser, one noise.

Each concept is erased alone, by name only, by the default recipe's closed form, with a target of each
kind; erasers that are saved already (`NAME=PATH`) stand beside. All are drawn on the same noise.

    python benchmarks/targets.py                                    # 12 DEV concepts, all kinds
    python benchmarks/targets.py --kinds rule nearest --concepts violin dolphin penguin
    python benchmarks/targets.py --kinds rule --concepts spider violin "age=runs/age/{concept}"
    python benchmarks/targets.py --pictures docs/images/targets.png --concepts violin dolphin penguin

kinds: `synonym` an alias of the manifest; `rule` what `target: adaptive` takes; `nearest` the same
without looking; `any-group` without the list's groups; `three-quarters`, `half` known for itself in so
many pictures instead of all; `mean2`, `mean3` the mean of the nearest that will do, at their mean
length; `general` the group word; `unrelated` a far name of another group; `empty` nothing. A concept
without an alias or a group word is left out of that row. Never run it on TEST concepts to choose
anything.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from editforge import emoji, load_edit
from editforge.artifacts.concepts import Concept
from editforge.cli.output import quiet_libraries
from editforge.edit import mean_shift
from editforge.evaluate import metrics
from editforge.evaluate.prompts import Counts, gate_prompts
from editforge.evaluate.prompts.emoji import held_out
from editforge.families.config import ModelConfig
from editforge.families.draw import sample
from editforge.families.model import Model
from editforge.families.open import open_model
from editforge.families.sampling import default_sampler
from editforge.families.vocabulary import group_of
from editforge.judges import NONE, judge_images, load_judges
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.stages import choose, edit, mine

RULES: dict[str, dict[str, Any]] = {
    "rule": {},
    "nearest": {"judge": None},
    "any-group": {"same_group": False},
    "three-quarters": {"min_itself": 0.75},
    "half": {"min_itself": 0.5},
    "mean2": {"num_looked_at": 6},
    "mean3": {"num_looked_at": 6},
}
KINDS = ("synonym", "rule", "general", "unrelated", "empty")
COUNTS = Counts(name=8, least=8, names=8, images=2, reference=0)
HEAD = ("name", "alias", "near kept", "far kept", "recognizable", "valid", "own group", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("saved", nargs="*", help="NAME=PATH with {concept}: a run or an edit")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=(*KINDS, *RULES))
    parser.add_argument("--concepts", nargs="+", default=list(emoji.manifest().splits["dev"]))
    parser.add_argument("--output", type=Path, default=Path("runs/targets"))
    parser.add_argument(
        "--pictures", type=Path, help="the base and each kind, side by side, as PNG"
    )
    args = parser.parse_args()
    quiet_libraries()
    rows: dict[str, dict[str, Any]] = {}
    tiles: list[np.ndarray] = []
    with open_model(ModelConfig()) as model:
        for concept in args.concepts:
            case = Case(model, concept, args.output)
            strips = [case.strip("base", None)]
            for label in (*args.kinds, *args.saved):
                label, _, path = label.partition("=")
                made = case.saved(path) if path else case.made(label)
                if made is None:
                    continue
                target, eraser, seconds = made
                row = case.answer(f"{label}-{target or 'nothing'}", eraser)
                row |= {"target": target, "seconds": seconds}
                rows.setdefault(label, {})[concept] = row
                strips.append(case.strip(f"{label}-{target or 'nothing'}", eraser))
                print(f"{concept:14}{label:10}{said(row)}", file=sys.stderr, flush=True)
            tiles.append(np.concatenate(strips))
    print(table(rows))
    if args.pictures:
        args.pictures.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(tiles, axis=1)).save(args.pictures)


class Case:
    """One concept: its erasers by kind of target, and what is drawn with each."""

    def __init__(self, model: Model, concept: str, output: Path) -> None:
        self._model, self.concept, self._output = model, concept, output
        self._pipe, self._context = model.pipeline(), Context(model)
        found = gate_prompts((Concept(name=concept),), "emoji", counts=COUNTS)
        self._plan = [p for p in found.prompts if p.set in ("name", "alias", "near", "far")]
        self._judges = load_judges("family", "emoji", ())
        self._base = self._seen("base", None)

    def made(self, kind: str) -> tuple[str, Any, float] | None:
        """Target, eraser and seconds of choosing; None where the concept has no such target."""
        rule, word = RULES.get(kind), ""
        if rule is None:
            found = self._word(kind)
            if found is None:
                return None
            word = found
        chosen = {"use": "fixed", "text": word} if rule is None else {"use": "adaptive", **rule}
        recipe = resolve("default", {"concepts": [{"name": self.concept}], "target": chosen}, [])
        neighbors = mine(recipe, self._context)
        start = time.perf_counter()
        targets = choose(recipe, neighbors, self._context)
        seconds = time.perf_counter() - start
        own = targets.of(self.concept)
        will_do = [row.word for row in own.candidates if row.itself is not None and not row.reason]
        parts = will_do[: int(kind[4:])] if kind.startswith("mean") else [own.target]
        with mixed(own.target, parts):
            eraser = edit(recipe, targets, neighbors, self._context).edit
        return "+".join(parts), eraser, seconds

    def saved(self, path: str) -> tuple[str, Any, float]:
        """An eraser of a run, and the target that it says it has."""
        eraser = load_edit(path.format(concept=self.concept))
        row = next(one for one in eraser.provenance["erased"] if one["name"] == self.concept)
        return row["target"], eraser, float("nan")

    def _word(self, kind: str) -> str | None:
        manifest = emoji.manifest()
        own = manifest.find(self.concept)
        if kind == "empty":
            return ""
        if kind == "synonym":
            parts = set(self.concept.split())  # `corn` is erased with `ear of corn`
            return next((word for word in own.aliases if not parts & set(word.split())), None)
        if kind == "general":
            return own.group_word
        near = {p.name for p in self._plan if p.set == "near"}
        panel = [name for name in manifest.far["DEV"] if name not in near]
        return next(name for name in panel if group_of(self._model.family, name) != own.group)

    def answer(self, label: str, eraser: Any) -> dict[str, Any]:
        """0/1 of every picture, by set; what the base draws of a kept name is beside it."""
        after = self._seen(label, eraser)
        return {"base": self._base, "after": after}

    def _seen(self, label: str, eraser: Any) -> dict[str, list[int]]:
        images = self._drawn(label, eraser, self._plan)
        owners = [prompt for prompt in self._plan for _ in prompt.seeds]
        judged = judge_images(images, [prompt.labels for prompt in owners], self._judges)
        tops = [
            np.array(judge.labels)[judge.probabilities(images).argmax(axis=1)]
            for judge in self._judges
        ]
        some = np.any([top != NONE for top in tops], axis=0)
        found: dict[str, list[int]] = {}
        for at, prompt in enumerate(owners):
            erased = prompt.set in ("name", "alias")
            hit = judged.present[at] if erased else judged.retained[at]
            found.setdefault(prompt.set, []).append(int(hit))
            if prompt.set == "name":
                found.setdefault("recognizable", []).append(int(judged.recognizable[at]))
                found.setdefault("valid", []).append(int(some[at]))
        return found

    def strip(self, label: str, eraser: Any) -> np.ndarray:
        """Four pictures of the name, side by side."""
        prompts = [held_out(self.concept, at, "name", self.concept, (4500,)) for at in range(4)]
        return np.concatenate(list(self._drawn(f"{label}-strip", eraser, prompts)), axis=1)

    def _drawn(self, label: str, eraser: Any, prompts: Sequence[Any]) -> np.ndarray:
        own = eraser.applied(self._pipe) if eraser is not None else contextlib.nullcontext()
        with own:
            return sample(
                self._pipe,
                prompts,
                default_sampler("emoji"),
                progress=False,
                label=label.replace(" ", "-"),
                workdir=self._output / self.concept.replace(" ", "-"),
            )


@contextlib.contextmanager
def mixed(target: str, parts: Sequence[str]) -> Iterator[None]:
    """Inside, mean-shift reads the mean of `parts`, at their mean length, wherever it reads `target`."""
    plain = mean_shift._means

    def means(columns: Any, name: str, wanted: Sequence[int]) -> torch.Tensor:
        if name != target or len(parts) < 2:
            return plain(columns, name, wanted)
        columns.read_all(parts)
        each = torch.stack([plain(columns, part, wanted) for part in parts])  # (parts, d, groups)
        mean = each.mean(dim=0)
        return mean * (each.norm(dim=1).mean(dim=0) / mean.norm(dim=0))

    mean_shift._means = means
    try:
        yield
    finally:
        mean_shift._means = plain


def said(row: dict[str, Any]) -> str:
    after = row["after"]
    shares = {key: float(np.mean(after[key])) for key in after}
    return f"-> {row['target'] or 'nothing':16}" + "  ".join(
        f"{k} {v:.2f}" for k, v in shares.items()
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Means over concepts with 95 % intervals over concepts, then images."""
    lines = ["| target | concepts | " + " | ".join(HEAD) + " |", "|---" * (len(HEAD) + 2) + "|"]
    first = next(iter(rows.values()))
    base = {concept: row["base"] for concept, row in first.items()}
    lines.append(f"| base | {len(base)} | {' | '.join(cells(base, base))} | | |")
    for label, cases in rows.items():
        before = {concept: row["base"] for concept, row in cases.items()}
        after = {concept: row["after"] for concept, row in cases.items()}
        own = [grouped(concept, row["target"]) for concept, row in cases.items()]
        seconds = np.mean([row["seconds"] for row in cases.values()])
        lines.append(
            f"| {label} | {len(cases)} | {' | '.join(cells(before, after))} "
            f"| {sum(own)} of {len(own)} | {seconds:.1f} |"
        )
    chosen = [
        f"{label}: " + ", ".join(f"{c} -> {r['target'] or 'nothing'}" for c, r in cases.items())
        for label, cases in rows.items()
    ]
    return "\n".join([*lines, "", *chosen])


def cells(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = []
    for key in ("name", "alias", "near", "far", "recognizable", "valid"):
        own = [case.get(key, []) for case in after.values()]
        if key in ("near", "far"):
            shown = metrics.kept([case.get(key, []) for case in before.values()], own)
        else:
            shown = metrics.mean(own)
        found.append(f"{shown.value:.3f} [{shown.lo:.3f}, {shown.hi:.3f}]")
    return found


def grouped(concept: str, target: str) -> bool:
    manifest = emoji.manifest()
    found = manifest.find(target.partition("+")[0]) if target else None
    return bool(found and found.group == manifest.find(concept).group)


if __name__ == "__main__":
    main()
