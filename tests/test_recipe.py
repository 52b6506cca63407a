"""Recipes: layers in order, unknown keys answered, concepts consistent, text that round-trips."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from editforge.artifacts.concept_file import read_concepts
from editforge.ground.disk import dump_yaml, parse_yaml
from editforge.ground.errors import EditforgeError, RecipeError
from editforge.ground.resources import resource_folder
from editforge.recipe.layers import resolve
from editforge.recipe.methods import methods
from editforge.recipe.recipe import Recipe

VIOLIN = {"concepts": [{"name": "violin"}]}


def with_preset(name):
    return [(name, preset) for preset in ("editforge", *methods()[name]["presets"])]


@pytest.mark.parametrize(
    ("method", "preset"), [pair for name in methods() for pair in with_preset(name)]
)
def test_every_shipped_method_and_preset_resolves_and_loads_to_itself(method, preset, tmp_path):
    made = resolve(method, VIOLIN, preset=preset)
    assert (made.method, made.preset) == (method, preset)
    path = tmp_path / "recipe.yaml"
    path.write_text(made.to_yaml())
    assert resolve(str(path)) == made
    assert resolve(str(path)).to_yaml() == made.to_yaml()


def test_shipped_methods_say_what_they_are():
    assert {"default", "uce"} <= set(methods())
    for about in methods().values():
        assert {"idea", "when", "paper", "known_failure"} <= set(about)


def test_the_published_presets_have_the_published_numbers():
    new, old = (resolve("uce", VIOLIN, preset=f"official-{year}") for year in (2025, 2023))
    for made in (new, old):
        assert (made.edit.ridge, made.edit.ridge_scale, made.edit.erase_weight) == (
            0.5,
            "absolute",
            1,
        )
        assert made.edit.background is None
        assert made.preserve == ()
        assert not made.target.preserve_target
        assert made.edit.null_vector == "bos"
    assert (new.edit.tokens, new.edit.preserve_weight, new.edit.preserve_empty) == (
        "subject",
        1,
        False,
    )
    assert (old.edit.tokens, old.edit.preserve_weight) == ("aligned", "inverse_count")
    assert (old.edit.preserve_tokens, old.edit.preserve_empty) == ("all", True)
    ours = resolve("uce", VIOLIN)
    assert (ours.edit.ridge, ours.edit.ridge_scale, ours.edit.null_vector) == (
        6.5e-4,
        "relative",
        "eot",
    )


# --- layers -------------------------------------------------------------------------------------


def test_later_layers_win(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "method: uce\npreset: official-2025\nconcepts: [{name: violin}]\nedit: {ridge: 0.7}\n"
    )
    made = resolve(str(path))
    assert (made.edit.ridge, made.edit.null_vector) == (0.7, "bos")
    assert resolve(str(path), {"edit": {"ridge": 0.8}}).edit.ridge == 0.8
    assert resolve(str(path), {"edit": {"ridge": 0.8}}, ["edit.ridge=0.9"]).edit.ridge == 0.9
    assert resolve(str(path), preset="editforge").edit.null_vector == "eot"


def test_another_implementation_starts_from_its_own_defaults():
    made = resolve("default", {**VIOLIN, "edit": {"use": "ridge"}})
    assert made.edit.use == "ridge"
    assert not hasattr(made.edit, "reach")
    assert resolve("default", VIOLIN, ["edit.use=ridge"]) == made
    kept = resolve("default", VIOLIN, ["edit.reach=1.1"])
    assert (kept.edit.use, kept.edit.reach) == ("mean-shift", 1.1)
    assert resolve("default", VIOLIN, ["edit.use=mean-shift"]).edit.reach != 1.0


def test_a_miner_alone_and_in_a_list_are_one():
    alone = resolve("default", {**VIOLIN, "mine": {"use": "vocabulary", "words": "tokenizer"}})
    listed = resolve("default", {**VIOLIN, "mine": [{"use": "vocabulary", "words": "tokenizer"}]})
    assert alone == listed
    assert resolve("default", VIOLIN, ["mine.k_closest=7"]).mine[0].k_closest == 7
    assert resolve("default", {**VIOLIN, "mine": None}).mine is None


@pytest.mark.parametrize(
    "text", ["edit.ridge=1e-3", "edit.ridge=1.0e-3", "edit.ridge=0.001", "edit.ridge=1E-3"]
)
def test_a_number_on_the_command_line_is_a_number(text):
    assert resolve("uce", VIOLIN, [text]).edit.ridge == pytest.approx(1e-3)


def test_a_number_that_yaml_takes_for_text_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("concepts: [{name: violin}]\nedit: {use: ridge, ridge: 1e-3}\n")
    with pytest.raises(RecipeError, match=r"edit.ridge is text to YAML") as caught:
        resolve(str(path))
    assert caught.value.allowed == "1.0e-3"


def test_a_name_or_a_commit_may_look_like_a_number():
    made = resolve(
        "default",
        {"concepts": [{"name": "1e3"}], "model": {"revision": "12e4567"}, "preserve": ["5e5"]},
    )
    assert (made.concepts[0].name, made.model.revision, made.preserve) == (
        "1e3",
        "12e4567",
        ("5e5",),
    )


# --- strictness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sets", "words"),
    [
        ({"edti": {}}, [], ["unknown key edti", "did you mean edit"]),
        ({}, ["edit.rigde=1"], ["unknown key edit.rigde", "did you mean ridge"]),
        ({}, ["mine.k_closet=1"], ["k_closet", "did you mean k_closest"]),
        ({"model": {"varient": "fp16"}}, [], ["model.varient", "did you mean variant"]),
        ({"evaluate": {"teir": "gate"}}, [], ["evaluate.teir", "did you mean tier"]),
        ({"package": {"exports": []}}, [], ["package.exports", "did you mean export"]),
        ({"concepts": [{"nmae": "x"}]}, [], ["concepts.0"]),
        ({"edit": {"use": "rigde"}}, [], ["edit has no 'rigde'", "did you mean ridge"]),
        ({"edit": "ridge"}, [], ["a stage is a mapping with `use`"]),
        ({"edit": None}, [], ["edit and align are both null"]),
        ({"seed": -1}, [], ["seed"]),
        ({"strength": float("nan")}, [], ["strength"]),
        ({"package": {"export": []}}, [], ["package.export"]),
        ({"package": {"export": ["ckpt"]}}, [], ["package.export"]),
        ({"evaluate": {"tier": "thorough"}}, [], ["evaluate.tier"]),
        ({}, ["edit.ridge"], ["--set takes key=value"]),
        ({}, ["edit.ridge=-1"], ["edit", "greater than or equal to 0"]),
        ({}, ["edit.ridge=.inf"], ["edit"]),
        ({"preserve": "guitar"}, [], ["preserve"]),
        ({"preserve": ["guitar", "Violin"]}, [], ["'Violin' is both erased and preserved"]),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(overrides, sets, words):
    resolve("default", {**VIOLIN, "edit": {"use": "ridge"}})
    with pytest.raises(EditforgeError) as caught:
        resolve("default", {**VIOLIN, "edit": {"use": "ridge"}, **overrides}, sets)
    for word in words:
        assert word in str(caught.value)


def test_unknown_methods_and_presets_are_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean uce"):
        resolve("uec", VIOLIN)
    with pytest.raises(RecipeError, match="did you mean official-2025"):
        resolve("uce", VIOLIN, preset="official-2052")
    with pytest.raises(RecipeError, match="has no preset"):
        resolve("uce", {**VIOLIN, "preset": {"a": 1}})
    with pytest.raises(RecipeError, match="no such file"):
        resolve("absent.yaml", VIOLIN)


def test_no_concept_is_answered_with_an_example():
    with pytest.raises(RecipeError, match="no concept to erase") as caught:
        resolve("default")
    assert caught.value.next == "editforge erase violin"


# --- concepts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["object", "style", "person", "broad"])
def test_a_concept_has_a_kind_and_aliases(kind):
    row = {"name": "van gogh", "aliases": ["vincent van gogh"], "kind": kind}
    (concept,) = resolve("default", {"concepts": [row]}).concepts
    assert concept.names == ("van gogh", "vincent van gogh")
    assert concept.kind == kind
    assert resolve("default", VIOLIN).concepts[0].kind == "object"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "violin"}, {"name": "Violin"}], "is erased twice"),
        ([{"name": "violin"}, {"name": "the violin"}], "is erased twice"),
        (
            [{"name": "violin", "aliases": ["fiddle"]}, {"name": "fiddle"}],
            "'fiddle' is erased twice",
        ),
        ([{"name": "violin", "aliases": ["violin"]}], "is erased twice"),
        ([{"name": ""}], "at least one letter or digit"),
        ([{"name": "!?"}], "at least one letter or digit"),
        ([{"name": " violin"}], "white space"),
        ([{"name": "van  gogh"}], "white space"),
        ([{"name": "van\ngogh"}], "white space"),
        ([{"name": "x" * 201}], "200"),
        ([{"name": "violin", "kind": "thing"}], "'object', 'style', 'person' or 'broad'"),
        ([{"name": "violin", "aliases": "fiddle"}], "aliases"),
        ([{"name": 3}], "string"),
        ([{"name": True}], "string"),
        ([], "concepts"),
    ],
)
def test_concepts_that_contradict_are_refused(rows, message):
    with pytest.raises(RecipeError) as caught:
        resolve("default", {"concepts": rows})
    assert message in str(caught.value)


def concept_file(tmp_path, text):
    path = tmp_path / "concepts.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- violin\n- van gogh\n", [("violin", (), "style"), ("van gogh", (), "style")]),
        ("[violin, 101]", [("violin", (), "style"), ("101", (), "style")]),
        (
            "- {name: violin, aliases: [fiddle], kind: object}\n- dog\n",
            [("violin", ("fiddle",), "object"), ("dog", (), "style")],
        ),
        ("- {name: 1984}", [("1984", (), "style")]),
    ],
)
def test_a_concept_file_holds_names_or_mappings(text, expected, tmp_path):
    rows = read_concepts(concept_file(tmp_path, text), "style")
    made = resolve("default", {"concepts": rows})
    assert [(c.name, c.aliases, c.kind) for c in made.concepts] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a list of concepts"),
        ("violin", "is not a list of concepts"),
        ("concepts: [violin]", "is not a list of concepts"),
        ("[]", "names no concept"),
        ("- [violin]", "no concept"),
        ("- {aliases: [x]}", "name"),
        ("- {name: violin, colour: red}", "colour"),
        ("- violin\n- violin\n", "stands twice"),
        ("- &a violin\n- *a\n", "aliases"),
        ("- {name: violin, name: dog}", "stands twice"),
    ],
)
def test_a_bad_concept_file_is_refused(text, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        resolve("default", {"concepts": read_concepts(concept_file(tmp_path, text), "object")})


# --- text ---------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(value=values)
@example(value="\x85")
@example(value={"a\u2028": ["x\u2029y"]})
def test_yaml_that_we_write_reads_back_as_it_was(value):
    assert parse_yaml(dump_yaml(value), "test") == value


@settings(deadline=None, max_examples=60)
@given(body=st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), values, max_size=4))
@example(body={"mine": [None]})
@example(body={"target": None})
def test_any_mapping_is_a_recipe_or_a_readable_refusal(body):
    with contextlib.suppress(EditforgeError):
        assert resolve({**VIOLIN, **body}).concepts


@settings(deadline=None, max_examples=60)
@given(key=st.text("abe._ditmnrg", max_size=12), value=st.text(max_size=8))
def test_any_setting_is_taken_or_refused(key, value):
    with contextlib.suppress(EditforgeError):
        assert resolve("default", VIOLIN, [f"{key}={value}"]).concepts


def test_recipes_in_the_checkout_are_the_ones_listed():
    assert {path.stem for path in Path(resource_folder("pipelines")).glob("*.yaml")} == set(
        methods()
    )


# --- what a refusal says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "what", "allowed", "step"),
    [
        (["edit=3"], "edit: a stage is a mapping", "", "editforge list stages"),
        (["target=null"], "target: a stage is a mapping", "", "editforge list stages"),
        (["align.use=ese"], "align has no 'ese'", "did you mean esd", "editforge list stages"),
        (["strength=big"], "strength cannot be this", "a valid number", None),
        (["seed=-1"], "seed cannot be this", "greater than or equal to 0", None),
        (["preserve=3"], "preserve cannot be this", "'auto' or a list", None),
        (["preserve=[violin]"], "'violin' is both erased and preserved", "", None),
        (["concepts=[{name: a, kind: b}]"], "concepts.0.kind", "'style', 'person' or 'broad'", None),
        (["concepts=[{name: ' a'}]"], "concepts.0.name: no leading", "", None),
        (["concepts=[]"], "no concept to erase", "", "editforge erase violin"),
        (["model=emoji"], "model cannot be this", "a mapping of id, revision", None),
        (["package.export=[]"], "package.export cannot be this", "at least 1", None),
        (["package.export=[zip]"], "package.export.0 cannot be this", "'single-file'", None),
        (["mine.k_closest=-4"], "mine.k_closest cannot be this", "equal to 1", None),
        (["edit.limits.residul=[1]"], "unknown key edit.limits.residul", "did you mean residual", None),
        (["edit.limits.residual=[1]"], "edit.limits.residual.1 is missing", "", None),
        (["edit.use=ridge", "edit.preserve_weight=x"], "edit.preserve_weight cannot be this",
         "a valid number or 'inverse_count'", None),
        (["method=uce"], "--set comes too late for the method", "", "--method uce"),
        (["preset=paper"], "--set comes too late for the preset", "", "--preset paper"),
    ],
)  # fmt: skip
def test_a_refused_value_names_its_place_what_is_allowed_and_no_step_that_does_not_help(
    sets, what, allowed, step
):
    with pytest.raises(EditforgeError) as caught:
        resolve("default", VIOLIN, sets)
    assert what in caught.value.what
    assert allowed in str(caught.value.allowed or "")
    assert caught.value.next == step
