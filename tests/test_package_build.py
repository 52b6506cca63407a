"""A whole package: what it contains, that it leaks nothing, that its bytes are the content's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, PngImagePlugin

from editforge import emoji
from editforge.artifacts.lora.write import NAME as LORA
from editforge.artifacts.low_rank import LowRank
from editforge.artifacts.sums import verify_folder
from editforge.artifacts.weight_edit import WeightEdit
from editforge.families.schema import load_family
from editforge.ground.disk import read_json, write_json
from editforge.ground.errors import PackageError
from editforge.ground.files import read_header
from editforge.package.build import Package, build_package
from editforge.package.scrub import mark_paths, scan
from tests.models import opened
from tests.tiny import (
    TinyModel,
    random_edit,
    save_tiny,
    tiny_model,
    tiny_provenance,
)

RECIPE = "method: uce\nconcepts:\n- {name: violin, aliases: [fiddle]}\n"
COMMAND = "editforge erase violin"
ALL = ("lora", "unet", "pipeline", "single-file")


def example_results(**verdict: Any) -> dict[str, Any]:
    """Results of a gate, as `evaluate` writes them."""

    def estimate(value: float, low: float, high: float, n: int) -> dict[str, Any]:
        numbers = {"value": value, "lo": low, "hi": high}
        return {**numbers, "n": n, "unit": "images", "defined": True, "reason": None}

    check = {
        "name": "the name is erased",
        "holds": True,
        "value": 0.03,
        "low": 0.0,
        "high": 0.16,
        "threshold": 0.1,
        "close": False,
        "message": "the concept is in 3 % of the images that name it",
        "remedy": None,
    }
    own = {
        "name": "violin",
        "status": "erased",
        "message": "violin is drawn in 3 % of 32 images",
        "drawn_as": {"trumpet": 0.81, "nothing recognizable": 0.19},
        "checks": [check],
    }
    undefined = {"value": None, "lo": None, "hi": None, "n": 0, "unit": "images"}
    return {
        "schema": "editforge.results/2",
        "benchmark_version": 2,
        "tier": "gate",
        "verdict": {
            "status": "erased",
            "passed": True,
            "message": "violin is in 3 % of its images, near concepts keep 93 %.",
            "remedy": None,
            "next": None,
            "checks": [check],
            "concepts": [own],
            **verdict,
        },
        "erased": [
            {"name": "violin", "aliases": ["fiddle"], "kind": "object", "target": "trumpet"}
        ],
        "family": "sd1",
        "metrics": {
            "presence_name": {
                "base": estimate(1.0, 0.89, 1.0, 32),
                "edited": estimate(0.03, 0.0, 0.16, 32),
            },
            "presence_alias": {
                "base": estimate(0.8, 0.6, 0.9, 32),
                "edited": {**undefined, "defined": False, "reason": "no alias was given"},
            },
            "retention_near": estimate(0.93, 0.86, 0.99, 64),
            "retention_far": estimate(1.0, 0.97, 1.0, 64),
            "recognizable_target": {
                "base": estimate(0.88, 0.72, 0.95, 32),
                "edited": estimate(0.84, 0.73, 0.91, 64),
            },
            "recognizable_kept": {
                "base": estimate(0.98, 0.95, 0.99, 128),
                "edited": estimate(0.96, 0.93, 0.98, 128),
            },
            "drift": {
                "near_pixel": estimate(0.03, 0.02, 0.04, 64),
                "near_features": estimate(1.2, 1.0, 1.4, 64),
            },
        },
        "names": [
            {"name": "violin", "set": "name", "base": 1.0, "edited": 0.03, "n": 32},
            {"name": "guitar", "set": "near", "base": 1.0, "edited": 0.75, "n": 8},
            {"name": "cello", "set": "near", "base": 0.75, "edited": 1.0, "n": 8},
        ],
        "judges": [{"name": "judge_a", "classes": 241}],
        "sampler": {"name": "DPM-Solver++", "steps": 12, "guidance": 4.0},
        "seeds": {"scoring": [4000, 4015]},
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "dtype": "float32",
        "notes": ["aliases of violin were given to the eraser"],
        "images": [
            {"file": "grid.png", "sha256": "0" * 64, "prompt": None, "name": None, "set": None},
            _picture("images/neighbor_000.png", "a photo of a guitar on grass"),
            _picture("images/neighbor_001.png", "a guitar beside a Violin"),
            _picture("images/far_000.png", "a photo of a lighthouse"),
        ],
        "prompts": [],
    }


def _picture(file: str, prompt: str) -> dict[str, Any]:
    return {"file": file, "sha256": "0" * 64, "prompt": prompt, "name": None, "set": "near"}


def write_evaluation(folder: Path, results: dict[str, Any]) -> Path:
    """An evaluate folder: results, grid and the pictures that the results name."""
    write_json(folder / "editforge_results.json", results)
    for number, picture in enumerate(results["images"]):
        path = folder / picture["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(path)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = save_tiny(tmp_path_factory.mktemp("build") / "sd1", "sd1", safety=True)
    return tiny_model(folder, "sd1")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("evaluate"), example_results())


def build(model: TinyModel, output: Path, evaluation: Path | None, **changes: Any) -> Package:
    settings: dict[str, Any] = {
        "edit": random_edit(model),
        "recipe_text": RECIPE,
        "command": COMMAND,
        "exports": ALL,
        "dtype": "base",
        **changes,
    }
    edit = settings.pop("edit")
    return build_package(model, edit, evaluation=evaluation, output=output, **settings)


@pytest.fixture(scope="module")
def package(
    model: TinyModel, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    return build(model, tmp_path_factory.mktemp("package") / "package", evaluation)


def test_every_repository_is_complete(package: Package) -> None:
    around = {
        "README.md",
        "LICENSE-note",
        "editforge.json",
        "editforge_results.json",
        "reproduce/recipe.yaml",
        "reproduce/requirements.txt",
        "reproduce/reproduce.json",
        "reproduce/README.md",
        "images/before_after.png",
        "images/far_000.png",
    }
    weights = {
        "lora": {"pytorch_lora_weights.safetensors", "sd1-violin-erased.safetensors"},
        "unet": {"config.json", "diffusion_pytorch_model.safetensors"},
        "pipeline": {"model_index.json", "unet/diffusion_pytorch_model.safetensors"},
        "single-file": {"sd1-violin-erased.safetensors"},
    }
    for export, folder in package.repositories.items():
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert around | weights[export] <= files
        assert not [name for name in files if name.endswith((".bin", ".ckpt", ".pt", ".pkl"))]
        facts = read_json(folder / "editforge.json")
        assert set(facts["files"]) == files - {"editforge.json"}
        assert facts["gate"]["status"] == "erased"
        assert facts["provenance"]["erased"][0]["name"] == "violin"
    recipe = package.folder / "lora" / "reproduce" / "recipe.yaml"
    assert recipe.read_text() == RECIPE


def test_sums_are_in_the_form_sha256sum_reads(package: Package) -> None:
    done = subprocess.run(
        ["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=package.folder, capture_output=True
    )
    assert done.returncode == 0, done.stdout


def test_verify_sees_every_kind_of_damage(
    model: TinyModel, evaluation: Path, tmp_path: Path
) -> None:
    package = build(model, tmp_path / "package", evaluation, exports=("lora",))
    assert verify_folder(package.folder) == []
    assert verify_folder(package.repositories["lora"]) == []
    lora = package.repositories["lora"]
    (lora / "README.md").write_text("another card")
    (lora / "LICENSE-note").unlink()
    (lora / "extra.txt").write_text("x")
    (lora / ".gitattributes").write_text("the Hub adds this")
    problems = verify_folder(lora)
    assert problems == ["LICENSE-note: missing", "extra.txt: not listed", "README.md: changed"]
    assert len(verify_folder(package.folder)) == 6
    with pytest.raises(PackageError, match="nothing to verify"):
        verify_folder(tmp_path)


def test_two_processes_and_folders_give_equal_sums(
    package: Package, model: TinyModel, evaluation: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.test_package_build import build\n"
        "from tests.tiny import tiny_model\n"
        "model = tiny_model(Path(sys.argv[1]), 'sd1')\n"
        "build(model, Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    output = tmp_path / "elsewhere" / "package"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, str(model.folder), str(output), str(evaluation)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    sums = (output / "SHA256SUMS").read_text()
    assert sums == (package.folder / "SHA256SUMS").read_text()


def test_a_package_holds_no_local_information(package: Package, model: TinyModel) -> None:
    for path in package.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for leak in (str(Path.home()), str(model.folder), str(Path.cwd()), "/tmp/"):
                assert len(leak) < 4 or leak.encode() not in data, path
    scan(package.folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.md", "see /data/models/violin.safetensors", "absolute path"),
        ("a.json", json.dumps({"x": "C:\\Users\\me\\model"}), "absolute path"),
        ("a.txt", f"first\n{Path.home()}/x", "home directory|absolute path"),
        ("a.yaml", "token: hf_" + "a" * 34, "Hub token"),
        ("a.md", "written 2026-11-23 08:46:11", "clock time"),
        ("a.md", "by plantedname", "user name"),
        ("a.md", "on plantedhost", "host name"),
    ],
)
def test_a_planted_leak_is_found_and_its_place_named(
    file: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "plantedname")
    monkeypatch.setattr("socket.gethostname", lambda: "plantedhost")
    scan(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(PackageError, match=f"{file} holds.*({message})") as error:
        scan(tmp_path)
    assert "line " in str(error.value)


def test_leaks_in_headers_and_pictures_are_found(tmp_path: Path) -> None:
    from editforge.ground.files import write_safetensors

    write_safetensors(tmp_path / "x.safetensors", {}, {"note": "from /home/someone/run"})
    with pytest.raises(PackageError, match="header key note"):
        scan(tmp_path)
    (tmp_path / "x.safetensors").unlink()
    for packed in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", "saved in /home/someone/run", zip=packed)
        Image.new("RGB", (2, 2)).save(tmp_path / "x.png", pnginfo=info)
        with pytest.raises(PackageError, match="chunk "):
            scan(tmp_path)
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    scan(tmp_path)


def test_ordinary_prose_is_no_leak(tmp_path: Path) -> None:
    text = "before/after, https://huggingface.co/a/b/c, 3/4, and/or, model_cards/card.md, images/x"
    (tmp_path / "a.md").write_text(text)
    scan(tmp_path)


def test_public_names_and_copies_may_hold_the_user_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "plantedname")
    (tmp_path / "a.md").write_text("base: plantedname/model")
    with pytest.raises(PackageError):
        scan(tmp_path)
    scan(tmp_path, public=["plantedname/model"])
    scan(tmp_path, is_copy=lambda name: name == "a.md")


def test_local_paths_of_a_recipe_are_replaced_visibly(model: TinyModel, tmp_path: Path) -> None:
    local = replace(model, label="local:0123456789ab", revision=None, local=True)
    recipe = f"model: {{id: {model.folder}}}\nwords: /data/lists/my.txt\n"
    edit = random_edit(local, provenance=tiny_provenance(local))
    done = build(
        local,
        tmp_path / "p",
        None,
        edit=edit,
        recipe_text=recipe,
        exports=("lora",),
        command=f"editforge erase violin --model {model.folder}",
    )
    text = (tmp_path / "p" / "lora" / "reproduce" / "recipe.yaml").read_text()
    assert text == "model: {id: <local:0123456789ab>}\nwords: <local:my.txt>\n"
    assert len(done.notes) == 2
    assert mark_paths("nothing local here: a/b", {}) == ("nothing local here: a/b", [])


def test_failed_inputs_write_nothing(model: TinyModel, tmp_path: Path) -> None:
    edit = random_edit(model)
    other = replace(edit, provenance={**edit.provenance, "base_sha256": "f" * 64})
    pair = LowRank(torch.ones(24, 1), torch.ones(1, 24))
    text = WeightEdit({"text_encoder.encoder.layers.0.self_attn.q_proj": pair})
    for wrong, changes in (
        ("cannot export", {"exports": ("lora", "onnx")}),
        ("cannot export", {"exports": ()}),
        ("another base", {"edit": other}),
        ("only the denoiser", {"edit": text}),
    ):
        with pytest.raises(PackageError, match=wrong):
            build(model, tmp_path / "p", None, **changes)
    assert not (tmp_path / "p").exists()


def test_rounding_to_sixteen_bits_is_measured_and_said(model: TinyModel, tmp_path: Path) -> None:
    done = build(model, tmp_path / "p", None, exports=("unet",), dtype="float16")
    facts = read_json(done.repositories["unet"] / "editforge.json")
    rounding = facts["artifact"]["rounding"]
    assert rounding["diffusion_pytorch_model.safetensors"] < 1e-6
    assert 1e-5 < rounding["diffusion_pytorch_model.fp16.safetensors"] < 1e-2
    assert (
        "diffusion_pytorch_model.fp16.safetensors"
        in (done.repositories["unet"] / "README.md").read_text()
    )


def _emoji_model() -> TinyModel:
    base = TinyModel(load_family("emoji"), emoji.folder(), label="editforge/emoji-sd")
    return replace(base, revision=None, license="apache-2.0")


def _run(code: str, folder: Path) -> torch.Tensor:
    space: dict[str, Any] = {}
    here = Path.cwd()
    os.chdir(folder)
    try:
        exec(code, space)
    finally:
        os.chdir(here)
    pipe = space["pipe"]
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4000)
    result = pipe("a violin", num_inference_steps=6, generator=generator, output_type="pt")
    return result.images


def test_card_snippets_run_and_the_lora_draws_what_the_folder_draws(tmp_path: Path) -> None:
    model = _emoji_model()
    edit = random_edit(model, size=0.02)
    exports = ("lora", "unet", "pipeline")
    done = build(model, tmp_path / "p", None, edit=edit, exports=exports, dtype="float32")
    images = {}
    for export, folder in done.repositories.items():
        card = (folder / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        images[export] = _run(code, folder)
    stock = _run("from editforge import emoji\npipe = emoji.load_pipeline()", tmp_path)
    assert (images["lora"] - stock).abs().max() > 1e-2
    assert (images["lora"] - images["pipeline"]).abs().max() < 1e-3
    assert (images["unet"] - images["pipeline"]).abs().max() < 1e-3
    assert [p.name for p in done.repositories["lora"].glob("*.safetensors")] == [LORA]


def test_licenses_of_the_embedded_model_travel_and_are_a_link_that_the_hub_takes(
    tmp_path: Path,
) -> None:
    model = opened("emoji")
    edit = random_edit(_emoji_model(), size=0.02, provenance={})
    done = build(model, tmp_path / "p", None, edit=edit, exports=("lora",))
    lora = done.repositories["lora"]
    card = (lora / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "other"
    assert header["license_link"] == "LICENSE.md"
    assert "LICENSE.md" in read_json(lora / "editforge.json")["files"]
    text = (lora / "LICENSE.md").read_text()
    listed = {style.license for style in emoji.manifest().styles}
    assert all(license in text for license in listed)
    assert header["license_name"] == "-and-".join(sorted(name.lower() for name in listed))
    assert (lora / "ATTRIBUTION.md").read_bytes() == emoji.attribution().read_bytes()
    assert verify_folder(done.folder) == []


@pytest.mark.parametrize("name", ["LICENSE.md", "LICENSE.txt", "docs/terms.md"])
def test_relative_license_link_of_a_hub_base_points_to_the_hub(
    name: str, model: TinyModel, tmp_path: Path
) -> None:
    linked = replace(model, license="other", license_link=name, revision="abc")
    done = build(linked, tmp_path / "p", None, exports=("lora",))
    base = read_json(done.repositories["lora"] / "editforge.json")["base"]
    assert base["license_link"] == (f"https://huggingface.co/tiny-org/tiny-model/blob/abc/{name}")


@pytest.mark.parametrize("name", ["LICENSE", "LICENSE.md", "LICENSE.txt", "ATTRIBUTION.md"])
def test_a_license_file_that_travels_is_linked_only_by_a_name_that_the_hub_takes(
    name: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", "sd1")
    (folder / name).write_text("As you like.")
    model = tiny_model(folder, "sd1", license="other", license_link=name, revision="abc")
    done = build(model, tmp_path / "p", None, edit=random_edit(model), exports=("lora",))
    lora = done.repositories["lora"]
    assert (lora / name).read_text() == "As you like."
    link = read_json(lora / "editforge.json")["base"]["license_link"]
    hub = f"https://huggingface.co/tiny-org/tiny-model/blob/abc/{name}"
    assert link == (name if name in ("LICENSE", "LICENSE.md") else hub)


def test_a_local_base_carries_no_license_file_from_the_folder_above(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "sd1")
    (tmp_path / "LICENSE.md").write_text("Of something else.")
    model = tiny_model(folder, "sd1", license="other", license_link="LICENSE.md", local=True)
    done = build(model, tmp_path / "p", None, edit=random_edit(model), exports=("lora",))
    assert not (done.repositories["lora"] / "LICENSE.md").exists()


def test_configs_of_a_local_base_are_searched_for_paths(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "sd1")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**read_json(config), "trained_on": "/data/private/images"}))
    public = tiny_model(folder, "sd1")
    build(public, tmp_path / "hub", None, exports=("pipeline",))
    for label in ("local:0123456789ab", "tiny-org/tiny-model"):
        local = replace(public, label=label, revision=None, local=True)
        with pytest.raises(PackageError, match=r"vae/config\.json holds an absolute path"):
            build(local, tmp_path / label, None, edit=random_edit(local), exports=("pipeline",))


def test_single_file_of_another_prediction_type_is_refused(
    model: TinyModel, tmp_path: Path
) -> None:
    velocity = replace(model, prediction_type="v_prediction")
    with pytest.raises(PackageError, match="cannot say how its model predicts"):
        build(velocity, tmp_path / "p", None, exports=("single-file",))
    done = build(velocity, tmp_path / "q", None, exports=("lora",))
    header, _ = read_header(done.repositories["lora"] / f"{done.name}.safetensors")
    assert header["ss_base_model_version"] == "sd_v1_v"


def test_a_prediction_type_that_no_app_has_a_name_for_gives_no_kohya_file_and_a_note(
    model: TinyModel, tmp_path: Path
) -> None:
    other = replace(model, prediction_type="sample")
    done = build(other, tmp_path / "q", None, exports=("lora",))
    assert "no kohya base for sample" in done.notes[0]
    assert "No kohya file" in (done.repositories["lora"] / "README.md").read_text()
    assert [p.name for p in done.repositories["lora"].glob("*.safetensors")] == [LORA]
