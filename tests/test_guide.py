"""The third system's way through the house: a guard that changes no weight, from recipe to package."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import editforge
from editforge.artifacts.eraser import Eraser
from editforge.artifacts.sums import verify_folder
from editforge.artifacts.weight_edit import WeightEdit
from editforge.emoji import load_pipeline
from editforge.evaluate import gate
from editforge.evaluate.prompts import Counts, gate_prompts
from editforge.families.draw import Sampler, sample
from editforge.ground.errors import EditforgeError, PackageError, RecipeError
from editforge.ground.files import read_header, read_tensors, write_safetensors
from editforge.recipe import registry
from editforge.recipe.layers import resolve
from editforge.registry import register
from editforge.run.found import find
from editforge.run.order import execute
from editforge.run.plan import plan
from editforge.run.saved import evaluate_saved
from editforge.stages import Context, Exporter, GuideInputs, StageConfig, Written


@dataclasses.dataclass(frozen=True)
class Hush:
    """A guard of prompts: names become another word before they are read. No weight is touched."""

    file: ClassVar[str] = "hush.safetensors"
    header: ClassVar[str] = "hush"

    words: Mapping[str, str]
    strength: float = 1.0
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def scaled(self, strength: float) -> "Hush":
        return dataclasses.replace(self, strength=self.strength * strength)

    def explained(self, facts: Mapping[str, Any]) -> "Hush":
        return dataclasses.replace(self, provenance={**facts, **self.provenance})

    def described(self) -> dict[str, Any]:
        return {"strength": self.strength, "words": len(self.words)}

    @contextmanager
    def applied(self, pipe: Any) -> Any:
        read = pipe.encode_prompt

        def guarded(prompt, *args, **options):
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            for word, other in self.words.items() if self.strength else ():
                texts = [text.replace(f"a {word}", f"a {other}") for text in texts]
            return read(texts, *args, **options)

        pipe.encode_prompt = guarded
        try:
            yield pipe
        finally:
            del pipe.encode_prompt

    def save(self, path: Path) -> None:
        body = [dict(self.words), self.strength, dict(self.provenance)]
        write_safetensors(
            path, {"words": torch.tensor(len(self.words))}, {"hush": json.dumps(body)}
        )

    @classmethod
    def load(cls, path: Path) -> "Hush":
        if "hush" not in read_header(path)[0]:
            raise PackageError("no hush", got=path.name)
        assert int(read_tensors(path)["words"]) >= 0
        return cls(*json.loads(read_header(path)[0]["hush"]))


class HushConfig(StageConfig):
    """Options of `guide: hush`."""

    becomes: str = "trumpet"


def hush(inputs: GuideInputs, config: HushConfig, context: Context) -> Hush:
    """Each name and alias becomes one word."""
    names = [name for concept in inputs.concepts for name in concept.names]
    return Hush(dict.fromkeys([*names, "fiddle", "viola"], config.becomes))


class HushExport(Exporter):
    """The guard as its own file."""

    name, accepts, tags = "hush", Hush, ("guard",)

    def usage(self):
        return "Load `{{ facts.artifact.weights[0] }}` with hush.\n"

    def write(self, model, eraser, folder, title, dtype):
        eraser.save(folder / eraser.file)
        return Written({"weights": [eraser.file]})

    @contextmanager
    def applied(self, model, place, pipe):
        file = place / Hush.file if place.is_dir() else place
        with Hush.load(file).applied(model.pipeline().to(pipe.device)) as guarded:
            yield guarded


HUSH = {
    "concepts": [{"name": "violin"}],
    "mine": None,
    "target": None,
    "edit": None,
    "guide": {"use": "hush"},
    "package": {"export": ["hush"]},
}
COUNTS = Counts(name=8, least=4, names=2, images=2, reference=4)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Both, for the tests of this file alone."""
    register("guide", "hush")(hush)
    register("export", "hush")(HushExport)
    yield
    for key in (("guide", "hush"), ("guide", "mute"), ("export", "hush")):
        registry._loaded.pop(key, None)


@pytest.fixture(scope="module")
def few():
    """The gate with few pictures: its verdict is asked about here, not its power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "evaluate_gate", partial(gate.evaluate_gate, counts=COUNTS))
        yield


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hush") / "run"
    return execute(resolve(HUSH), folder, command="editforge run recipe.yaml --output run")


def test_a_guard_goes_from_recipe_to_package_without_a_weight(run):
    made = sorted(path.name for path in run.folder.iterdir() if path.is_dir())
    assert made == ["evaluate", "guide", "log", "package"]
    assert [path.name for path in (run.folder / "guide").iterdir()] == ["hush.safetensors"]
    assert run.report.passed is True
    assert run.report.metrics["presence_name"]["edited"].value == 0
    assert run.targets is None
    package = run.folder / "package" / "hush"
    facts = json.loads((package / "editforge.json").read_text())
    assert facts["edit"] == {"strength": 1.0, "words": 3}
    assert facts["provenance"]["erased"][0]["target"] is None
    card = (package / "README.md").read_text()
    assert "Load `hush.safetensors` with hush." in card
    assert "- guard\n" in card
    assert verify_folder(run.folder / "package") == []


def test_a_guard_is_read_back_as_what_it_is(run):
    assert isinstance(run.eraser, Eraser)
    for place in (run.folder, run.folder / "package", run.folder / "guide" / "hush.safetensors"):
        assert editforge.load_edit(place) == run.eraser
    for place in (run.folder / "guide", run.folder / "guide" / "hush.safetensors"):
        assert find(place, "hush").edit == run.eraser


def test_run_and_package_of_a_guard_get_the_same_verdict(run):
    rates = [(row.name, row.set, row.base, row.edited) for row in run.report.names]
    report = evaluate_saved(str(run.folder / "package" / "hush"))
    assert report.verdict.status == run.report.verdict.status
    assert [(row.name, row.set, row.base, row.edited) for row in report.names] == rates


def test_a_finished_guard_is_not_made_again_and_a_changed_one_is(run):
    said: list[str] = []
    stamp = (run.folder / "guide" / "hush.safetensors").stat().st_mtime_ns
    command = "editforge run recipe.yaml --output run"
    execute(resolve(HUSH), run.folder, command=command, say=said.append)
    assert not [line for line in said if "redone" in line]
    assert (run.folder / "guide" / "hush.safetensors").stat().st_mtime_ns == stamp
    other = resolve(HUSH, {"guide": {"becomes": "guitar"}, "evaluate": None})
    execute(other, run.folder, command=command, say=said.append, replace=True)
    assert "guide: redone, something it depends on changed" in said


def test_a_guard_in_memory_leaves_the_pipeline_bit_for_bit():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompts = gate_prompts(resolve(HUSH).concepts, "emoji", counts=COUNTS).prompts[:2]
    draw = partial(sample, prompts=prompts, sampler=Sampler(steps=2), progress=False)
    before = draw(pipe)
    guard = editforge.erase(pipe, "violin", method="default", options=sets(HUSH))
    assert isinstance(guard, Hush)
    with guard.applied(pipe) as guarded:
        assert not np.array_equal(draw(guarded), before)
    with guard.scaled(0).applied(pipe) as idle:
        assert np.array_equal(draw(idle), before)
    assert np.array_equal(draw(pipe), before)


def sets(recipe):
    return [f"{key}={json.dumps(value)}" for key, value in recipe.items() if key != "concepts"]


def test_the_plan_of_a_guard_names_its_stages(tmp_path):
    stages = [name for name, _, _ in plan(resolve(HUSH), tmp_path / "run").stages]
    assert stages == ["guide", "evaluate", "package"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edit": {"use": "ridge"}, "target": {"use": "fixed"}}, "guide changes no weight"),
        ({"align": {"use": "esd"}, "target": {"use": "fixed"}}, "guide changes no weight"),
        ({"package": {"export": ["lora"]}}, "lora"),
        ({"continue_from": "runs/other"}, "continue_from"),
        ({"guide": {"use": "hussh"}}, "did you mean hush"),
        ({"guide": None}, "nothing would be erased"),
        ({"guide": {"use": "hush", "loud": 1}}, "loud"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_when_it_is_read(change, said):
    with pytest.raises(RecipeError, match=said):
        resolve(HUSH, change)


def test_a_weight_edit_is_not_exported_as_a_guard():
    with pytest.raises(RecipeError, match="hush") as caught:
        resolve(
            "default", {"concepts": [{"name": "violin"}], "package": {"export": ["lora", "hush"]}}
        )
    assert "WeightEdit" in str(caught.value)


def test_a_guide_must_return_an_eraser():
    def mute(inputs: GuideInputs, config: HushConfig, context: Context) -> WeightEdit: ...
    def deaf(inputs: GuideInputs, config: HushConfig, context: Context) -> dict: ...

    register("guide", "mute")(mute)  # a WeightEdit is one, too
    with pytest.raises(EditforgeError, match="returns no eraser"):
        register("guide", "deaf")(deaf)
