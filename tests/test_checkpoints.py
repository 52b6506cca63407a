"""Every kind of checkpoint that people have: in, erased, out in every form, loaded again.

`python -m tests.test_checkpoints` writes the table of `docs/checkpoints.md` from what these tests see.
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from editforge.families.config import ModelConfig
from editforge.families.draw import Shown, sample
from editforge.families.open import open_model
from editforge.families.sampling import own_sampler
from editforge.families.schema import TextSlice, load_family
from editforge.ground.disk import dump_yaml
from editforge.ground.errors import EditforgeError
from editforge.ground.files import read_header
from editforge.package.base import Weights
from editforge.package.exports import check_exports, exporter
from editforge.run.plan import plan
from tests.kinds import KINDS, build
from tests.models import LOOSE, family_file, recipe, solved
from tests.tiny import TEXT_WIDTHS

PAGE = Path(__file__).parent.parent / "docs" / "checkpoints.md"
FORMS = ("lora", "pipeline", "single-file")  # `unet` writes the folder's denoiser
_folder = tempfile.TemporaryDirectory(prefix="editforge-kinds-")


@cache
def refiner_family() -> str:
    shipped = load_family("sdxl-refiner")
    width = TEXT_WIDTHS["sdxl"][1]
    text = tuple(
        TextSlice.model_validate({**part.model_dump(), "width": width}) for part in shipped.text
    )
    match = shipped.match.model_copy(update={"text_width": width})
    family = shipped.model_copy(update={"text": text, "match": match})
    path = Path(_folder.name) / "sdxl-refiner.yaml"
    path.write_text(dump_yaml(family.model_dump(mode="json")))
    return str(path)


def tiny_families():
    """The shipped families at the tiny models' widths: which one a model is of is found, not told."""
    files = [*(family_file(kind) for kind in ("sd1", "sd2", "sdxl")), refiner_family()]
    return patch("editforge.families.fits.shipped_families", lambda: files)


@cache
def seen(name: str) -> dict:
    """What happens to one kind: what it is read as, and how far each form is from base plus edit."""
    kind = KINDS[name]
    place = Path(_folder.name) / f"{list(KINDS).index(name)}"
    path, options = build(place, kind)
    config = ModelConfig(id=str(path), device="cpu", **options)
    with tiny_families(), open_model(config) as model:
        made = recipe(
            "violin", {"target": {"use": "fixed", "text": "trumpet"}}, *LOOSE, method="uce"
        )
        edit = solved(model, made)[2].edit
        sampler = model.sampler
        shipped = own_sampler(load_family(model.family.name), model.config, model.scheduler)
        drawn = sample(
            model.pipeline(),
            [Shown("a", "a violin", (0,))],
            type(sampler)(min(2, sampler.steps), sampler.guidance, scheduler=sampler.scheduler),
            progress=False,
        )
        weights = Weights.of(model)
        found = {
            "family": model.family.name,
            "class": model.pipeline_class,
            "predicts": model.prediction_type,
            "dtype": weights.dtype(next(iter(weights.where))),
            "distilled": not model.standard,
            "steps": shipped.steps,
            "guidance": shipped.guidance,
            "drawn": drawn.shape,
            "maps": len(model.paths),
            "forms": {},
        }
        for form in FORMS:
            try:
                check_exports(model, [form])
            except EditforgeError as refusal:
                found["forms"][form] = refusal.what
                continue
            written = exporter(form).write(model, edit, place / form, "tiny-erased", "base")
            file = place / form / written.facts["weights"][0]
            named = place / form if form == "pipeline" else file
            pipe = exporter(form).load(model, named, torch.float32)
            own = {f"unet.{name}": one for name, one in pipe.unet.state_dict().items()}
            gaps = [
                float(
                    (own[f"{p}.weight"].double() - model.weight(p).double() - edit.delta(p)).norm()
                )
                / float(edit.delta(p).norm())
                for p in edit.factors
            ]
            found["forms"][form] = max(gaps)
            found[form] = {
                "class": type(pipe).__name__,
                "predicts": pipe.scheduler.config.prediction_type,
                "kohya": written.facts.get("kohya"),
                "stored": stored_in(file),
                "says": {"v_pred", "ztsnr", "edm_mean", "edm_std"} & set(read_header(file)[1]),
            }
    return found


def stored_in(file: Path) -> set[str]:
    return {info.dtype for info in read_header(file)[1].values() if info.shape not in ((0,), ())}


TAKEN = [name for name, kind in KINDS.items() if kind.refused is None]
REFUSED = [name for name, kind in KINDS.items() if kind.refused is not None]


@pytest.mark.parametrize("name", TAKEN)
def test_a_checkpoint_is_read_as_what_it_is(name):
    found = seen(name)
    expected = {
        "class": load_family(KINDS[name].base).match.pipeline,
        "predicts": "epsilon",
        "dtype": torch.float32,
        "distilled": False,
        **KINDS[name].reads,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["drawn"][0] == 1
    assert found["maps"] > 0


@pytest.mark.parametrize("name", TAKEN)
def test_every_form_of_it_holds_the_base_and_the_edit(name):
    found = seen(name)
    written = {form: gap for form, gap in found["forms"].items() if not isinstance(gap, str)}
    # 16 bits round the weight, which is much larger than the change
    limit = 1e-4 if found["dtype"] == torch.float32 else 0.2
    assert {"lora", "pipeline"} <= set(written)
    assert all(gap < limit for gap in written.values()), written
    for form in ("pipeline", "single-file"):
        if form in found:
            assert found[form]["class"] == found["class"]
    assert found["pipeline"]["predicts"] == found["predicts"]
    short = {torch.float32: "F32", torch.float16: "F16"}[found["dtype"]]
    for form in set(written) - {"lora"}:
        assert found[form]["stored"] - {"I64"} == {short}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("SDXL, folder", set()),
        ("SDXL, v-prediction, folder", {"v_pred", "ztsnr"}),
        ("SDXL, v-prediction, one file (NoobAI)", {"v_pred", "ztsnr"}),
        ("SDXL with EDM (Playground 2.5), folder", {"edm_mean", "edm_std"}),
    ],
)
def test_one_file_says_how_it_is_sampled(name, keys):
    assert seen(name)["single-file"]["says"] == keys


@pytest.mark.parametrize(
    "name", ["SDXL refiner, folder", "LCM of SD 1.x, folder", "InstructPix2Pix, folder"]
)
def test_what_is_drawn_unlike_others_can_be_planned(name, tmp_path):
    path, options = build(tmp_path, KINDS[name])
    told = {"model": {"id": str(path), "device": "cpu", **options}}
    fixed = {"target": {"use": "fixed", "text": "trumpet"}}
    with tiny_families():
        assert "picture" in plan(recipe("violin", told | fixed, method="uce"), tmp_path).text()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_name_with_a_way_out(name, tmp_path):
    kind = KINDS[name]
    path, options = build(tmp_path, kind)
    config = ModelConfig(id=str(path), device="cpu", **options)
    with tiny_families(), pytest.raises(EditforgeError) as caught, open_model(config):
        pass
    assert kind.refused in str(caught.value)
    assert caught.value.next or caught.value.allowed


def rows() -> list[str]:
    lines = [
        "| checkpoint | in | drawn with | LoRA | folder | one file |",
        "|---|---|---|---|---|---|",
    ]
    for name in TAKEN:
        found = seen(name)
        own = [f"`{found['family']}`"]
        if found["class"] != load_family(found["family"]).match.pipeline:
            own.append(f"`{found['class']}`")
        own += ["v-prediction"] * (found["predicts"] != "epsilon") + [
            "its own block counts"
        ] * found["distilled"]
        own += ["float16"] * (found["dtype"] == torch.float16)
        cells = []
        for form in FORMS:
            gap = found["forms"][form]
            kohya = " and kohya" if form == "lora" and found["lora"]["kohya"] else ""
            cells.append(f"refused: {gap}" if isinstance(gap, str) else f"yes{kohya}")
        drawn = f"{found['steps']} steps, guidance {found['guidance']:g}"
        lines.append(f"| {name} | {', '.join(own)} | {drawn} | {' | '.join(cells)} |")
    lines += ["", "| checkpoint | refused with |", "|---|---|"]
    for name in REFUSED:
        with tempfile.TemporaryDirectory() as place:
            path, options = build(Path(place), KINDS[name])
            try:
                with (
                    tiny_families(),
                    open_model(ModelConfig(id=str(path), device="cpu", **options)),
                ):
                    raise AssertionError(name)
            except EditforgeError as refusal:
                lines.append(f"| {name} | {refusal.what}; {refusal.next or refusal.allowed} |")
    return lines


def test_the_page_says_what_these_tests_see():
    text = PAGE.read_text()
    assert [line for line in rows() if line not in text] == []


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition("<!-- table -->\n")
    _, _, tail = rest.partition("<!-- end -->")
    PAGE.write_text(head + "<!-- table -->\n" + "\n".join(rows()) + "\n<!-- end -->" + tail)
    print(f"wrote {PAGE.name}", file=sys.stderr)
