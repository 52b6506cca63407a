"""A CLIP judge against the two judges of the embedded model, on the same pictures of twelve erasures.

The embedded model's own CLIP is laid into a folder as a stranger's would be, calibrated on the base's
pictures as for any Stable Diffusion model, and asked for the verdict of every DEV erasure of the default
recipe. Both see the same pictures. Nothing here may be run on TEST concepts to choose anything.

    python benchmarks/clip_judge.py                       # draws what is not there yet, then judges
    python benchmarks/clip_judge.py --concepts violin     # fewer than the twelve
    python benchmarks/clip_judge.py --draw                # only draw, and judge with the two judges

Pictures, edits and reports stay in `--work`, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from editforge import emoji
from editforge.artifacts.concepts import Concept
from editforge.artifacts.report import Estimate, Report
from editforge.artifacts.weight_edit import WeightEdit
from editforge.cli.output import quiet_libraries
from editforge.evaluate.gate import evaluate_gate
from editforge.evaluate.prompts import Counts
from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.stages import choose, edit, mine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="*", default=list(emoji.manifest().splits["dev"]))
    parser.add_argument("--work", type=Path, default=Path("runs/.clip-judge"))
    parser.add_argument("--draw", action="store_true", help="draw and stop")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    quiet_libraries()
    clip = foreign_folder(args.work / "clip")
    rows = []
    with open_model(ModelConfig()) as model:
        for name in args.concepts:
            place = args.work / name.replace(" ", "-")
            found, target = erased(name, model, place)
            family = judged(name, model, found, target, "family", place)
            print(name, target, family.verdict.status, file=sys.stderr, flush=True)
            if args.draw:
                continue
            other = judged(name, model, found, target, clip, place)
            print(name, other.verdict.status, other.verdict.message, file=sys.stderr, flush=True)
            rows.append({"concept": name, "family": facts(family), "clip": facts(other)})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    if rows:
        print(table(rows))


def foreign_folder(folder: Path) -> Path:
    """The embedded model's CLIP as a stranger's folder: with what its pixels were."""
    if not folder.is_dir():
        shutil.copytree(emoji.folder().parent / "clip", folder)
    half = [0.5, 0.5, 0.5]
    config = {"image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def erased(name: str, model: Any, place: Path) -> tuple[WeightEdit, str]:
    """The default recipe's edit of one concept and what it becomes; made once."""
    record = place / "target.json"
    if record.is_file():
        return WeightEdit.load(place / "edit.safetensors"), json.loads(record.read_text())
    recipe, context = resolve("default", {"concepts": [{"name": name}]}), Context(model)
    neighbors = mine(recipe, context)
    targets = choose(recipe, neighbors, context)
    found = edit(recipe, targets, neighbors, context).edit.scaled(recipe.strength)
    found.save(place / "edit.safetensors")
    record.write_text(json.dumps(targets.of(name).target))
    return found, targets.of(name).target


def judged(
    name: str, model: Any, found: WeightEdit, target: str, judge: Any, place: Path
) -> Report:
    """The gate's report; the pictures are drawn once for every judge."""
    return evaluate_gate(
        model.pipeline(),
        found,
        (Concept(name=name),),
        family_name="emoji",
        judge=judge,
        targets={name: target},
        progress=False,
        workdir=place / "pictures",
        workdir_of=f"{emoji.pipeline_digest()} {name}",
        counts=Counts(),  # all of them, also where CLIP refuses: they are there
        base=model.drawn_by,
    )


def facts(report: Report) -> dict[str, Any]:
    """What the table needs of a report."""
    row: dict[str, Any] = {"status": report.verdict.status, "message": report.verdict.message}
    for key in ("presence_name", "presence_alias"):
        pair = report.metrics.get(key)
        row[key] = pair["edited"].value if isinstance(pair, dict) else None
        row[f"{key}_base"] = pair["base"].value if isinstance(pair, dict) else None
    for key in ("retention_near", "retention_far"):
        share = report.metrics.get(key)
        row[key] = share.value if isinstance(share, Estimate) else None
    for judge in report.judges:
        row |= judge.get("calibration", {})
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Both verdicts of every concept, and what the CLIP judge cannot tell."""
    lines = [
        "| erased | two judges | CLIP | name drawn (base): judges | CLIP | near kept: judges | CLIP "
        "| far kept: judges | CLIP | seen in its own | cannot tell |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        family, clip = row["family"], row["clip"]
        both = [
            cell
            for key in ("presence_name", "retention_near", "retention_far")
            for cell in (_share(family, key), _share(clip, key))
        ]
        own = clip.get("seen", {}).get(row["concept"])
        lost = [name for name in clip.get("cannot_tell", ()) if name != row["concept"]]
        cells = [row["concept"], family["status"], clip["status"], *both]
        cells += ["" if own is None else f"{own:.2f}", ", ".join(lost)]
        lines.append(f"| {' | '.join(cells)} |")
    asked = [row for row in rows if row["clip"]["status"] != "not judged"]
    same = sum(row["clip"]["status"] == row["family"]["status"] for row in asked)
    passed = [row["clip"]["status"] == "erased" for row in asked]
    like = sum(
        one == (row["family"]["status"] == "erased") for one, row in zip(passed, asked, strict=True)
    )
    lines.append(
        f"\nOf {len(rows)} concepts the CLIP judge leaves {len(rows) - len(asked)} unjudged and judges "
        f"{len(asked)}: the same verdict on {same}, the same pass or fail on {like}."
    )
    return "\n".join(lines)


def _share(row: dict[str, Any], key: str) -> str:
    value, base = row.get(key), row.get(f"{key}_base")
    shown = "" if value is None else f"{value:.2f}"
    return f"{shown} ({base:.2f})" if base is not None else shown


if __name__ == "__main__":
    main()
