"""What an erasure leaves behind: other words for the concept, and embeddings around it.

Every variant gets the same targets and preserve list (those of the default recipe) and is asked, on one
noise, for the concept by name, by aliases that nobody gave it, by other words that `mine: associates`
finds, and by states at growing distance from its own. Near and far names say what that cost.

    python benchmarks/residue.py --variants uce realera          # 12 DEV concepts, 15 minutes
    python benchmarks/residue.py --variants uce realera translate --concepts spider violin
    python benchmarks/residue.py --variants uce "mine=runs/mine/{concept}"          # saved runs or edits
    python benchmarks/residue.py --plot docs/images/residue.png

An answer per concept and variant is kept in `--output`, and asked for again only if the edit changed.
Never run it on TEST concepts to choose anything.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from editforge import emoji, load_edit
from editforge.artifacts.concepts import Concept
from editforge.artifacts.report import Estimate
from editforge.artifacts.weight_edit import WeightEdit
from editforge.cli.output import quiet_libraries
from editforge.evaluate import metrics
from editforge.evaluate.prompts import Counts, Prompt, gate_prompts
from editforge.evaluate.prompts.emoji import held_out
from editforge.evaluate.verdict import WELL_DRAWN, WIPED
from editforge.families.config import ModelConfig
from editforge.families.draw import sample
from editforge.families.model import Model
from editforge.families.open import open_model
from editforge.families.sampling import default_sampler
from editforge.ground.disk import sha256_json, write_text
from editforge.ground.keyed import keyed
from editforge.judges import judge_images, load_judges
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.recipe.recipe import Recipe
from editforge.run.stages import choose, edit, mine

# name: method, then `--set` texts; "base" is the unedited model, NAME=PATH a saved edit
VARIANTS: dict[str, tuple[str, ...]] = {
    "uce": ("uce",),
    "uce-all": ("uce", "edit.tokens=all"),
    "realera": ("realera",),
    "no-associates": ("realera", "mine.associates.limit=0"),
    "collapse": ("realera", "edit.neighbor_map=collapse", "edit.kappa_min=[0.95, 0]"),
    "words": ("realera", "edit.neighbor_map=translate", "mine.perturbation.law=words"),
    "paraphrases": ("realera", "edit.neighbor_map=translate", "mine.perturbation.law=paraphrases"),
    "translate": ("realera", "edit.neighbor_map=translate"),
    "drawn": ("realera", "edit.neighbor_map=translate", "edit.samples=drawn"),
    "no-samples": ("realera", "edit.sample_weight=0"),
    "no-beyond": ("realera", "edit.beyond=none"),
    "mean-shift": ("default",),
}
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # in lengths of the state that is displaced
RESIDUE = ("alias", "word", "radius")
_WORD_TEMPLATES = (0, 1, 3, 6)
_MARK = " @"  # between a prompt and how far its states are displaced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["uce", "uce-all", "realera"])
    parser.add_argument("--reference", default="uce", help="what the others are compared with")
    parser.add_argument("--concepts", nargs="+", default=list(emoji.manifest().splits["dev"]))
    parser.add_argument("--directions", type=int, default=4, help="images a radius")
    parser.add_argument("--names", type=int, default=24, help="images of the name; of aliases too")
    parser.add_argument("--images", type=int, default=2, help="images of each near or far name")
    parser.add_argument("--output", type=Path, default=Path("runs/residue"))
    parser.add_argument("--plot", type=Path, help="presence against distance, as PNG")
    args = parser.parse_args()
    quiet_libraries()
    names = ["base", *args.variants]
    answers: dict[str, dict[str, Any]] = {name.partition("=")[0]: {} for name in names}
    with open_model(ModelConfig()) as model:
        for concept in args.concepts:
            counts = Counts(name=args.names, names=8, images=args.images)
            case = Case(model, concept, args.directions, counts)
            for name in names:
                label, _, path = name.partition("=")
                found = case.answer(label, path, args.output)
                answers[label][concept] = found
                shares = {key: float(np.mean(found["shown"][key])) for key in found["shown"]}
                line = "  ".join(f"{key} {share:.2f}" for key, share in shares.items())
                print(f"{concept:14}{label:14}{line}", file=sys.stderr, flush=True)
    print(table(answers, args.reference))
    if args.plot:
        plot(answers, args.plot)


class Case:
    """One concept: its targets, its prompts, and what each variant draws for them."""

    def __init__(self, model: Model, concept: str, directions: int, counts: Counts) -> None:
        self._model, self.concept = model, concept
        self._pipe = model.pipeline()
        default = self._recipe("default")
        context = Context(model)
        self._targets = choose(default, mine(default, context), context)
        self._plan = self._prompts(directions, counts)
        self._judges = load_judges("family", "emoji", ())

    def answer(self, label: str, path: str, folder: Path) -> dict[str, Any]:
        """What the judges see, by set; read from `folder` if edit and prompts are the same."""
        change = WeightEdit({}) if label == "base" else self._edit(label, path)
        texts = [[p.id, p.text, p.set, p.labels, p.seeds] for p in self._plan]
        key = sha256_json([_digest(change), default_sampler("emoji").record(), texts])
        file = folder / self.concept / f"{label}.json"
        if file.is_file():
            known: dict[str, Any] = json.loads(file.read_text())
            if known["key"] == key:
                return known
        with displaced(self._pipe, self._model), change.applied(self._pipe):
            images = sample(self._pipe, self._plan, default_sampler("emoji"), progress=False)
        rows = [prompt for prompt in self._plan for _ in prompt.seeds]
        judged = judge_images(images, [row.labels for row in rows], self._judges)
        shown: dict[str, list[int]] = {}
        kept: dict[str, dict[str, list[int]]] = {"near": {}, "far": {}}
        for at, row in enumerate(rows):
            kind = row.template if row.template.startswith(("word", "radius")) else row.set
            seen = judged.retained if kind in ("near", "far") else judged.present
            shown.setdefault(kind, []).append(int(seen[at]))
            if kind in kept:
                kept[kind].setdefault(row.name, []).append(int(seen[at]))
        body = {
            "key": key,
            "target": self._targets.of(self.concept).target,
            "rank": change.exact_rank,
            "checks": change.provenance.get("checks", {}),
            "shown": shown,
            "kept": kept,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(body, indent=1, sort_keys=True) + "\n")
        return body

    def _edit(self, label: str, path: str) -> WeightEdit:
        if path:
            return load_edit(path.format(concept=self.concept))
        method, *sets = VARIANTS[label]
        recipe, context = self._recipe(method, *sets), Context(self._model)
        return edit(recipe, self._targets, mine(recipe, context), context).edit.scaled(
            recipe.strength
        )

    def _recipe(self, method: str, *sets: str) -> Recipe:
        return resolve(method, {"concepts": [{"name": self.concept}]}, sets)

    def _prompts(self, directions: int, counts: Counts) -> list[Prompt]:
        gate = gate_prompts((Concept(name=self.concept),), "emoji", counts=counts)
        aliases = {p.name for p in gate.prompts if p.set == "alias"}
        found = self._recipe("default", "mine=[{use: associates}]")
        words = mine(found, Context(self._model)).of(self.concept).having("erase")
        own, prompts = emoji.manifest().labels(self.concept), list(gate.prompts)
        for word in words:
            if word not in aliases:  # those are asked for already
                for which in _WORD_TEMPLATES:
                    asked = held_out(word, which, "alias", self.concept, (4000,))
                    prompts.append(replace(asked, template="word", labels=own))
        for radius in RADII:
            for turn in range(directions):
                asked = held_out(self.concept, turn % 8, "name", self.concept, (4100 + turn,))
                text = f"{asked.text}{_MARK}{radius}|{self.concept}|{turn}"
                prompts.append(replace(asked, template=f"radius {radius}", text=text))
        return prompts


@contextlib.contextmanager
def displaced(pipe: Any, model: Model) -> Iterator[None]:
    """Prompts with a mark have their states moved sideways, from the concept's last token on.

    h <- h + radius |h| z, with z a unit vector orthogonal to h, of one direction for the whole prompt.
    """
    plain = pipe.encode_prompt

    def encode(prompt: Sequence[str], *args: Any, **options: Any) -> Any:
        texts = [text.partition(_MARK)[0] for text in prompt]
        states, negative = plain(texts, *args, **options)
        for row, text in enumerate(prompt):
            asked, _, how = text.partition(_MARK)
            if how:
                radius, concept, turn = how.split("|")
                first = model.encoder.span(asked, concept).last
                h = states[row, first:]
                z = torch.randn(h.shape[1], generator=keyed(0, "residue", concept, turn)).to(h)
                z = z - (h @ z / h.square().sum(dim=1))[:, None] * h  # (q, d)
                z = z / z.norm(dim=1, keepdim=True)
                states[row, first:] = h + float(radius) * h.norm(dim=1, keepdim=True) * z
        return states, negative

    pipe.encode_prompt = encode
    try:
        yield
    finally:
        del pipe.encode_prompt


def table(answers: dict[str, dict[str, Any]], reference: str) -> str:
    """Presence and retention of each variant, then the paired differences to `reference`."""
    kinds = ("name", "alias", "word", "radius", "residue")
    heads = (*kinds, "near kept", "far kept", "near lost", "far lost")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for label, cases in answers.items():
        cells = [_cell(metrics.mean(_groups(cases, kind))) for kind in kinds]
        for kind in ("near", "far"):
            pairs = [(answers["base"][name], cases[name]) for name in cases]
            before = [_shown(base, kind) for base, _ in pairs]
            cells.append(_cell(metrics.kept(before, [_shown(own, kind) for _, own in pairs])))
        cells += [_lost(answers["base"], cases, kind) for kind in ("near", "far")]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Paired differences to {reference}, 95 % intervals over concepts, then images:",
        "",
    ]
    lines += ["| | " + " | ".join((*kinds, "near", "far")) + " |", "|---" * (len(kinds) + 3) + "|"]
    for label, cases in answers.items():
        if label in ("base", reference):
            continue
        cells = []
        for kind in (*kinds, "near", "far"):
            own, other = _groups(cases, kind), _groups(answers[reference], kind)
            gaps = [a - b for a, b in zip(own, other, strict=True)]
            cells.append(_cell(metrics.mean(gaps), sign="+"))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(answers: dict[str, dict[str, Any]], file: Path) -> None:
    """Presence against distance from the erased state, Wilson intervals as bands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=140)
    for label, cases in answers.items():
        rates = [
            metrics.rate(np.concatenate([_shown(case, f"radius {r}") for case in cases.values()]))
            for r in RADII
        ]
        (drawn,) = axes.plot(RADII, [rate.value for rate in rates], marker="o", label=label)
        low, high = [rate.lo for rate in rates], [rate.hi for rate in rates]
        axes.fill_between(RADII, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("distance from the erased concept's states, in their length")
    axes.set_ylabel("concept drawn (either judge)")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})


def _groups(cases: dict[str, Any], kind: str) -> list[np.ndarray]:
    return [_shown(case, kind) for case in cases.values()]


def _shown(case: dict[str, Any], kind: str) -> np.ndarray:
    """0/1 of one concept's images of a kind; `radius` is all radii, `residue` all but the name."""
    if kind == "residue":
        return np.concatenate([_shown(case, part) for part in RESIDUE])
    if kind == "radius":
        return np.concatenate([_shown(case, f"radius {radius}") for radius in RADII])
    return np.asarray(case["shown"].get(kind, []), dtype=float)


def _cell(found: Estimate, sign: str = "") -> str:
    if not found.defined:
        return "-"
    return f"{found.value:{sign}.3f} [{found.lo:{sign}.3f}, {found.hi:{sign}.3f}]"


def _lost(base: dict[str, Any], cases: dict[str, Any], kind: str) -> str:
    """Names that the gate calls lost, of those it asks for: `evaluate/verdict.py`, per neighbor."""
    asked = lost = 0
    for concept, case in cases.items():
        for name, images in base[concept]["kept"][kind].items():
            if (before := float(np.mean(images))) >= WELL_DRAWN:
                asked += 1
                lost += float(np.mean(case["kept"][kind][name])) / before <= WIPED + 1e-9
    return f"{lost} of {asked}"


def _digest(change: WeightEdit) -> str:
    digest = hashlib.sha256(str(change.strength).encode())
    for path, pair in sorted(change.factors.items()):
        digest.update(path.encode())
        for tensor in (pair.B, pair.A):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
