"""The table of exports: what ships, what a stranger adds, and what is refused."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.disk import read_json, write_json
from editforge.ground.errors import EditforgeError, PackageError
from editforge.ground.resources import resource_folder
from editforge.package.exports import check_exports, exporter
from editforge.package.facts import read_facts, repository
from editforge.recipe import registry
from editforge.recipe.export import Exporter, Written, accepts
from editforge.recipe.registry import register
from tests.command import QUICK, ROOT, UNJUDGED
from tests.test_package_build import build
from tests.test_registry import clean, command, install  # noqa: F401  (a fixture)
from tests.tiny import random_edit, save_tiny, tiny_model

OURS = ("lora", "pipeline", "single-file", "unet")
FACTORS = re.search(
    r"## An export of your own\n.*?```python\n(.*?)```",
    (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"),
    re.DOTALL,
)[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(save_tiny(tmp_path_factory.mktemp("exports") / "sd1", "sd1"), "sd1")


# --- what ships ---------------------------------------------------------------------------------


def test_each_export_is_its_file_and_says_who_loads_it():
    named = {n: line for n, line in registry.names("export").items() if n in OURS}
    assert tuple(named) == OURS
    for name, line in named.items():
        assert line.endswith("."), name
        assert "Artifact" not in line
        form = exporter(name)
        assert form.name == name
        assert accepts(type(form), WeightEdit)
        assert form.relation == ("adapter" if name == "lora" else "finetune")
        assert (resource_folder("model_cards") / f"use_{name}.md.j2").read_text() == form.usage()
        file = ROOT / "editforge" / "package" / "exports" / f"{name.replace('-', '_')}.py"
        assert file.is_file()


def test_the_lora_is_looked_for_first(tmp_path):
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "editforge.json").write_text("{}")
    assert repository(tmp_path) == tmp_path / "lora"
    (tmp_path / "lora" / "editforge.json").unlink()
    assert repository(tmp_path).name in OURS[1:]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exports", "said"),
    [
        ((), "nothing"),
        (("lora", "lora"), "each once"),
        (("lroa",), "did you mean lora"),
    ],
)
def test_none_one_twice_and_an_unknown_one_are_refused(exports, said, model):
    with pytest.raises(PackageError, match=said):
        check_exports(model, exports)


def test_an_unknown_export_in_a_package_is_damage_and_names_the_known(model, tmp_path):
    folder = build(model, tmp_path / "p", None, exports=("lora",)).repositories["lora"]
    assert read_facts(folder).export == "lora"
    body = read_json(folder / "editforge.json")
    write_json(folder / "editforge.json", {**body, "export": "lroa"})
    with pytest.raises(PackageError, match="not what a run writes: export") as caught:
        read_facts(folder)
    assert "did you mean lora? known: bank, guard, lora, pipeline" in str(caught.value)


class Other:
    """An eraser that is no change of weights."""

    strength, provenance = 1.0, {}


def test_an_eraser_that_an_export_does_not_take_is_refused_before_anything_is_written(
    model, tmp_path
):
    with pytest.raises(PackageError, match="unet does not take this eraser") as caught:
        build(model, tmp_path / "p", None, edit=Other(), exports=("unet",))
    assert caught.value.got == "Other"
    assert caught.value.allowed == "WeightEdit"
    assert not (tmp_path / "p").exists()


class Whole(Exporter):
    name, accepts = "whole", WeightEdit

    def usage(self) -> str:
        return "read `{{ facts.artifact.weights[0] }}`\n"

    def write(self, model, eraser, folder: Path, title: str, dtype: str) -> Written:
        eraser.save(folder / "edit.safetensors")
        return Written({"weights": ["edit.safetensors"]}, ("a note",))

    def applied(self, model, place, pipe):
        return WeightEdit.load(place).applied(pipe)


class Careful(Whole):
    name = "careful"

    def check_eraser(self, model, eraser) -> None:
        raise PackageError("not this one")


class NoAccepts(Exporter):
    name = "whole"
    usage, write, applied = Whole.usage, Whole.write, Whole.applied


class NoWay(Exporter):
    name, accepts = "whole", WeightEdit
    usage, write = Whole.usage, Whole.write


class OtherName(Whole):
    name = "part"


class NoExporter:
    name, accepts = "whole", WeightEdit


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NoAccepts, "accepts"),
        (NoWay, "applied"),
        (OtherName, "name = 'part'"),
        (NoExporter, "is no Exporter"),
        (Whole.write, "is no Exporter"),
    ],
)
def test_half_an_exporter_is_refused_with_what_it_lacks(cls, words):
    with pytest.raises(EditforgeError, match=words):
        register("export", "whole")(cls)
    assert ("export", "whole") not in registry._loaded


@pytest.mark.usefixtures("clean")
def test_the_control_a_whole_one_registers_and_is_packaged(model, tmp_path):
    register("export", "whole")(Whole)
    edit = random_edit(model)
    done = build(model, tmp_path / "p", None, edit=edit, exports=("whole", "lora"))
    assert done.notes == ("a note",)
    folder = done.repositories["whole"]
    assert WeightEdit.load(folder / "edit.safetensors").difference(edit) < 1e-12
    assert read_facts(folder).export == "whole"
    assert "read `edit.safetensors`" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("clean")
def test_every_export_is_asked_before_one_is_written(model, tmp_path):
    register("export", "careful")(Careful)
    with pytest.raises(PackageError, match="not this one"):
        build(model, tmp_path / "p", None, exports=("lora", "careful"))
    assert not (tmp_path / "p").exists()


@pytest.mark.usefixtures("clean")
def test_the_card_of_an_eraser_without_weights_does_not_speak_of_them(model, tmp_path):
    class Guard(Other):
        def described(self):
            return {"strength": 1.0}

        @contextmanager
        def applied(self, pipe):
            yield pipe

        def save(self, path):
            WeightEdit({}).save(path)

    class ForGuards(Whole):
        name, accepts = "for-guards", Guard

    register("export", "for-guards")(ForGuards)
    done = build(model, tmp_path / "p", None, edit=Guard(), exports=("for-guards",))
    card = (done.repositories["for-guards"] / "README.md").read_text()
    assert "changes no weight" in card
    assert "LoRA" not in card


# --- a stranger's package -----------------------------------------------------------------------


def test_the_exporter_of_the_page_is_short():
    assert len([line for line in FACTORS.splitlines() if line.strip()]) <= 30


def test_an_exporter_of_another_package_works_end_to_end(tmp_path):
    site = tmp_path / "site"
    modules = {"my_eraser/__init__.py": "", "my_eraser/factors.py": FACTORS}
    install(site, "my-eraser", {"export.factors": "my_eraser.factors"}, modules)

    listed = command("list", "stages", cwd=tmp_path, site=site)
    assert re.search(r"^export factors +from my-eraser$", listed.stdout, re.M), listed.stderr
    assert re.search(r"^export lora +\w", listed.stdout, re.M)

    line = ("erase", "violin", *QUICK, *UNJUDGED, "--export", "factors", "--output", "run")
    done = command(*line, cwd=tmp_path, site=site)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "package" / "factors"
    (file,) = folder.glob("*.safetensors")
    edit = WeightEdit.load(tmp_path / "run" / "edit" / "weight_edit.safetensors")
    assert WeightEdit.load(file).difference(edit) < 1e-12
    card = (folder / "README.md").read_text()
    assert f'`editforge.load_edit("{file.name}").apply(pipe)`' in card
    assert "- weight-edit\n" in card
    assert f"  factors/{file.name}\n" in (tmp_path / "run/package/SHA256SUMS").read_text()
    assert command("verify", "run", cwd=tmp_path, site=site).returncode == 0

    text = (site / "my_eraser" / "factors.py").read_text()
    (site / "my_eraser" / "factors.py").write_text(text.replace("`editforge.load", "`edit.load"))
    again = command(*line, cwd=tmp_path, site=site)
    assert "package: redone" in again.stderr
    assert "edit: redone" not in again.stderr
    assert "`edit.load_edit" in (folder / "README.md").read_text()

    unknown = command(*line[:-3], "factosr", "--output", "other", cwd=tmp_path, site=site)
    assert unknown.returncode == 2
    assert "did you mean 'factors'" in unknown.stderr
