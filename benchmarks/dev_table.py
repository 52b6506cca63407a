"""`make benchmark`: the gate on every DEV concept of the embedded model, as a Markdown table.

Each concept is erased alone, by name only, with the recipe's own choice of target and preserve list,
and judged by the `gate` tier. Never run it on TEST concepts to choose anything.

    python benchmarks/dev_table.py                                  # the default recipe
    python benchmarks/dev_table.py --method uce --set 'target.text=""'
    python benchmarks/dev_table.py --nearest                        # target: the nearest candidate
    python benchmarks/dev_table.py --table a.json b.json            # of two halves, made with --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.cli.output import quiet_libraries
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.prompts import Counts
from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.stages import choose, edit, mine

PRESENCE = Path(__file__).parents[2] / "shared" / "emoji-sd" / "presence.json"
FEW = Counts(name=8, least=8, names=8, images=2, reference=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="default")
    parser.add_argument("--preset")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--nearest", action="store_true", help="take the nearest candidate")
    parser.add_argument("--concepts", nargs="*", help="fewer than the twelve")
    parser.add_argument("--free", type=int, default=0, help="and so many names of no split")
    parser.add_argument("--few", action="store_true", help="48 images a name and model, not 272")
    parser.add_argument("--images", type=Path, default=Path("runs/.dev-images"))
    parser.add_argument("--pictures", type=Path, help="save each report with its grid here")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--table", type=Path, nargs="+", help="print these numbers instead")
    args = parser.parse_args()
    if args.table:
        print(table([row for path in args.table for row in json.loads(path.read_text())]))
        return
    quiet_libraries()
    concepts = args.concepts or list(emoji.manifest().splits["dev"])
    concepts = concepts + best_drawn(args.free)
    rows = []
    with open_model(ModelConfig()) as model:
        pipe = model.pipeline()
        for name in concepts:
            recipe = resolve(
                args.method, {"concepts": [{"name": name}]}, args.sets, preset=args.preset
            )
            context = Context(model)
            neighbors = mine(recipe, context)
            if args.nearest:
                near = next(row.word for row in neighbors.of(name).words if row.candidate)
                fixed = {"concepts": [{"name": name}], "target": {"use": "fixed", "text": near}}
                recipe = resolve(args.method, fixed, args.sets, preset=args.preset)
            targets = choose(recipe, neighbors, context)
            start = time.perf_counter()
            found = edit(recipe, targets, neighbors, context).edit.scaled(recipe.strength)
            seconds = time.perf_counter() - start
            becomes = targets.of(name).target
            report = evaluate_gate(
                pipe,
                found,
                (Concept(name=name),),
                family_name="emoji",
                targets={name: becomes},
                seed=recipe.seed,
                progress=False,
                workdir=args.images / name,
                counts=FEW if args.few else None,
            )
            if args.pictures:
                report.save(args.pictures / name)
            row = {"concept": name, "target": becomes, "rank": found.exact_rank}
            row |= {"seconds": seconds, "status": report.verdict.status}
            row["failed"] = [c.message for c in report.verdict.checks if c.holds is False]
            row["lost"] = [
                one.name
                for one in report.names
                if one.set == "near" and one.base >= 0.5 and one.edited == 0
            ]
            row["drawn_as"] = report.verdict.concepts[0].drawn_as
            for key in ("presence_name", "presence_alias", "recognizable_target"):
                pair = report.metrics[key]
                row[key] = pair["edited"].model_dump()
                row[f"{key}_base"] = pair["base"].value
            for key in ("retention_near", "retention_far"):
                row[key] = report.metrics[key].model_dump()
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    print(table(rows))


def best_drawn(count: int) -> list[str]:
    """Names of no split that the base draws best, by `presence.json`; ties by name."""
    manifest = emoji.manifest()
    taken = {*manifest.splits["test"], *manifest.splits["dev"], *manifest.splits["retain60"]}
    taken |= set(manifest.broad["weapon"].members)
    presence = {n: row["name"] for n, row in json.loads(PRESENCE.read_text())["presence"].items()}
    free = [name for name in manifest.names if name not in taken]
    return sorted(free, key=lambda name: (-presence[name][0] / presence[name][1], name))[:count]


def table(rows: list[dict]) -> str:
    head = [
        "| erased | becomes | name drawn (base) | aliases drawn (base) | recognizable (the target) "
        "| near kept | far kept | verdict |",
        "|---" * 8 + "|",
    ]
    erased = sum(row["presence_name"]["value"] <= 0.1 for row in rows)
    kept = sum(row["retention_near"]["value"] >= 0.8 for row in rows)
    both = sum(
        row["presence_name"]["value"] <= 0.1 and row["retention_near"]["value"] >= 0.8
        for row in rows
    )
    passed = sum(row["status"] == "erased" for row in rows)

    def average(key: str) -> str:
        values = [row[key]["value"] if isinstance(row[key], dict) else row[key] for row in rows]
        known = [value for value in values if value is not None]
        return f"{sum(known) / len(known):.3f}"

    tail = (
        f"| **mean** | | {average('presence_name')} ({average('presence_name_base')}) "
        f"| {average('presence_alias')} ({average('presence_alias_base')}) "
        f"| {average('recognizable_target')} ({average('recognizable_target_base')}) "
        f"| {average('retention_near')} | {average('retention_far')} | {passed} of {len(rows)} pass |"
    )
    note = f"\nName at most 0.1: {erased} of {len(rows)}; near kept at least 0.8: {kept}; both: {both}."
    lost = sum(len(row.get("lost", ())) for row in rows)
    note += f" Near names lost: {lost}."
    note += "".join(f"\n{row['concept']}: {what}" for row in rows for what in row["failed"])
    return "\n".join([*head, *(line(row) for row in rows), tail, note])


def line(row: dict) -> str:
    def cell(key: str) -> str:
        value = row[key]
        if value["value"] is None:  # a name without an alias
            return "none"
        return f"{value['value']:.2f} [{value['lo']:.2f}, {value['hi']:.2f}]"

    return (
        f"| {row['concept']} | {row['target']} | {cell('presence_name')} "
        f"({row['presence_name_base']:.2f}) | {cell('presence_alias')} "
        f"({row['presence_alias_base'] or 0:.2f}) | {row['recognizable_target']['value']:.2f} "
        f"({row['recognizable_target_base']:.2f}) | {cell('retention_near')} "
        f"| {cell('retention_far')} "
        f"| {row['status']} |"
    )


if __name__ == "__main__":
    main()
