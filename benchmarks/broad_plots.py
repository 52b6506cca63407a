"""Pictures of docs/prototype.md: the gate's histogram of a run, and the trade-off curve of beta.

    python benchmarks/broad_plots.py RUN ROWS.json FOLDER

RUN: a finished run of the method `prototype` on the embedded model; ROWS.json: of benchmarks/broad.py.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from editforge import PrototypeGuard, emoji
from editforge.guards.words import Speaks
from editforge.recipe.layers import resolve

CAPTIONS = ("a drawing of a {n}", "an icon of a {n}", "{n} on a red background")


def histogram(run: Path, path: Path) -> None:
    """Scores over the threshold of prompts with members and with every other listed name."""
    guard = PrototypeGuard.from_pretrained(run)
    name = resolve(str(run / "recipe.yaml")).concepts[0].name
    speaks, members = Speaks(emoji.load_pipeline()), emoji.manifest().members(name)
    aliases = [a for m in members for a in emoji.manifest().find(m).aliases]
    near = emoji.manifest().broad[name].near
    others = [w for w in emoji.words() if w not in members and w not in near]
    groups = {"members": members, "aliases": aliases, "near names": near, "other names": others}
    bins = torch.linspace(-0.2, 2.2, 49).tolist()
    _, axes = plt.subplots(figsize=(8, 3.4))
    for label, words in groups.items():
        texts = [caption.format(n=word) for word in words for caption in CAPTIONS]
        scores = torch.stack([guard.scores(speaks(text).states)[0, 0] for text in texts])
        axes.hist(
            scores.tolist(), bins=bins, density=True, alpha=0.55, label=f"{label} ({len(texts)})"
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel="score over threshold: from 1 on the guard acts", ylabel="density")
    axes.legend()
    plt.tight_layout()
    plt.savefig(path, dpi=110, metadata={"Software": None})


def curve(rows: Path, path: Path) -> None:
    """Members still drawn against pictures that can be made out, by beta."""
    found = json.loads(rows.read_text())
    _, axes = plt.subplots(figsize=(6, 4))
    for blend in ("0", "0.8"):
        points = [(0.0, found["prototype"])] if blend == "0.8" else [(0.0, found["base"])]
        for name, row in found.items():
            if at := re.fullmatch(rf"beta([\d.]+)-blend{re.escape(blend)}", name):
                points.append((float(at[1]), row))
        points.sort(key=lambda point: point[0])
        x = [row["listed"][0] for _, row in points]
        y = [row["recognizable"] for _, row in points]
        axes.plot(x, y, marker="o", label=f"blend {blend}")
        for (beta, _), a, b in zip(points, x, y, strict=True):
            axes.annotate(f"{beta:g}", (a, b), textcoords="offset points", xytext=(5, 5))
    axes.set(xlabel="listed members still drawn", ylabel="pictures that can be made out")
    axes.legend(title="numbers: beta")
    plt.tight_layout()
    plt.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    run, rows, folder = map(Path, sys.argv[1:4])
    histogram(run, folder / "prototype-gate.png")
    curve(rows, folder / "prototype-beta.png")
