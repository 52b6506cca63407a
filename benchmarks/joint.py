"""`make joint`: many names erased at once, by any recipes, on the same noise, as a Markdown table.

Names are drawn from those of no split (and no broad set of TEST), so nothing here is scored anywhere
else. Three numbers, each with its 95 % interval over names: how often an erased name is still drawn,
what is kept of its near names, and of RETAIN-60, names that no eraser has seen.

    python benchmarks/joint.py --counts 1 10 50 100
    python benchmarks/joint.py --counts 10 --methods default uce speed --draw 7
    python benchmarks/joint.py --counts 10 --set edit.erase_weight=3
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.cli.output import quiet_libraries
from editforge.evaluate import metrics
from editforge.evaluate.prompts.emoji import held_out, subject
from editforge.families.config import ModelConfig
from editforge.families.draw import sample
from editforge.families.open import open_model
from editforge.families.sampling import default_sampler
from editforge.families.vocabulary import thinned
from editforge.ground.errors import EditError
from editforge.judges import judge_images, load_judges
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.stages import choose, edit, mine
from editforge.target.adaptive import AdaptiveConfig

NEAR_AT_MOST = 80  # near names of a large set, thinned evenly
# What others' edits are compared under: ours keeps its limits.
LOOSE = [f"edit.limits.{name}=[1e9,1e12]" for name in ("change", "amplification", "residual")]
TEMPLATES = (0, 3)  # t1 and t4, never seen by an eraser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--methods", nargs="+", default=["default"])
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--draw", type=int, default=1, help="which random draw of the names")
    parser.add_argument("--names", nargs="*", help="these names instead")
    parser.add_argument("--images", type=int, default=1, help="seeds of a name and template")
    parser.add_argument("--json", type=Path, help="append each row here, as a line of JSON")
    args = parser.parse_args()
    quiet_libraries()
    print(
        "| names | recipe | becomes drawn as before | near kept | RETAIN-60 kept | recognizable "
        "| rank | drift | seconds |\n" + "|---" * 9 + "|"
    )
    with open_model(ModelConfig()) as model:
        pipe = model.pipeline()
        for count in args.counts:
            names = args.names or drawn(count, args.draw)
            for method in args.methods:
                row = measure(model, pipe, names, method, args.sets, args.images)
                print(line(row), flush=True)
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")


def drawn(count: int, draw: int) -> list[str]:
    """Names of no split, the same for the same numbers."""
    manifest = emoji.manifest()
    taken = {*manifest.splits["test"], *manifest.splits["dev"], *manifest.splits["retain60"]}
    taken |= set(manifest.broad["weapon"].members)
    free = [name for name in manifest.names if name not in taken]
    return sorted(random.Random(f"{count}/{draw}").sample(free, count))


def measure(model, pipe, names, method, sets, images) -> dict:
    own = sets if method == "default" else LOOSE
    recipe = resolve(method, {"concepts": [{"name": name} for name in names]}, own)
    context = Context(model)
    row = {"count": len(names), "names": names, "recipe": " ".join([method, *sets])}
    if method == "uce":  # the targets and the preserve list that the others have
        recipe = recipe.model_copy(update={"target": AdaptiveConfig(use="adaptive")})
    try:
        neighbors = mine(recipe, context)
        targets = choose(recipe, neighbors, context)
        start = time.perf_counter()
        found = edit(recipe, targets, neighbors, context).edit.scaled(recipe.strength)
    except EditError as error:
        return row | {"refused": " ".join(str(error).split())}
    row["seconds"] = time.perf_counter() - start
    row |= {"rank": found.exact_rank, "checks": dict(found.provenance["checks"])}
    near, sets_of = near_names(names), {}
    seeds = tuple(range(4001, 4001 + images))
    for which, words in (("name", names), ("near", near), ("retain", retained())):
        sets_of[which] = [held_out(w, at, "near", w, seeds) for w in words for at in TEMPLATES]
    prompts = [prompt for group in sets_of.values() for prompt in group]
    rows = [(prompt.name, prompt.labels) for prompt in prompts for _ in seeds]
    judges = load_judges("family", "emoji", [own for _, own in rows])
    sampler = default_sampler("emoji")
    judged = {}
    for which in ("base", "edited"):
        if which == "base":
            pictures = sample(pipe, prompts, sampler, progress=False, base=model.drawn_by)
        else:
            with found.applied(pipe):
                pictures = sample(pipe, prompts, sampler, progress=False)
        judged[which] = judge_images(pictures, [own for _, own in rows], judges)
    first = 0
    for which, group in sets_of.items():
        at = np.arange(first, first + len(group) * len(seeds))
        first += len(at)
        if which == "name":
            row["name"] = metrics.rate(judged["edited"].present[at]).model_dump()
            row["name_base"] = float(judged["base"].present[at].mean())
            row["recognizable"] = float(judged["edited"].recognizable[at].mean())
            row["recognizable_base"] = float(judged["base"].recognizable[at].mean())
        else:
            cells = at.reshape(-1, len(TEMPLATES) * len(seeds))
            row[which] = metrics.kept(
                [judged["base"].retained[own] for own in cells],
                [judged["edited"].retained[own] for own in cells],
            ).model_dump()
    return row


def near_names(names: list[str]) -> list[str]:
    """What lies next to any of the names, and is none of them nor their twin."""
    gone = {label for name in names for label in emoji.manifest().labels(name)}
    found = {word for name in names for word in subject(Concept(name=name), None, None).near}
    return thinned(sorted(found - gone - set(retained())), NEAR_AT_MOST)


def retained() -> list[str]:
    return list(emoji.manifest().splits["retain60"])


def line(row: dict) -> str:
    if "refused" in row:
        return f"| {row['count']} | {row['recipe']} | refused: {row['refused']} | | | | | | |"

    def cell(key: str) -> str:
        one = row[key]
        return f"{one['value']:.3f} [{one['lo']:.2f}, {one['hi']:.2f}]"

    drift = row["checks"].get("background_drift", float("nan"))
    return (
        f"| {row['count']} | {row['recipe']} | {cell('name')} ({row['name_base']:.2f}) "
        f"| {cell('near')} | {cell('retain')} "
        f"| {row['recognizable']:.2f} ({row['recognizable_base']:.2f}) | {row['rank']} "
        f"| {drift:.3f} | {row['seconds']:.1f} |"
    )


if __name__ == "__main__":
    main()
