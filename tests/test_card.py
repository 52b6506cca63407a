"""The model card: valid for the Hub, honest about the gate, silent about what was erased.

`python -m tests.test_card` renders the golden example in `model_cards/example/` again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from editforge.ground.disk import read_json, write_json
from editforge.ground.errors import PackageError
from editforge.ground.resources import resource_folder
from editforge.package.card import render_card
from tests.test_package_build import RECIPE, example_results

EXPORTS = ("lora", "unet", "pipeline", "single-file")


def example_facts(export: str = "lora", **changes: Any) -> dict[str, Any]:
    """`editforge.json` of a package, without the table of files."""
    weights = {
        "lora": "pytorch_lora_weights.safetensors",
        "single-file": "sd1-violin-erased.safetensors",
    }.get(export, "diffusion_pytorch_model.safetensors")
    return {
        "schema": "editforge.package/1",
        "name": "sd1-violin-erased",
        "export": export,
        "family": {"name": "sd1", "pipeline": "StableDiffusionPipeline"},
        "provenance": {
            "method": "uce",
            "erased": [
                {"name": "violin", "aliases": ["fiddle"], "kind": "object", "target": "trumpet"}
            ],
            "combined": "one concept",
            "editforge_version": "0.1.0",
        },
        "edit": {"strength": 1.0, "exact_rank": 2, "rank": 2, "modules": 32},
        "artifact": {
            "weights": [weights],
            "kohya": "sd1-violin-erased.safetensors",
            "kohya_family": True,
            "rank": 2,
            "dtype": "float32",
            "exact": True,
            "relative_error": 2e-8,
            "rounding": {weights: 3e-8},
        },
        "base": {
            "label": "CompVis/stable-diffusion-v1-4",
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "sha256": "0" * 64,
            "license": "creativeml-openrail-m",
            "license_name": None,
            "license_link": None,
            "prediction_type": "epsilon",
            "variant": None,
        },
        "gate": {"status": "erased", "passed": True, "message": ""},
        "recipe": RECIPE,
        "command": "editforge erase violin --method uce --model CompVis/stable-diffusion-v1-4",
        **changes,
    }


def write_example(folder: Path, facts: dict[str, Any], results: dict[str, Any]) -> Path:
    """A repository folder as the card sees it; the pictures are small and plain."""
    write_json(folder / "editforge.json", facts)
    write_json(folder / "editforge_results.json", results)
    (folder / "images").mkdir(exist_ok=True)
    names = [picture["file"] for picture in results["images"] if "/" in picture["file"]]
    for name in [*names, "images/before_after.png"]:
        Image.new("RGB", (8, 8), (90, 90, 90)).save(folder / name)
    return folder


def _card(folder: Path, export: str = "lora", **changes: Any) -> tuple[str, dict[str, Any]]:
    results = changes.pop("results", None) or example_results()
    text = render_card(write_example(folder, example_facts(export, **changes), results))
    return text, yaml.safe_load(text.split("---\n")[1])


def test_golden_example_is_what_the_templates_render() -> None:
    folder = resource_folder("model_cards") / "example"
    assert render_card(folder) == (folder / "README.md").read_text()


@pytest.mark.parametrize("export", EXPORTS)
def test_card_is_valid_and_complete(export: str, tmp_path: Path) -> None:
    text, header = _card(tmp_path, export)
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results is not None
    assert {result.metric_type for result in data.eval_results} == {
        "presence",
        "near_retention",
        "far_retention",
    }
    relation = "adapter" if export == "lora" else "finetune"
    assert header["base_model_relation"] == relation
    assert header["license"] == "creativeml-openrail-m"
    assert {"concept-erasure", "editforge", "erased:violin"} <= set(header["tags"])
    assert ("template:sd-lora" in header["tags"]) == (export == "lora")
    linked = re.findall(r"\]\((images/[^)]+)\)", text)
    linked += [widget["output"]["url"] for widget in header["widget"]]
    assert linked
    assert all((tmp_path / name).is_file() for name in linked)
    assert "TODO" not in text
    assert "instance_prompt" not in text
    assert "trigger" not in text
    assert not re.search(r"\n{3,}", text)
    assert not re.search(r"\d{4}-\d\d-\d\d", text)
    for word in ("unlearned", " safe ", "cannot generate"):
        assert word not in text


def test_sections_stand_in_their_order(tmp_path: Path) -> None:
    text, _ = _card(tmp_path)
    order = [
        "before_after.png",
        "steers prompts",
        "## This model against its base",
        "## Use it",
        "## Limits",
        "## How to reproduce",
        RECIPE.strip(),
        "## Citation",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_widgets_never_name_what_was_erased(tmp_path: Path) -> None:
    _, header = _card(tmp_path)
    prompts = [widget["text"] for widget in header["widget"]]
    assert prompts == ["a photo of a guitar on grass", "a photo of a lighthouse"]
    results = example_results()
    results["images"][1]["prompt"] = "a Fiddle on grass"  # an alias, and another case
    _, header = _card(tmp_path, results=results)
    assert [widget["text"] for widget in header["widget"]] == ["a photo of a lighthouse"]


def test_failing_gate_is_said_first(tmp_path: Path) -> None:
    failed = example_results(status="neighbor lost", passed=False, message="guitar lost 40 %.")
    text, _ = _card(tmp_path, results=failed)
    assert text.index("The gate failed: neighbor lost") < text.index("steers prompts")
    assert "The gate passed" not in text


def test_unjudged_release_claims_nothing(tmp_path: Path) -> None:
    unjudged = example_results(status="not judged", passed=None, message="No judge.", checks=[])
    unjudged |= {"metrics": {}, "names": []}
    text, header = _card(tmp_path, results=unjudged)
    assert "**Not judged.**" in text
    assert "No claim of erasure" in text
    assert "No number was measured" in text
    assert "Tested against: nothing" in text
    assert "model-index" not in header
    assert "The gate passed" not in text


def test_undefined_number_keeps_its_reason_and_enters_no_index(tmp_path: Path) -> None:
    text, header = _card(tmp_path)
    assert "undefined: no alias was given" in text
    splits = [row["dataset"]["split"] for row in header["model-index"][0]["results"]]
    assert "alias" not in splits
    assert "Not tested: aliases," in text


def test_lost_neighbors_are_named_with_their_numbers(tmp_path: Path) -> None:
    text, _ = _card(tmp_path)
    assert "Neighbors that lost quality: guitar (100% to 75% of 8 images)." in text
    assert "cello (" not in text


def test_joint_and_sum_are_told_apart(tmp_path: Path) -> None:
    provenance = example_facts()["provenance"]
    joint, _ = _card(tmp_path, provenance={**provenance, "combined": "joint"})
    summed, _ = _card(tmp_path, provenance={**provenance, "combined": "sum of 2 edits"})
    assert "solved jointly" in joint
    assert "sum of 2 edits" in summed
    assert "solved jointly" not in summed


def test_local_base_is_no_hub_link_and_unknown_license_is_not_invented(tmp_path: Path) -> None:
    base = {**example_facts()["base"], "label": "local:0123456789ab", "license": None}
    text, header = _card(tmp_path, base=base)
    assert "base_model" not in header
    assert "license" not in header
    assert "path/to/the/base" in text


LINK = "https://x.org/license"


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (("other", "my-license-1.0", LINK), ("other", "my-license-1.0", LINK)),
        (("other", "my-license-1.0", "LICENSE.md"), ("other", "my-license-1.0", "LICENSE.md")),
        (("other", None, LINK), ("other", None, LINK)),
        (("other", None, None), ("other", None, None)),
        (("other", "My License", None), ("other", None, None)),  # no id: the Hub would refuse it
        (("openrail++", None, LINK), ("openrail++", None, None)),  # the Hub knows that one's text
        ((None, "my-license-1.0", LINK), (None, None, None)),
    ],
)
def test_the_license_is_what_the_bases_card_says_and_nothing_else(
    said: tuple[str | None, ...], written: tuple[str | None, ...], tmp_path: Path
) -> None:
    keys = ("license", "license_name", "license_link")
    base = {**example_facts()["base"], **dict(zip(keys, said, strict=True))}
    _, header = _card(tmp_path, base=base)
    assert tuple(header.get(key) for key in keys) == written


def test_names_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    hostile = "x\n---\ninstance: | <script>"
    row = {"name": hostile, "aliases": [], "kind": "object", "target": "`rm`"}
    provenance = {**example_facts()["provenance"], "erased": [row]}
    text, header = _card(tmp_path, provenance=provenance, recipe="a: b\n```\n# out\n")
    assert ModelCard(text).data.tags is not None
    assert "erased:x --- instance: | <script>" in header["tags"]
    assert "<script>" not in text.split("---\n", 2)[2]
    assert "````yaml" in text


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="another version"):
        _card(tmp_path, results={**example_results(), "benchmark_version": 1})


def test_only_readers_that_exist_are_named(tmp_path: Path) -> None:
    artifact = {**example_facts()["artifact"], "kohya": None}
    without, _ = _card(tmp_path, artifact=artifact)
    with_kohya, _ = _card(tmp_path)
    assert "ComfyUI" not in without
    assert "A1111" not in without
    assert "ComfyUI" in with_kohya
    assert "<lora:sd1-violin-erased:1>" in with_kohya


if __name__ == "__main__":
    target = resource_folder("model_cards") / "example"
    write_example(target, example_facts(), example_results())
    (target / "README.md").write_text(render_card(target))
    print(read_json(target / "editforge.json")["name"])
