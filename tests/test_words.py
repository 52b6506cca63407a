"""Lists by kind: what is in them, who reads them, and that nothing becomes itself under another name."""

from __future__ import annotations

import itertools

import pytest
import torch

from editforge.artifacts.concepts import Concept
from editforge.edit.held import background, moment
from editforge.edit.vectors import Columns
from editforge.families import by_kind
from editforge.families.by_kind import KINDS, entries, kept_only, section_of, words_by_kind
from editforge.families.live import LiveModel
from editforge.families.schema import load_family
from editforge.families.vocabulary import apart, unnamed, word_list
from editforge.ground.disk import dump_yaml
from editforge.ground.names import name_key, names_the_same
from editforge.recipe.contract import Context
from editforge.run.stages import choose, mine
from tests.command import ROOT
from tests.models import opened, recipe
from tests.tiny import tiny_family, tiny_pipeline

SIZES = {"object": (1000, 1600), "style": (200, 500), "person": (200, 500), "broad": (150, 300)}
# few enough that a tiny tokenizer spells them out in no time
SHORT = {
    "object": "# music\nviolin\ncello\ntrumpet\nbanjo\n\n# animals\ncat\ndog\nhorse\nowl\n",
    "style": "# painters\nClaude Monet\nVincent van Gogh\nPablo Picasso\nEgon Schiele\nPaul Klee\n"
    "\n# media\nwatercolor\nlinocut\ncollage\npixel art\nfresco\n",
    "person": "# writers\nHomer\nJane Austen\nMark Twain\n\n# living (never a target)\nBob Dylan\n",
    "broad": "# work\ncooking\nfarming\nweaving\n\n# sport\nsailing\nboard games\n",
}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A tiny SD 1 whose family has lists by kind, in place of the shipped ones."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "words").mkdir()
    for kind, text in SHORT.items():
        (folder / "words" / f"{by_kind._FILES[kind]}.txt").write_text(text)
    caches = (by_kind.entries, by_kind.kept_only, by_kind.section_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_kind, "__file__", str(folder / "by_kind.py"))
        for cache in caches:
            cache.cache_clear()
        model = LiveModel(tiny_pipeline("sd1"), opened_family(folder))
        yield model
    for cache in caches:
        cache.cache_clear()


def opened_family(folder):
    family = tiny_family("sd1").model_copy(update={"words": "kinds"})
    path = folder / "sd1.yaml"
    path.write_text(dump_yaml(family.model_dump(mode="json")))
    return str(path)


# --- the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_is_ascii_sorted_in_its_sections_and_has_each_name_once(kind):
    listed = entries(kind)
    least, most = SIZES[kind]
    assert least <= len(listed) <= most
    assert len({name_key(entry.word) for entry in listed}) == len(listed)
    for _, section in itertools.groupby(listed, key=lambda entry: entry.section):
        words = [entry.word for entry in section]
        assert words == sorted(words, key=str.casefold)
    for entry in listed:
        assert entry.word.isascii()
        assert entry.word == " ".join(entry.word.split())
        assert len(entry.word) <= 40  # at a token a letter within the 75 of CLIP
        Concept(name=entry.word, kind=kind)  # a name as `erase` takes it


def test_only_artists_known_as_persons_stand_in_two_lists_and_provenance_names_them():
    keys = {kind: {name_key(entry.word): entry.word for entry in entries(kind)} for kind in KINDS}
    twice = {
        (one, other): {keys[one][key] for key in keys[one].keys() & keys[other].keys()}
        for one, other in itertools.combinations(KINDS, 2)
    }
    artists = twice.pop(("style", "person"))
    assert not any(twice.values())
    said = (ROOT / "editforge" / "families" / "words" / "PROVENANCE.md").read_text()
    said = " ".join(said.split())
    assert len(artists) == 8
    assert all(name in said for name in artists)
    assert all(f"| {len(entries(kind)):,} |" in said for kind in KINDS)


def test_lists_together_have_a_fixed_order_and_each_name_once():
    together = words_by_kind(["person", "style"])
    assert together == words_by_kind(["style", "person"])
    assert len(together) == len(entries("style")) + len(entries("person")) - 8
    assert together[0] == entries("style")[0].word
    assert words_by_kind(["broad"]) == tuple(entry.word for entry in entries("broad"))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_shipped_families_of_stable_diffusion_take_the_lists(kind):
    assert load_family(kind).words == "kinds"
    assert load_family("emoji").words == "emoji"


def test_the_embedded_model_never_opens_them(monkeypatch):
    def opens(kind):
        raise AssertionError(f"read the list of kind {kind}")

    for cache in (by_kind.kept_only, by_kind.section_of):
        cache.cache_clear()
    monkeypatch.setattr(by_kind, "entries", opens)
    for kind, name in (("object", "violin"), ("style", "fluent"), ("broad", "alcohol")):
        made = recipe({"name": name, "kind": kind}, {"target": {"use": "adaptive", "judge": None}})
        context = Context(opened("emoji"), made.seed)
        assert choose(made, mine(made, context), context).of(name).target
    assert word_list(opened("emoji"), "tokenizer")
    assert unnamed(opened("emoji").family, ["fire", "violins"], ["fire engine", "violin"])


# --- one name under another ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Vincent van Gogh", "Van Gogh"),
        ("Vincent van Gogh", "van gogh style"),
        ("Vincent van Gogh", "in the style of Van Gogh"),
        ("Vincent van Gogh", "Van Gogh's art style"),
        ("Pablo Picasso", "Pablo Ruiz Picasso"),
        ("Pablo Picasso", "P. Picasso"),
        ("Pablo Picasso", "paintings by Picasso"),
        ("Salvador Dali", "Dalí"),
        ("J. M. W. Turner", "William Turner"),
        ("Samuel L. Jackson", "Samuel Jackson"),
        ("Edouard Manet", "Édouard Manet"),
        ("watercolor", "watercolor style"),
        ("hot dog", "dog"),
        ("violins", "the violin"),
    ],
)
def test_names_of_one_thing_are_known_as_such_both_ways(word, name):
    assert names_the_same(word, name)
    assert names_the_same(name, word)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Claude Monet", "Edouard Manet"),
        ("Janet Jackson", "Michael Jackson"),
        ("Lucas Cranach the Elder", "Pieter Bruegel the Elder"),
        ("pop art", "folk art"),
        ("Art Deco", "Art Nouveau"),
        ("electric guitar", "acoustic guitar"),
        ("viola", "violin"),
        ("style", "violin"),
    ],
)
def test_other_things_are_not(word, name):
    assert not names_the_same(word, name)
    assert not names_the_same(name, word)


@pytest.mark.parametrize(
    ("kind", "name", "section"),
    [
        ("style", "Van Gogh", "artists: Europe and North America, 19th century"),
        ("style", "watercolour", None),
        ("object", "acoustic guitar", "musical instruments"),
        ("object", "hot dog", "food: dishes"),
        ("person", "Einstein", "scientists and inventors"),
        ("broad", "violence", None),
    ],
)
def test_a_name_stands_where_the_list_has_it_under_any_spelling(kind, name, section):
    assert section_of(kind, name) == section


def test_names_of_one_section_are_near_then_of_one_group_and_unlisted_ones_are_not():
    family = load_family("sd1")
    assert apart(family, "Van Gogh", "Claude Monet", "style") == 0
    assert apart(family, "Van Gogh", "Moebius", "style") == 1
    assert apart(family, "Van Gogh", "watercolor", "style") == 2
    assert apart(family, "Greg", "Someone", "style") == 2
    assert apart(tiny_family("sd1"), "violin", "cello") == 2  # no lists, no sections


def test_what_is_held_names_nothing_erased():
    words = ["Vincent van Gogh", "Pablo Picasso", "watercolor", "sunflower"]
    family = load_family("sd1")
    assert unnamed(family, words, ["Van Gogh", "P. Picasso"]) == ["watercolor", "sunflower"]
    assert unnamed(family, words, ["watercolors"]) == [words[0], words[1], words[3]]


def test_a_background_holds_neither_the_painter_nor_his_longer_name(short):
    columns = Columns(short, ("{n}",), "subject")
    taken = [["Van Gogh"], []]
    without, whole = (
        background(columns, "family", 200, ["cat"], Context(short), erased) for erased in taken
    )
    with Context(short).bar(1, "") as bar:
        painter = moment(columns, ["Vincent van Gogh"], short.family.text_width, bar)
    torch.testing.assert_close(whole - without, painter, rtol=1e-3, atol=1e-4)  # float32 states
    assert painter.norm() > 0.1


# --- targets by kind ----------------------------------------------------------------------------


def test_each_concept_becomes_a_word_of_its_own_kind_and_section_never_itself(short):
    rows = [
        {"name": "violin"},
        {"name": "Van Gogh", "kind": "style", "aliases": ["P. Picasso"]},
        {"name": "Austen", "kind": "person"},
        {"name": "deep sea fishing", "kind": "broad"},
    ]
    made = recipe(rows, {"mine": {"use": "vocabulary", "skip_top": 0, "min_displacement": 0}})
    context = Context(short, made.seed)
    neighbors = mine(made, context)
    targets = choose(made, neighbors, context)
    assert [row.concept for row in targets.concepts] == [row["name"] for row in rows]
    for row in rows:
        kind, near = row.get("kind", "object"), neighbors.of(row["name"])
        own = {entry.word for entry in entries(kind)}
        assert {word.word for word in near.words} <= own
        assert targets.of(row["name"]).target in own
        candidates = {word.word for word in near.words if word.candidate}
        assert not candidates & kept_only(kind)
    assert targets.of("violin").target in ("cello", "trumpet", "banjo")
    assert targets.of("Van Gogh").target in ("Claude Monet", "Egon Schiele", "Paul Klee")
    assert targets.of("Austen").target in ("Homer", "Mark Twain")
    held = set(targets.preserved)
    assert held.isdisjoint({"Vincent van Gogh", "Pablo Picasso", "Jane Austen", "violin"})
    assert "Bob Dylan" in held  # near, kept, and nobody's target
    reasons = {row.word: row.reason for row in neighbors.of("Van Gogh").words}
    assert reasons["Vincent van Gogh"] == "one contains the other"
    assert reasons["Pablo Picasso"] == "the same last name"


def test_what_is_erased_beside_a_concept_changes_nothing_of_another_kind(short):
    options = {"mine": {"use": "vocabulary", "skip_top": 0, "min_displacement": 0}}
    violin, monet = {"name": "violin"}, {"name": "Monet", "kind": "style"}

    def near(*concepts):
        made = recipe(list(concepts), options)
        return mine(made, Context(short, made.seed))

    assert near(violin, monet).of("violin") == near(violin).of("violin")
    assert near(monet, violin).of("Monet") == near(monet).of("Monet")


def test_a_painter_erased_too_is_no_target_under_a_longer_name(short):
    rows = [{"name": "Monet", "kind": "style"}, {"name": "P. Picasso", "kind": "style"}]
    made = recipe(rows, {"mine": {"use": "vocabulary", "skip_top": 0, "min_displacement": 0}})
    near = mine(made, Context(short, made.seed)).of("Monet")
    reasons = {row.word: row.reason for row in near.words}
    assert reasons["Pablo Picasso"] == "erased too"
    assert "Pablo Picasso" not in near.having("preserve")


def test_the_whole_tokenizer_and_a_file_are_still_to_be_had(short, tmp_path):
    assert word_list(short, "family", ["style"])[0] == "Claude Monet"
    assert len(word_list(short, "family")) == 27
    assert word_list(short, "tokenizer") == word_list(opened("sd1"), "tokenizer")
    (tmp_path / "words.txt").write_text("Vincent van Gogh\ncat\n")
    assert word_list(short, str(tmp_path / "words.txt"), ["broad"]) == ("Vincent van Gogh", "cat")
