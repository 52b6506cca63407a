"""The card of one repository folder, from `editforge.json` and `editforge_results.json` alone.

What the card may claim is what these two files hold: a failed gate is said first, an unjudged one
is called so, an undefined number keeps its reason, and widgets never name what was erased.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from editforge.artifacts.report import BENCHMARK_VERSION, SCHEMA
from editforge.ground.disk import read_json
from editforge.ground.errors import PackageError
from editforge.ground.resources import resource_folder
from editforge.package.exports import exporter

_LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
RATES = {
    "presence_name": ("Drawn when named", "erased", "presence"),
    "presence_alias": ("Drawn when an alias is named", "alias", "alias_presence"),
}
KEPT = {
    "retention_near": ("Near concepts kept", "neighbor", "near_retention"),
    "retention_far": ("Far concepts kept", "far", "far_retention"),
}


def render_card(folder: Path) -> str:
    """The README.md of a repository folder. Equal inputs give equal text; no clock, no network.

    Raises:
        PackageError: results of another schema or benchmark version: those are never compared.
    """
    facts: dict[str, Any] = read_json(folder / "editforge.json")
    results: dict[str, Any] = read_json(folder / "editforge_results.json")
    check_results(results)
    images = sorted(p.relative_to(folder).as_posix() for p in folder.glob("images/*.png"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_folder("model_cards")),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown; names pass through the filter `plain`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    environment.filters["estimate"] = estimate
    header = yaml.safe_dump(
        front_matter(facts, results, images), sort_keys=False, allow_unicode=True
    )
    return environment.get_template("card.md.j2").render(
        header=header,
        facts=facts,
        usage=environment.from_string(exporter(facts["export"]).usage()),
        results=results,
        images=images,
        verdict=results["verdict"],
        erased=facts["provenance"].get("erased", []),
        rows=table_rows(results),
        lost=lost_names(results),
        measured=measured(results),
        widgets=widgets(facts, results, images),
        fence="`" * (3 + max(map(len, re.findall("`+", facts["recipe"])), default=0)),
    )


def check_results(results: Mapping[str, Any]) -> None:
    """Refuse results whose numbers mean something else than this renderer's words."""
    got = (results.get("schema"), results.get("benchmark_version"))
    if got != (SCHEMA, BENCHMARK_VERSION) or "verdict" not in results:
        raise PackageError(
            "these results belong to another version of the benchmark",
            got=str(got),
            allowed=str((SCHEMA, BENCHMARK_VERSION)),
            next="evaluate again: editforge evaluate DIR",
        )


def front_matter(
    facts: Mapping[str, Any], results: Mapping[str, Any], images: Sequence[str]
) -> dict[str, Any]:
    """The YAML header, in the order people read it. Absent facts are left out, never invented."""
    base, export = facts["base"], exporter(facts["export"])
    header: dict[str, Any] = {"language": "en"}
    header |= _license(base)
    header |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if not base["label"].startswith("local:"):
        header["base_model"] = base["label"]
        header["base_model_relation"] = export.relation
    names = [row["name"] for row in facts["provenance"].get("erased", [])]
    family = "stable-diffusion-xl" if "XL" in facts["family"]["pipeline"] else "stable-diffusion"
    words = ["concept-erasure", "editforge", *(tag for tag in export.tags if ":" not in tag)]
    tags = [*words, family, *(tag for tag in export.tags if ":" in tag)]
    header["tags"] = [*tags, *(f"erased:{_line(name)}" for name in names)]
    if found := widgets(facts, results, images):
        header["widget"] = [{"text": p, "output": {"url": image}} for p, image in found]
    if index := model_index(facts, results):
        header["model-index"] = index
    return header


def _license(base: Mapping[str, Any]) -> dict[str, Any]:
    """What the base's card says, as far as the Hub takes it: name and link of `other` alone."""
    if base["license"] is None:
        return {}
    lines = {"license": base["license"]}
    if base["license"] == "other":
        name, link = base["license_name"], base["license_link"]
        if name is not None and _LICENSE_NAME.fullmatch(name):
            lines["license_name"] = name
        if link is not None:
            lines["license_link"] = link
    return lines


def widgets(
    facts: Mapping[str, Any], results: Mapping[str, Any], images: Sequence[str]
) -> list[tuple[str, str]]:
    """(prompt, image) of pictures in this folder whose prompt names nothing that was erased."""
    forbidden = [
        word.casefold()
        for row in facts["provenance"].get("erased", [])
        for word in (row["name"], *row.get("aliases", []), *row.get("mined", []))
        if word
    ]
    found = []
    for picture in results.get("images", []):
        file, prompt = picture.get("file"), picture.get("prompt")
        clean = prompt and not any(word in prompt.casefold() for word in forbidden)
        if clean and file in images:
            found.append((_line(prompt), str(file)))
    near = [pair for pair in found if not pair[1].startswith("images/far")]
    return near[:4] + [pair for pair in found if pair not in near][:4]


def model_index(facts: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measured numbers in the Hub's form; [] if nothing is defined."""
    tier, version = results.get("tier", "gate"), results["benchmark_version"]
    found = []
    for key, (title, split, kind) in {**RATES, **KEPT}.items():
        metric = results.get("metrics", {}).get(key)
        if metric is None:
            continue
        edited, base = metric.get("edited", metric), metric.get("base")
        if edited.get("value") is None:
            continue
        args: dict[str, Any] = {"low": edited["lo"], "high": edited["hi"], "n": edited["n"]}
        if base is not None and base.get("value") is not None:
            args["unedited"] = base["value"]
        dataset = {
            "type": f"editforge-{tier}",
            "name": f"editforge {tier}",
            "config": f"{tier}-v{version}",
            "split": split,
        }
        metrics = [{"type": kind, "name": title, "value": edited["value"], "args": args}]
        task = {"type": "text-to-image", "name": "Concept erasure"}
        found.append({"task": task, "dataset": dataset, "metrics": metrics})
    return [{"name": facts["name"], "results": found}] if found else []


def table_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, base, this model) of every metric; a ratio's base is the reference itself."""
    titles = {key: row[0] for key, row in {**RATES, **KEPT}.items()}
    titles |= {
        "recognizable_target": "Recognizable when named (base: the target)",
        "recognizable_kept": "Recognizable near and far images",
        "drift": "Mean change",
    }
    rows: list[tuple[str, str, str]] = []
    metrics: Mapping[str, Any] = results.get("metrics", {})
    for key in [*(k for k in titles if k in metrics), *sorted(set(metrics) - set(titles))]:
        title = titles.get(key, key.replace("_", " ").capitalize())
        rows += _metric_rows(title, key, metrics[key])
    return rows


def _metric_rows(title: str, key: str, metric: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if "value" in metric:
        reference = "the reference" if key in KEPT else "0, by definition"
        return [(title, reference, estimate(metric))]
    if {"base", "edited"} <= set(metric):
        return [(title, estimate(metric["base"]), estimate(metric["edited"]))]
    rows = []
    for part, one in metric.items():
        if part.startswith("edited_"):
            name = part.removeprefix("edited_")
            rows.append((f"{title}, {name}", estimate(metric[f"base_{name}"]), estimate(one)))
        elif part.endswith("_pixel"):  # the other distances stand in the JSON
            name = part.removesuffix("_pixel")
            rows.append((f"{title} of a pixel, {name} images", "0, by definition", estimate(one)))
    return rows


def measured(results: Mapping[str, Any]) -> set[str]:
    """Metrics with a number for the edited model."""
    metrics: Mapping[str, Any] = results.get("metrics", {})
    return {key for key, one in metrics.items() if one.get("edited", one).get("value") is not None}


def lost_names(results: Mapping[str, Any]) -> list[str]:
    """Near and far concepts that the edited model draws worse than the base, worst first."""
    rows = [
        (row["edited"] - row["base"], row)
        for row in results.get("names", [])
        if row["set"] in ("near", "far") and None not in (row["base"], row["edited"])
    ]
    lost = sorted((row for row in rows if row[0] < 0), key=lambda row: (row[0], row[1]["name"]))
    return [
        f"{plain(row['name'])} ({row['base']:.0%} to {row['edited']:.0%} of {row['n']} images)"
        for _, row in lost
    ]


def estimate(metric: Mapping[str, Any]) -> str:
    """`3 % [0 %, 11 %], n = 32 images`, or why there is no number."""
    if metric.get("value") is None:
        return f"undefined: {plain(metric.get('reason') or 'no reason given')}"
    numbers = [f"{number:.3g}" for number in (metric["value"], metric["lo"], metric["hi"])]
    unit = metric.get("unit", "")
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}], n = {metric['n']} {plain(unit)}".rstrip()


def plain(text: object) -> str:
    """One line without characters that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _line(text))


def _line(text: object) -> str:
    return " ".join(str(text).split())
