"""Names from files and command lines are what their user meant, or the user is asked."""

from __future__ import annotations

import shlex
import sys

import pytest
import torch
from huggingface_hub.utils import validate_repo_id

import editforge
from editforge import emoji
from editforge.align.adapter import linear_paths
from editforge.align.denoiser import Denoiser
from editforge.artifacts.concept_file import read_concepts
from editforge.artifacts.doubtful import otherwise
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.cli.erase import ask, folder_name
from editforge.ground.disk import read_yaml
from editforge.ground.errors import RecipeError
from editforge.ground.names import filled, slug
from editforge.package.repository import release_name
from editforge.recipe.layers import resolve
from editforge.run.order import execute
from tests.models import opened
from tests.test_guards import one as guard_of
from tests.tiny import draw, tiny_pipeline

# --- files --------------------------------------------------------------------------------------

READ = {
    "a.yaml": (
        "- 007\n- 24:00\n- yes\n- 2024-01-01\n- 1e3\n- 0x1F\n",
        ["007", "24:00", "yes", "2024-01-01", "1e3", "0x1F"],
    ),
    "b.yaml": ("- \"Tyler, the Creator\"\n- {name: '(x)'}\n", ["Tyler, the Creator", "(x)"]),
    "c.json": ('["violin", 7, {"name": "x1"}]', ["violin", "7", "x1"]),
    "a.csv": (
        'name,kind\r\n\r\n"Tyler, the Creator",\r\n007,person\r\n',
        ["Tyler, the Creator", "007"],
    ),
    "b.csv": ("violin\n\n# no name\n007\n", ["violin", "007"]),
    "c.csv": ("Name\nviolin\n", ["violin"]),
    "d.csv": ("name;kind\nviolin;object\n", ["violin"]),
    "e.tsv": ("kind\tname\nobject\tviolin\n", ["violin"]),
    "a.txt": (
        '# I\r\n\r\n  violin \r\n007\r\nMickey Mouse (Disney)\r\n"a, b"\r\n小提琴\r\n"Weird Al" Y\r\n',
        ["violin", "007", "Mickey Mouse (Disney)", "a, b", "小提琴", '"Weird Al" Y'],
    ),
    "names": ("violin\n", ["violin"]),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", READ)
def test_names_are_read_as_they_are_written(name, mark, tmp_path):
    text, names = READ[name]
    (tmp_path / name).write_bytes((mark + text).encode())
    rows = read_concepts(tmp_path / name)
    assert [row["name"] for row in rows] == names
    assert [c.name for c in resolve("uce", {"concepts": rows}).concepts] == names


def test_aliases_and_kinds_of_a_row_are_its_own(tmp_path):
    (tmp_path / "a.csv").write_text("name,aliases,kind\nviolin,fiddle; x|y,style\ncello,,\n")
    (tmp_path / "a.yaml").write_text(
        "- {name: violin, aliases: [fiddle, no], kind: style}\n- {name: cello, aliases: 007}\n"
    )
    assert read_concepts(tmp_path / "a.csv", "person") == [
        {"name": "violin", "aliases": ["fiddle", "x", "y"], "kind": "style"},
        {"name": "cello", "aliases": [], "kind": "person"},
    ]
    rows = read_concepts(tmp_path / "a.yaml")
    assert [row["aliases"] for row in rows] == [["fiddle", "no"], ["007"]]


REFUSED = {
    "blank.yaml": ("- violin\n-\n- x\n", ["line 2", "no name"]),
    "null.yaml": ("- violin\n- {name: ~}\n", ["line 2", "no name"]),
    "empty.yaml": ('- violin\n- ""\n', ["line 2", "no name"]),
    "row.yaml": ("- violin\n- [x]\n", ["row 2"]),
    "tag.yaml": ("- !!int 7\n", ["row 1"]),
    "aliases.yaml": ("- {name: x, aliases: {a: b}}\n", ["row 1", "no text"]),
    "alias.yaml": ("- &a violin\n- *a\n", ["aliases (*name)"]),
    "key.yaml": ("- violin\n- {nmae: x}\n", ["line 2", "did you mean name"]),
    "dots.yaml": ("- violin\n- '...'\n", ["line 2", "letter or digit"]),
    "twice.yaml": ("- violin\n- x\n- {name: y, aliases: [a Violin]}\n", ["line 1", "line 3"]),
    "list.yaml": (
        "- x\n- violence, nudity\n",
        ["several", "line 2", '"violence, nudity" in quotes'],
    ),
    "kind.yaml": ("- {name: x, kind: thing}\n", ["line 1", "kind", "'person'"]),
    "words.yaml": ("violin\ncello\n", ["not a list", ".txt"]),
    "column.csv": ("name,alias\nviolin,x\n", ["line 1", "did you mean aliases"]),
    "header.csv": ("nmae,aliases\nviolin,x\n", ["line 1", "did you mean name"]),
    "other.csv": ("concept\nviolin\n", ["line 1", "a header is `name`"]),
    "wide.csv": ("name,kind\nviolin,object,x\n", ["line 2", "more columns"]),
    "blank.csv": ("name,kind\n\n,object\n", ["line 3", "no name"]),
    "open.csv": ('name,kind\n"violin,object\n', ["line 2", "not readable CSV"]),
    "list.csv": ("violence, nudity, harm\n", ["several: violence, nudity, harm", "line 1"]),
    "weight.csv": ("name,kind\n(violin:1.2),\n", ["prompt's syntax", "line 2"]),
    "none.csv": ("name,kind\n", ["names no concept"]),
    "rows.txt": ("- violin\n", ["line 1", ".yaml"]),
    "behind.txt": ("violin # loud\n", ["line 1", "comment"]),
    "twice.txt": ("violin\n\nViolin\n", ["line 1", "line 3"]),
    "hidden.txt": ("violin\nvio\u200blin\n", ["line 2", "invisible"]),
    "nul.txt": ("vio\0lin\n", ["line 1", "control"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_list_of_names_is_refused_with_its_line(name, tmp_path):
    text, words = REFUSED[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_concepts(tmp_path / name)
    assert [word for word in words if word not in str(caught.value)] == []


def test_names_that_a_recipe_lost_are_refused_with_the_way_out():
    with pytest.raises(RecipeError, match="quotes") as caught:
        resolve("uce", {"concepts": [{"name": 7}]})
    assert caught.value.what.startswith("concepts.0.name")


# --- perhaps no name ------------------------------------------------------------------------------

PERHAPS = {
    "violence, nudity, harm": ["violence", "nudity", "harm"],
    "小提琴、吉他": ["小提琴", "吉他"],
    "violin; cello": ["violin", "cello"],
    "(violin:1.2)": ["violin"],
    "violin:1.2": ["violin"],
    "[violin]": ["violin"],
    "((x))": ["x"],
    "[a|b]": ["a", "b"],
    "(a, b:1.2)": ["a", "b"],
    "<lora:x:0.8>": [],
    "<lora:x:0.8> violin": ["violin"],
    "violin AND x": ["violin", "x"],
    "violin BREAK": ["violin"],
}
PLAIN = (
    *("Mickey Mouse (Disney)", "10,000 Maniacs", "24:00", "Mission: Impossible", "sand and sea"),
    *(
        "Wham!",
        "P!nk",
        "AC/DC",
        "50 Cent",
        "will.i.am",
        "Kesha?",
        "R2-D2",
        "C++",
        "émile",
        "小提琴",
    ),
)


@pytest.mark.parametrize("name", PERHAPS)
def test_a_list_or_a_prompts_syntax_is_asked_about_with_both_ways_out(name, monkeypatch):
    found = PERHAPS[name]
    assert otherwise(name) == found
    monkeypatch.setattr(sys, "argv", ["editforge", "erase", name, "--seed", "1"])
    with pytest.raises(RecipeError) as caught:
        ask(name, as_written=False)
    as_one = caught.value.next.partition(": ")[2]
    assert shlex.split(as_one) == ["editforge", "erase", name, "--seed", "1", "--as-written"]
    ask(name, as_written=True)
    if found:
        other = shlex.split(str(caught.value.allowed).partition(": ")[2])
        assert other == ["editforge", "erase", *found, "--seed", "1"]
        ask(*found, as_written=False)
    with pytest.raises(RecipeError) as caught:
        editforge.erase(None, [name])
    assert f"[{{'name': {name!r}}}]" in caught.value.next


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_is_not_asked_about(name):
    assert otherwise(name) is None


@pytest.mark.parametrize("words", [["--preserve", "a, b"], ["--preserve=a, b"]])
def test_a_list_behind_an_option_stays_behind_it(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["editforge", "erase", "violin", *words])
    with pytest.raises(RecipeError) as caught:
        ask("violin", "a, b", as_written=False)
    assert "erase violin --preserve=a --preserve=b" in str(caught.value.allowed)


# --- slugs ----------------------------------------------------------------------------------------

NAMES = [
    *PLAIN,
    *(
        "C",
        "C#",
        "吉他",
        "emile",
        "Émile!",
        "!!!",
        "???",
        "وردة",
        "Wham",
        "AC DC",
        "straße",
        "strae",
    ),
    *("x" * 80, "x" * 81),
]


def test_two_names_have_two_slugs_that_a_disk_and_the_hub_take():
    for limit in (60, 40):
        found = [slug(name, limit) for name in NAMES]
        assert len(set(found)) == len(NAMES)
        assert max(map(len, found)) <= limit
    for name in NAMES:
        validate_repo_id(f"YOUR-NAME/{folder_name([name])}-erased")
    stems = [release_name("sd1", [name]) for name in NAMES]
    stems += [
        release_name("a" * 60, [letter * 60 for letter in letters]) for letters in ("bcd", "bce")
    ]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        validate_repo_id(f"YOUR-NAME/{stem}")


def test_plain_names_keep_the_slugs_they_had():
    for concept in emoji.manifest().concepts:
        for name in (concept.name, *concept.aliases):
            old = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
            assert slug(name) == slug(name, 40) == old
    assert release_name("emoji", ["ear of corn"]) == "emoji-ear-of-corn-erased"
    assert release_name("sd1", ["a", "b", "c", "d"]) == "sd1-a-and-3-more-erased"
    assert folder_name(["violin", "cello"]) == "violin-and-1-more"


# --- a phrase of a prompt -------------------------------------------------------------------------

TEMPLATES = ("{n}", "a {n}, fluent style", "{n}.", "({n})", "{n}'s guitar", "a photo of {n}")


@pytest.mark.parametrize("name", ["!!!", *PLAIN])
def test_a_name_with_punctuation_is_found_in_every_template(name):
    encoder = opened("emoji").encoder
    for template in TEMPLATES:
        prompt = filled(template, name)
        span, ids = encoder.span(prompt, name), encoder.tokens(prompt)
        said = encoder._tokenizer.decode(ids[span.start - 1 : span.last])
        letters = [c for c in name.lower() if not c.isspace()]
        assert [c for c in said if not c.isspace()][: len(letters)] == letters
        assert span.end == len(ids) + 1


def test_a_name_inside_a_word_is_still_not_one():
    for prompt in ("a category!", "cats"):
        with pytest.raises(RecipeError, match="not a phrase"):
            opened("emoji").encoder.span(prompt, "cat")


# --- our own files, whole and anywhere ------------------------------------------------------------


def test_a_list_that_we_wrote_is_read_however_large_and_a_strangers_is_not(tmp_path):
    row = {"role": "ignore", "similarity": 0.5, "displacement": 0.5}
    words = tuple(Neighbor(word=f"w{at}", reason="why " * 50_000, **row) for at in range(6))
    known = Neighbors(concepts=(Neighborhood(concept="violin", words=words),))
    known.save(tmp_path)
    assert (tmp_path / "neighbors.yaml").stat().st_size > 1_000_000
    assert Neighbors.load(tmp_path) == known
    with pytest.raises(RecipeError, match="too large"):
        read_yaml(tmp_path / "neighbors.yaml")


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    """A run of strength 3, nothing judged."""
    folder = tmp_path_factory.mktemp("strong") / "run"
    row = {"name": "violin"}
    asked = {"concepts": [row], "target": {"use": "fixed", "text": "trumpet"}, "strength": 3.0}
    asked |= {"preserve": ["guitar"], "evaluate": None, "mine": None}
    execute(resolve("uce", asked), folder, command="editforge erase violin")
    return folder


@pytest.mark.parametrize(
    "place",
    [
        "edit",
        "edit/weight_edit.safetensors",
        "package",
        "package/lora",
        "package/lora/pytorch_lora_weights.safetensors",
    ],
)
def test_every_way_of_loading_a_run_gives_the_same_change(strong, place):
    whole = editforge.load_edit(strong)
    assert whole.strength == 3
    assert whole.difference(editforge.load_edit(strong / place)) < 1e-5


def test_a_stages_file_outside_of_its_run_says_what_it_is(strong, tmp_path):
    file = tmp_path / "weight_edit.safetensors"
    file.write_bytes((strong / "edit/weight_edit.safetensors").read_bytes())
    assert "strength 1)" in repr(editforge.load_edit(file))


# --- a compiled denoiser --------------------------------------------------------------------------


def test_training_names_a_compiled_denoisers_modules_as_they_are():
    pipe = tiny_pipeline("sd1")
    plain = linear_paths(Denoiser(pipe, None, "fp32").module, ["attn2.to_k"])
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert linear_paths(Denoiser(pipe, None, "fp32").module, ["attn2.to_k"]) == plain


def test_a_guard_acts_on_a_compiled_denoiser_and_comes_off():
    """Traced, the hook failed at the first thing that it asks of its pipeline."""
    plain, pipe = tiny_pipeline("sd1"), tiny_pipeline("sd1")
    base, guard = draw(plain), guard_of(plain)
    with guard.on(plain):
        wanted = draw(plain)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with guard.on(pipe):
        assert torch.equal(draw(pipe), wanted)
    assert not torch.allclose(wanted, base, atol=1e-2)
