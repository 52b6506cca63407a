"""A result judged again: the run, its packages and what a stranger wrote, each as its user loads it."""

from __future__ import annotations

import functools
import json
import shlex
import shutil

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session

from editforge.artifacts.report import Report
from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts
from editforge.families import sampling
from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.ground.errors import EditforgeError, PackageError, RecipeError
from editforge.ground.files import read_tensors, write_safetensors
from editforge.hub.push import push_package
from editforge.package.shipped import Shipped
from editforge.recipe.layers import resolve
from editforge.run.found import find
from editforge.run.load import load_edit
from editforge.run.order import execute
from editforge.run.saved import evaluate_saved
from tests.command import QUICK, UNJUDGED, editforge, fresh
from tests.hub_server import TOKEN, serving
from tests.models import LOOSE, family_file, tiny_folder
from tests.tiny import save_tiny

# float32: the verdict must not hang on which CPU rounds to bfloat16
FEW = """
import functools
from editforge.evaluate import gate
from editforge.families import sampling
from editforge.evaluate.prompts import Counts
counts = Counts(name=8, least=4, names=2, images=2, reference=4)
sampler = sampling.Sampler(steps=8, guidance=4.0, batch=32)
sampling.default_sampler = lambda family: sampler
gate.evaluate_gate = functools.partial(gate.evaluate_gate, counts=counts, dtype="float32")
"""
DRIFT = FEW.replace("steps=8", "steps=1")  # where nothing is judged
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A real run of the embedded model with everything that evaluation once lost; tests read it."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "list.yaml").write_text("- {name: violin, aliases: [fiddle], kind: object}\n")
    line = ("erase", "--concepts", "list.yaml", *QUICK, "--seed", "3", "--strength", "1.2")
    line += ("--export", "lora,unet,pipeline", "--output", "run", "--json")
    done = editforge(*line, cwd=folder, before=FEW)
    assert done.code in (0, 1), done.err
    return folder


# --- one way back ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "run",
        "run/package",
        "run/package/lora",
        f"run/package/lora/{LORA}",
        "run/package/unet",
        "run/package/pipeline",
    ],
)
def test_a_run_and_its_packages_get_the_same_report(home, tmp_path, place):
    told = Report.load(home / "run" / "evaluate")
    line = ("evaluate", str(home / place), "--output", str(tmp_path / "report"), "--json")
    done = editforge(*line, cwd=tmp_path, before=FEW)
    assert done.code in (0, 1), done.err
    again = Report.load(tmp_path / "report")
    assert again.verdict.status == told.verdict.status
    assert again.names == told.names  # presence and retention, image for image
    assert again.prompts == told.prompts  # the same words and seeds
    assert (again.seeds, again.seeds["gate"]) == (told.seeds, 3)
    assert again.erased == told.erased
    row = again.erased[0]
    assert (row.name, row.aliases, row.kind, row.target) == (
        "violin",
        ("fiddle",),
        "object",
        "trumpet",
    )
    assert again.notes == told.notes
    for name, drift in told.metrics["drift"].items():
        near = 1e-3 if name.endswith("pixel") else 2e-2
        assert again.metrics["drift"][name].value == pytest.approx(drift.value, abs=near), name
    assert done.code == (0 if again.passed else 1)


def test_the_control_a_weak_edit_fails_and_its_hint_is_a_command(home, tmp_path):
    told = Report.load(home / "run" / "evaluate")
    shutil.copytree(home / "run" / "package" / "lora", tmp_path / "lora")
    load_edit(home / "run").scaled(0.01).save_lora(tmp_path / "lora")
    done = editforge("evaluate", "lora", "--output", "report", cwd=tmp_path, before=FEW)
    assert done.code == 1, done.err
    again = Report.load(tmp_path / "report")
    drift = told.metrics["drift"]["name_pixel"].value - again.metrics["drift"]["name_pixel"].value
    assert drift > 0.01
    assert again.prompts == told.prompts
    hint = done.err.strip().splitlines()[-1].removeprefix("next: ")
    assert hint.startswith("editforge run lora/reproduce/recipe.yaml --set=")
    dry = editforge(*shlex.split(hint)[1:], "--dry-run", cwd=tmp_path)
    assert dry.code == 0, dry.err


def test_the_seed_of_the_user_wins(home, tmp_path):
    line = ("evaluate", str(home / "run/package/lora"), "--seed", "5", "--judge", "none")
    done = editforge(*line, "--output", "report", cwd=tmp_path, before=DRIFT)
    assert done.code == 0, done.err
    assert Report.load(tmp_path / "report").seeds["gate"] == 5


def test_the_next_command_pushes_the_repository_that_was_judged(home, tmp_path):
    folder = home / "run" / "package" / "unet"
    line = ("evaluate", str(folder), "--judge", "none")
    hint = editforge(*line, cwd=tmp_path, before=DRIFT).err.strip().splitlines()[-1]
    assert hint == f"next: editforge push {folder} YOUR-NAME/REPO"
    done = editforge("push", str(folder), "YOUR-NAME/REPO", "--dry-run", cwd=tmp_path)
    assert done.code == 0 or "the gate failed" in done.err


def weights(pipe):
    parts = ("unet", "text_encoder", "vae")
    return {f"{p}.{n}": w for p in parts for n, w in getattr(pipe, p).state_dict().items()}


@pytest.mark.parametrize("form", ["lora", "unet", "pipeline"])
def test_a_shipped_form_holds_the_edit_and_leaves_the_base_as_it_was(home, form):
    folder = home / "run" / "package" / form
    place = folder / LORA if form == "lora" else folder
    with open_model(ModelConfig(device="cpu")) as model:
        pipe = model.pipeline()
        before = {name: weight.clone() for name, weight in weights(pipe).items()}
        scheduler = dict(pipe.scheduler.config)
        with Shipped(form, place, model).applied(pipe) as shipped:
            edited = weights(shipped)
        assert all(torch.equal(before[name], weight) for name, weight in weights(pipe).items())
        assert dict(pipe.scheduler.config) == scheduler
        assert not pipe.get_list_adapters()
        changed = {name for name in before if not torch.equal(before[name], edited[name])}
        assert changed == {f"{path}.weight" for path in model.paths}
        stored = model.weight(model.paths[0]).dtype
        with load_edit(home / "run").applied(pipe):
            for name, weight in weights(pipe).items():
                # a LoRA is added in the pipeline's dtype, a checkpoint is rounded to its own
                exact = weight if form == "lora" else weight.to(stored).to(weight.dtype)
                assert torch.allclose(edited[name], exact, rtol=0, atol=1e-6), name
        assert all(torch.equal(before[name], weight) for name, weight in weights(pipe).items())


# --- what was given and what was mined --------------------------------------------------------------


def test_mined_words_do_not_count_as_given(tmp_path):
    line = ("erase", "spider", *QUICK[:-1], "mine=[{use: associates}]", *UNJUDGED)
    done = editforge(*line, "--output", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    for place in ("run", "run/package", "run/package/lora"):
        found = find(tmp_path / place, place)
        assert found.claims.erased[0].aliases == ()
        assert "tarantula" in load_edit(tmp_path / place).provenance["erased"][0]["mined"]
    line = ("evaluate", "run/package/lora", "--judge", "none", "--output", "report")
    assert editforge(*line, cwd=tmp_path, before=DRIFT).code == 0
    report = Report.load(tmp_path / "report")
    assert not report.aliases_given
    assert "aliases of spider were given to the eraser" not in report.notes
    assert {row["name"] for row in report.prompts if row["set"] == "alias"}


def test_what_an_earlier_edit_erased_is_judged_by_the_run_as_by_its_package(tmp_path):
    first = ("erase", "violin", *QUICK, *UNJUDGED, "--output", "first")
    assert editforge(*first, cwd=tmp_path).code == 0
    second = ("erase", "spider", *QUICK, "--from", "first", "--judge", "none", "--output", "both")
    assert editforge(*second, cwd=tmp_path, before=DRIFT).code == 0
    run = Report.load(tmp_path / "both" / "evaluate")
    assert [row.name for row in run.erased] == ["violin", "spider"]
    line = ("evaluate", "both/package", "--judge", "none", "--output", "report")
    assert editforge(*line, cwd=tmp_path, before=DRIFT).code == 0
    assert Report.load(tmp_path / "report").prompts == run.prompts


# --- the strength of a loaded edit ------------------------------------------------------------------


def test_a_run_and_its_package_load_as_the_same_edit(tmp_path):
    line = ("erase", "violin", *QUICK, *UNJUDGED, "--strength", "3", "--output", "run")
    assert editforge(*line, cwd=tmp_path).code == 0
    run = load_edit(tmp_path / "run")
    assert run.strength == 3
    for place in ("package", "package/lora", f"package/lora/{LORA}"):
        edit = load_edit(tmp_path / "run" / place)
        assert run.difference(edit) < 1e-6
        assert edit.provenance == run.provenance
    assert load_edit(tmp_path / "run" / "edit").strength == 3  # by any of its places


def test_a_run_that_did_not_come_to_its_end_is_no_edit(tmp_path):
    line = ("erase", "violin", *QUICK, *UNJUDGED, "--output", "run")
    assert editforge(*line, cwd=tmp_path).code == 0
    (tmp_path / "run" / "edit" / "weight_edit.safetensors").unlink()
    with pytest.raises(PackageError, match="not finished"):
        load_edit(tmp_path / "run")


# --- tiny Stable Diffusion: single file, kohya, variant -----------------------------------------------


@pytest.fixture
def few(monkeypatch):
    counts = Counts(name=2, least=2, names=1, images=1, reference=0)
    small = functools.partial(gate.evaluate_gate, counts=counts, dtype="float32")
    monkeypatch.setattr(gate, "evaluate_gate", small)
    sampler = sampling.Sampler(steps=2, guidance=4.0, batch=8)
    monkeypatch.setattr(sampling, "default_sampler", lambda family: sampler)


def tiny_run(folder, base, exports, **model):
    """A run on a tiny model: drawn, not judged."""
    overrides = {
        "concepts": [{"name": "violin", "aliases": ["cello"]}],
        "model": {"id": str(base), "family": family_file("sd1"), "device": "cpu", **model},
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar", "piano"],
        "seed": 2,
        "strength": 4,
        "evaluate": {"judge": None},
        "package": {"export": exports},
    }
    return execute(resolve("uce", overrides, ["mine=null", *LOOSE]), folder)


def numbers(report):
    return {name: drift.value for name, drift in report.metrics["drift"].items()}


def test_every_form_of_stable_diffusion_draws_what_its_run_drew(few, tmp_path):
    base = save_tiny(tmp_path / "base", "sd1", safety=True)
    exports = ["lora", "unet", "pipeline", "single-file"]
    told = tiny_run(tmp_path / "run", base, exports).report
    package = tmp_path / "run" / "package"
    kohya = next(path for path in (package / "lora").glob("*.safetensors") if path.name != LORA)
    single = next((package / "single-file").glob("*.safetensors"))
    given = {"model": str(base), "family": family_file("sd1"), "device": "cpu"}
    places = [package / export for export in exports]
    for place in (tmp_path / "run", *places, kohya, single):
        again = evaluate_saved(str(place), judge=None, **given)
        assert numbers(again) == pytest.approx(numbers(told), abs=1e-4), place
        assert (again.prompts, again.seeds) == (told.prompts, told.seeds)
        assert again.erased[0].aliases == ("cello",)
    near = [row["name"] for row in told.prompts if row["set"] == "near"]
    assert near == ["guitar"]  # the preserve list is what its near names are
    assert numbers(told)["name_pixel"] > 1e-3  # the control: something was drawn differently


def test_the_variant_of_the_base_is_remembered(few, tmp_path):
    base = save_tiny(tmp_path / "base", "sd1", "fp16", torch.float16)
    exports = ["lora", "unet", "pipeline"]
    tiny_run(tmp_path / "run", base, exports, variant="fp16", dtype="float32")
    for export in exports:
        found = find(tmp_path / "run" / "package" / export, export)
        assert found.loading == {"variant": "fp16", "dtype": "float32"}
        place = str(tmp_path / "run" / "package" / export)
        given = {"model": str(base), "family": family_file("sd1"), "judge": None}
        assert evaluate_saved(place, device="cpu", **given).dtype == "float32"
        with pytest.raises(EditforgeError):
            evaluate_saved(place, device="cpu", variant="bf16", **given)


# --- a stranger's artifact ----------------------------------------------------------------------------


@pytest.fixture
def stray(home, tmp_path):
    """Our LoRA file without what stood beside it."""
    shutil.copy(home / "run" / "package" / "lora" / LORA, tmp_path / "eraser.safetensors")
    return tmp_path / "eraser.safetensors"


def test_a_lora_alone_is_refused_with_a_command_that_works(stray, tmp_path):
    done = editforge("evaluate", stray.name, cwd=tmp_path)
    assert done.code == 2
    for word in ("does not say what it erases", "--concept", "--model"):
        assert word in done.err
    command = done.err.strip().splitlines()[-1].split("next:")[1]
    words = shlex.split(command)
    assert words == [
        "editforge",
        "evaluate",
        "eraser.safetensors",
        "--concept=violin",
        "--model=emoji",
    ]
    line = (*words[1:], "--concept", "owl", "--judge", "none", "--output", "report")
    done = editforge(*line, cwd=tmp_path, before=DRIFT)
    assert done.code == 0, done.err
    report = Report.load(tmp_path / "report")
    assert [row.name for row in report.erased] == ["violin", "owl"]
    assert report.erased[0].target is None
    assert report.seeds["gate"] == 0


@pytest.mark.parametrize("form", ["unet", "pipeline"])
def test_a_checkpoint_alone_needs_concepts_and_a_base(home, tmp_path, form):
    shutil.copytree(home / "run" / "package" / form, tmp_path / form)
    (tmp_path / form / "editforge.json").unlink()
    with pytest.raises(PackageError, match="does not say what it erases"):
        find(tmp_path / form, form)
    with pytest.raises(PackageError, match="cannot name its base"):
        evaluate_saved(str(tmp_path / form), concepts=["violin"])
    found = find(tmp_path / form, form, ("violin",), "object")
    assert (found.form, found.claims.concepts[0].name) == (form, "violin")


def test_a_lora_of_another_model_is_refused_before_anything_is_drawn(few, stray):
    base = {"model": str(tiny_folder("sd1")), "family": family_file("sd1"), "judge": None}
    with pytest.raises(PackageError, match="the base"):
        evaluate_saved(str(stray), concepts=["violin"], **base)


def test_keys_that_a_pipeline_would_skip_are_refused(stray):
    tensors = read_tensors(stray)
    bare = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
    write_safetensors(stray, bare, {})
    with pytest.raises(PackageError, match="another component"):
        evaluate_saved(str(stray), concepts=["violin"], model="emoji")


def test_a_denoiser_with_a_weight_missing_is_refused(home, tmp_path):
    shutil.copytree(home / "run" / "package" / "unet", tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(file)
    tensors.pop("conv_in.bias")
    write_safetensors(file, tensors, {})
    with pytest.raises(PackageError, match="1 differ"):
        evaluate_saved(str(tmp_path / "unet"))


def test_a_package_that_names_its_concepts_takes_no_others(home):
    with pytest.raises(RecipeError, match="says itself"):
        evaluate_saved(str(home / "run" / "package" / "lora"), concepts=["owl"])


@pytest.mark.parametrize(
    ("concepts", "kind"), [(["violin\nowl"], "object"), (["!"], "object"), (["violin"], "thing")]
)
def test_no_concept_is_no_concept(stray, concepts, kind):
    with pytest.raises(RecipeError, match="no concept"):
        evaluate_saved(str(stray), concepts=concepts, kind=kind, model="emoji")


# --- what must be refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lora", "unet", "pipeline"])
def test_another_base_is_refused(home, form):
    base = {"model": str(tiny_folder("sd1")), "family": family_file("sd1")}
    with pytest.raises(PackageError, match="another base model"):
        evaluate_saved(str(home / "run" / "package" / form), **base)


def test_where_nothing_is_the_answer_says_what_could_be_there(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(PackageError, match=r"nothing to judge here|no such folder"):
            evaluate_saved(str(place))
    (tmp_path / "x.bin").write_bytes(b"pickled")
    with pytest.raises(PackageError, match="safetensors alone"):
        evaluate_saved(str(tmp_path / "x.bin"))
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(PackageError, match="more than one"):
        evaluate_saved(str(tmp_path))


def test_a_suffixed_file_of_a_folder_is_refused_with_the_folder(home, tmp_path):
    folder = tmp_path / "unet"
    shutil.copytree(home / "run" / "package" / "unet", folder)
    name = "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(folder / "diffusion_pytorch_model.safetensors", folder / name)
    edit_facts(folder, lambda body: body["artifact"]["weights"].append(name))
    with pytest.raises(PackageError, match="loaded whole"):
        find(folder / name, name)
    assert find(folder / "diffusion_pytorch_model.safetensors", "it").place == folder


def edit_facts(folder, change):
    body = json.loads((folder / "editforge.json").read_text())
    change(body)
    (folder / "editforge.json").write_text(json.dumps(body))


@pytest.fixture
def lora(home, tmp_path):
    shutil.copytree(home / "run" / "package" / "lora", tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "1" * 5000, '{"schema": 3}', "\ud800"]
)
def test_a_damaged_editforge_json_is_refused(lora, text):
    (lora / "editforge.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for place in (lora, lora.parent, lora / LORA):
        for read in (lambda where: evaluate_saved(str(where)), load_edit):
            with pytest.raises(PackageError, match=r"editforge\.json"):
                read(place)


def at(*path, value):
    """Set one value of the file."""

    def change(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


ROW = ("provenance", "erased", 0)
HOSTILE = {
    "a name of two lines": at(*ROW, "name", value="violin\nInjected: header"),
    "a name that is no text": at(*ROW, "name", value=3),
    "a name without a letter": at(*ROW, "name", value="--"),
    "an endless name": at(*ROW, "name", value="x" * 10_000),
    "an alias of two lines": at(*ROW, "aliases", value=["fiddle\r\nX"]),
    "aliases that are a text": at(*ROW, "aliases", value="fiddle"),
    "no such kind": at(*ROW, "kind", value="virus"),
    "a target with an escape": at(*ROW, "target", value="trumpet\x1b[2J"),
    "a row that is no row": at(*ROW, value="violin"),
    "rows that are no rows": at("provenance", "erased", value="violin"),
    "a preserved word of two lines": at("provenance", "preserve", value=["a\nb"]),
    "a seed in words": at("provenance", "seed", value="3"),
    "a seed below zero": at("provenance", "seed", value=-1),
    "half a seed": at("provenance", "seed", value=0.5),
    "no provenance": at("provenance", value=None),
    "another schema": at("schema", value="editforge.package/9"),
    "no such export": at("export", value="pickle"),
    "weights above": at("artifact", "weights", value=["../../evil.safetensors"]),
    "weights at the root": at("artifact", "weights", value=["/etc/evil.safetensors"]),
    "weights of Windows": at("artifact", "weights", value=["..\\evil.safetensors"]),
    "pickled weights": at("artifact", "weights", value=["evil.bin"]),
    "no weights": at("artifact", "weights", value=[]),
    "weights that are a text": at("artifact", "weights", value="evil.safetensors"),
    "weights that are not there": at("artifact", "weights", value=["evil.safetensors"]),
    "a variant that leaves": at("base", "variant", value="x/../../y"),
    "a digest that is none": at("base", "sha256", value="../x"),
    "a strength that is none": at("edit", "strength", value="strong"),
    "an infinite strength": at("edit", "strength", value=float("inf")),
    "a recipe that is no YAML": at("recipe", value="!!python/object/apply:os.system [id]"),
    "a recipe of another dtype": at("recipe", value="model: {dtype: object}"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_editforge_json_is_refused(lora, tmp_path, change):
    (tmp_path / "evil.safetensors").write_bytes((lora / LORA).read_bytes())
    edit_facts(lora, change)
    for read in (lambda where: evaluate_saved(str(where)), load_edit):
        with pytest.raises(EditforgeError) as refused:
            read(lora)
        assert "\x1b" not in str(refused.value)
        assert "Injected: header" not in str(refused.value).splitlines()


@pytest.mark.parametrize("label", ["../../etc", "/etc", "local:0123456789ab", "", "a b/c"])
def test_a_base_that_is_no_address_is_never_opened(lora, label):
    edit_facts(lora, at("base", "label", value=label))
    with pytest.raises(PackageError, match="cannot name its base"):
        evaluate_saved(str(lora))


def test_weights_that_are_cut_short_are_refused(home, tmp_path):
    for form, name in (("lora", LORA), ("unet", "diffusion_pytorch_model.safetensors")):
        folder = tmp_path / form
        shutil.copytree(home / "run" / "package" / form, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:-4])
        with pytest.raises(PackageError, match="cut short"):
            evaluate_saved(str(folder))


# --- from the Hub -------------------------------------------------------------------------------------


def test_a_hub_id_is_downloaded_and_judged_like_its_folder(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # see hub_server
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as hub:
        client = HfApi(endpoint=hub.url)
        push_package(lora, "ann/violin", allow_failed=True, say=str, client=client)
        close_session()
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        code = DRIFT + "from editforge.cli.main import main; main()"
        line = ("evaluate", "ann/violin", "--judge", "none", "--output", "report")
        done = fresh("-c", code, *line, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "next: editforge verify ann/violin" in done.stderr
    report = Report.load(tmp_path / "report")
    assert (report.erased[0].aliases, report.seeds["gate"]) == (("fiddle",), 3)
