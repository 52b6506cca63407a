"""The concept graph: known answers of the findings, resume, refusals, pictures."""

import json
from pathlib import Path

import numpy as np
import pytest

import editforge.graph.outcomes as outcomes_module
from editforge import emoji
from editforge.evaluate import metrics
from editforge.families.config import ModelConfig
from editforge.families.open import open_model
from editforge.graph import Graph, measure
from editforge.graph.find import find
from editforge.graph.graph import graph_of
from editforge.graph.intervals import apart, change, crossed, spearman
from editforge.graph.layout import spread
from editforge.graph.outcomes import Outcomes, Seen
from editforge.graph.page import page
from editforge.graph.pictures import PICTURES, draw_pictures
from editforge.graph.request import request
from editforge.graph.table import Table, edges
from editforge.graph.text import read_text
from editforge.ground.errors import EditforgeError, PackageError, RecipeError
from editforge.recipe.contract import Context, TargetInputs
from editforge.recipe.layers import resolve
from tests.command import editforge
from tests.models import family_file, tiny_folder

N, K = 12, 16
DEV = emoji.manifest().splits["dev"]
QUICK = {"method": "uce", "options": ["target.text=trumpet", "mine=null"], "images": 2}


def table(damage, base=1.0, n=N, k=K, seed=0, similarity=None, leak=None, groups=None):
    """Outcomes drawn with given damages: (n, n) chances that a picture is lost."""
    draw = np.random.Generator(np.random.PCG64(seed))
    first = (draw.random((n, k)) < np.broadcast_to(base, n)[:, None]).astype(float)
    lost = first[None] * (draw.random((n, n, k)) < np.asarray(damage)[..., None])
    near = np.eye(n) if similarity is None else similarity
    return Table(
        names=tuple(f"c{i:02d}" for i in range(n)),
        base=first,
        lost=lost,
        same=np.eye(n, dtype=bool),
        similarity=near,
        leak=near if leak is None else leak,
        unheld=near,
        groups=groups or [None] * n,
    )


def found(one, seed=0):
    return find(one, edges(one, seed), seed)


def on_a_line(n=N):
    """Similarity that falls with the distance of the indices."""
    at = np.arange(n)
    return np.exp(-np.abs(at[:, None] - at) / 3)


# --- intervals ----------------------------------------------------------------------------------


def test_a_damage_is_the_paired_mean_and_its_interval_is_of_the_pairs():
    base, edited = np.array([1, 1, 1, 1, 0, 1, 1, 1]), np.array([0, 1, 1, 0, 0, 1, 0, 1])
    one = change(base, edited)
    assert one.value == pytest.approx(3 / 8)
    assert one == metrics.mean([base - edited], unit="paired images")
    swapped = change(edited, base)
    assert swapped.value == -one.value


def test_equal_pictures_do_not_make_a_damage_certain():
    none, all_lost = change(np.ones(16), np.ones(16)), change(np.ones(16), np.zeros(16))
    bound = 1 - 0.05 ** (1 / 16)
    assert (none.value, none.lo, none.hi) == pytest.approx((0, -bound, bound), abs=1e-6)
    assert (all_lost.value, all_lost.lo, all_lost.hi) == pytest.approx((1, 1 - bound, 1), abs=1e-6)


def test_shared_base_pictures_widen_the_interval_of_a_mean_loss():
    """All erasures lose the same quarter of the pictures: there are 16 facts here, not 16 x 20."""
    lost = np.tile(np.arange(16) % 4 == 0, (20, 1)).astype(float)
    together, apart_ = crossed(lost), metrics.mean(list(lost))
    assert together.value == apart_.value == 0.25
    assert together.hi - together.lo > 2 * (apart_.hi - apart_.lo)


def test_a_rank_correlation_has_mean_ranks_for_ties_and_none_for_a_constant():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([2.0, 4, 8, 16])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])) == pytest.approx(-1)
    # ranks 1.5 1.5 3 4 against 1 2 3 4, by hand
    assert spearman(np.array([0.0, 0, 1, 2]), np.array([1.0, 2, 3, 4])) == pytest.approx(
        4.5 / np.sqrt(4.5 * 5)
    )
    assert spearman(np.zeros(4), np.arange(4.0)) is None


def test_one_picture_each_way_does_not_make_a_pair_one_sided():
    one, other = np.zeros(16), np.zeros(16)
    one[3], other[5] = 1, -1
    gap = apart(one, other)
    assert gap.value == 0.125
    assert gap.lo <= 0
    assert apart(np.ones(16), other).lo > 0.5
    assert apart(other, np.ones(16)).hi < -0.5
    same = apart(np.zeros(16), np.zeros(16))
    assert same.lo == -same.hi < 0


# --- findings -----------------------------------------------------------------------------------


def test_local_damage_is_found_and_damage_without_order_is_not():
    near = on_a_line()
    groups = [f"g{i // 4}" for i in range(N)]
    local = found(table(0.8 * near**2, similarity=near, groups=groups)).locality
    assert local.correlation.lo > 0.5
    assert local.gap.lo > 0.1
    assert local.same_group.value > local.other_group.value
    damages = [row.damage.value for row in local.bins]
    assert damages == sorted(damages, reverse=True)
    assert sum(row.pairs for row in local.bins) == N * (N - 1)
    flat = found(table(np.full((N, N), 0.3), similarity=near, groups=groups)).locality
    assert flat.correlation.lo < 0 < flat.correlation.hi
    assert flat.gap.lo < 0 < flat.gap.hi
    assert table(0.8 * near**2, similarity=near).groups[0] is None
    assert not found(table(0.8 * near**2, similarity=near)).locality.gap.defined


def test_one_sided_damage_is_found_and_mutual_damage_is_not():
    upper = np.triu(np.full((N, N), 0.7), 1)
    one_way = found(table(upper)).asymmetry
    assert one_way.pairs == N * (N - 1) // 2
    assert one_way.p < 0.01
    assert one_way.mean > one_way.by_chance_most
    assert one_way.clear > 0.9 * one_way.pairs
    assert all(one.hurts < one.hurt and one.lo > 0 for one in one_way.strongest)
    mutual = found(table(np.full((N, N), 0.35))).asymmetry
    assert mutual.p > 0.05
    assert mutual.by_chance == pytest.approx(mutual.mean, rel=0.3)
    assert mutual.clear <= 0.1 * mutual.pairs


def test_weak_concepts_are_named_and_a_neighbor_hurt_once_is_not():
    base = np.ones(N)
    damage = np.full((N, N), 0.02)
    base[[3, 7, 9, 11]] = 0.6
    damage[:, [3, 7, 9, 11]] = 0.7
    damage[0, 1] = 1.0  # one strong edge is no weakness
    weak = found(table(damage, base)).weak
    assert set(weak.concepts) == {"c03", "c07", "c09", "c11"}
    assert weak.correlation.hi < 0
    assert found(table(np.zeros((N, N)))).weak.concepts == ()


def test_the_proxy_is_correlated_by_rank_and_by_its_size():
    near = on_a_line()
    signs = np.where(np.add.outer(np.arange(N), np.arange(N)) % 2, -1, 1)
    told = found(table(0.8 * near**2, similarity=np.eye(N), leak=0.01 * near * signs)).proxy
    assert told.correlation.lo > 0.5
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(near.ravel()).reshape(N, N)
    assert found(table(0.8 * near**2, leak=shuffled)).proxy.correlation.lo < 0.1


def test_without_any_damage_nothing_is_claimed():
    calm = found(table(np.zeros((N, N)), similarity=on_a_line()))
    assert calm.clear == 0
    assert calm.damage.value == 0
    assert 0 < calm.damage.hi < 0.01  # of 12 x 11 x 16 pictures none
    assert not calm.locality.correlation.defined
    assert calm.asymmetry.p == 1
    assert calm.asymmetry.clear == 0


def test_what_the_judge_takes_for_one_thing_is_no_pair():
    damage = np.zeros((N, N))
    damage[0, 1] = damage[1, 0] = 1
    one = table(damage)
    assert found(one).clear == 2
    one.same[0, 1] = one.same[1, 0] = True
    assert (0, 1) not in edges(one, 0)
    assert found(one).clear == 0
    assert found(one).pairs == N * (N - 1) - 2


def test_a_concept_that_the_base_never_draws_loses_nothing_and_counts_nowhere():
    base = np.ones(N)
    base[5] = 0
    assert found(table(np.full((N, N), 0.3), base)).pairs == (N - 1) * (N - 1)


# --- the artifact and its pages -----------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    with open_model(ModelConfig()) as opened:
        yield opened


@pytest.fixture(scope="module")
def synthetic(model):
    """Twelve real names and texts, made-up outcomes: local damage, two weak concepts."""
    recipe = resolve("default", {"concepts": [{"name": name} for name in DEV]})
    wanted = request(recipe, model, K)
    text = read_text(wanted, Context(model))
    damage = np.clip(text.similarity, 0, 1)
    damage[:, 4] = 0.6
    one = table(damage, np.where(np.arange(N) == 4, 0.7, 0.97), similarity=text.similarity)
    base = one.base > 0
    seen = [base & ~(one.lost[e] > 0) for e in range(N)]
    outcomes = Outcomes(
        wanted.names, Seen(base, base), tuple(Seen(row, row, "trumpet") for row in seen)
    )
    return wanted, text, outcomes, graph_of(wanted, outcomes, text, model)


def test_text_alone_gives_similarity_and_the_leak_of_the_target_rule(model, synthetic):
    """The leak of each measured word is the one that `target: adaptive` lists for it."""
    wanted, text, _, _ = synthetic
    assert np.allclose(text.similarity, text.similarity.T)
    assert np.allclose(text.similarity.diagonal(), 1)
    assert (text.leak.diagonal() > 0.5).all()  # what is erased moves itself
    from editforge.recipe.registry import get
    from editforge.run.stages import mine

    checked = 0
    for e, single in enumerate(wanted.singles[:4]):  # by text alone: nobody looks at pictures
        rule = get("target", "adaptive")
        near = mine(single, Context(model))
        options = rule.config(use="adaptive", num_listed=200, judge=None)
        chosen = rule.function(TargetInputs(single.concepts, near), options, Context(model))
        for candidate in chosen.concepts[0].candidates:
            if candidate.word in wanted.names:
                v = wanted.names.index(candidate.word)
                assert text.leak[e, v] == pytest.approx(candidate.leak, rel=1e-3, abs=1e-6)
                checked += 1
    assert checked > 20


def test_a_graph_is_what_was_saved(synthetic, tmp_path):
    graph = synthetic[-1]
    graph.save(tmp_path)
    assert Graph.load(tmp_path) == graph
    body = (tmp_path / "graph.json").read_text()
    assert json.loads(body)["schema"] == "editforge.graph/1"
    assert str(Path.home()) not in body
    assert "/work" not in body
    assert len(graph.edges) == N * (N - 1)
    (tmp_path / "graph.json").write_text(body.replace("editforge.graph/1", "editforge.graph/9"))
    with pytest.raises(PackageError, match="another schema"):
        Graph.load(tmp_path)
    (tmp_path / "graph.json").write_text(body.replace('"images": 16', '"images": "many"'))
    with pytest.raises(PackageError, match="damaged"):
        Graph.load(tmp_path)


def test_nodes_and_edges_are_the_outcomes(synthetic):
    _, _, outcomes, graph = synthetic
    node = graph.nodes[4]
    assert node.base == metrics.rate(outcomes.base.kept[4])
    assert node.unreliable
    assert node.group == "food-drink"
    assert node.erased == metrics.rate(outcomes.edited[4].present[4])
    edge = next(e for e in graph.edges if (e.erased, e.measured) == (DEV[0], DEV[1]))
    lost = outcomes.base.kept[1].mean() - outcomes.edited[0].kept[1].mean()
    assert edge.damage == pytest.approx(lost, abs=1e-6)
    assert graph.matrix()[0, 1] == edge.damage
    assert np.isnan(graph.matrix()[0, 0])


def test_the_page_says_the_findings_first_and_names_every_concept(synthetic):
    text = page(synthetic[-1])
    assert text.index("## Findings") < text.index("## Concepts")
    for word in (*DEV, "Locality", "Asymmetry", "Drop whatever is erased", "Text alone"):
        assert word in text
    assert "nan" not in text
    assert "None" not in text.replace("None is", "").replace("None:", "")


def test_pictures_are_made_not_blank_and_always_the_same(synthetic, tmp_path):
    from PIL import Image

    graph = synthetic[-1]
    assert draw_pictures(graph, tmp_path) is None
    for name in PICTURES:
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, name
    before = {name: (tmp_path / name).read_bytes() for name in PICTURES}
    draw_pictures(graph, tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in PICTURES}


def test_without_the_plotting_libraries_it_says_what_to_install(synthetic, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "networkx", None)
    assert "editforge[plots]" in draw_pictures(synthetic[-1], tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_in_the_picture_do_not_hide_each_other():
    points = np.full((20, 2), 0.5) + 1e-3 * np.arange(40).reshape(20, 2)
    sizes = np.tile([90.0, 30.0], (20, 1))
    places = spread(points, sizes, (0, 0, 900, 700))
    gaps = np.abs(places[:, None] - places)
    overlap = np.triu((gaps < sizes[0] - 1e-3).all(axis=2), 1)
    assert not overlap.any()
    assert places.min() >= 0


# --- the real thing -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three concepts, two pictures each, once without interruption."""
    folder = tmp_path_factory.mktemp("graph") / "whole"
    return folder, measure(["violin", "umbrella", "spider"], folder, **QUICK)


def held(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_erased_concept_is_gone_and_the_others_are_paired_with_the_base(real):
    folder, graph = real
    assert graph.names == ("violin", "umbrella", "spider")
    violin = graph.nodes[0]
    assert violin.becomes == "trumpet"
    assert (violin.drawn.value, violin.erased.value) == (1, 0)
    assert len(graph.edges) == 6
    assert {"graph.json", "graph.md", *PICTURES} <= set(held(folder))
    assert graph.recipe["method"] == "uce"
    assert not (folder / ".work").exists()


def test_a_killed_graph_goes_on_and_ends_with_the_same_bytes(real, tmp_path, monkeypatch):
    folder, graph = real
    drawn = []
    sample = outcomes_module.sample

    def counted(*args, **kwargs):
        drawn.append(kwargs["label"])
        return sample(*args, **kwargs)

    monkeypatch.setattr(outcomes_module, "sample", counted)

    def killed(line):
        if line.startswith("'umbrella'"):
            raise KeyboardInterrupt

    names = ["violin", "umbrella", "spider"]
    with pytest.raises(KeyboardInterrupt):
        measure(names, tmp_path / "g", say=killed, **QUICK)
    assert drawn == ["base", "without 1 of 3", "without 2 of 3"]
    assert not (tmp_path / "g" / "graph.json").exists()
    drawn.clear()
    assert measure(names, tmp_path / "g", **QUICK) == graph
    assert drawn == ["without 3 of 3"]
    assert held(tmp_path / "g") == held(folder)
    drawn.clear()
    measure(names, tmp_path / "g", **QUICK)
    assert drawn == []
    # What is damaged is drawn again, and it alone.
    cut = tmp_path / "g" / "outcomes" / "erased-001.safetensors"
    cut.write_bytes(cut.read_bytes()[:-3])
    measure(names, tmp_path / "g", **QUICK)
    assert drawn == ["without 2 of 3"]
    assert held(tmp_path / "g") == held(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": 3}, "images: 2 there, 3 now"),
        ({"overrides": {"seed": 1}}, "recipe.seed: 0 there, 1 now"),
        ({"options": ["target.text=guitar", "mine=null"]}, "recipe.target.text"),
    ],
)
def test_another_request_in_the_same_folder_is_refused(real, change, said):
    folder, _ = real
    before = held(folder)
    with pytest.raises(RecipeError, match="another request") as refused:
        measure(["violin", "umbrella", "spider"], folder, **{**QUICK, **change})
    assert said in str(refused.value)
    assert held(folder) == before


@pytest.mark.parametrize(
    ("concepts", "asked", "said"),
    [
        (["violin"], {}, "at least two concepts"),
        ("violin", {}, "at least two concepts"),
        ([], {}, "no concepts"),
        (["violin", "umbrella"], {"overrides": {"evaluate": {"judge": None}}}, "needs a judge"),
        (
            ["violin", "umbrella"],
            {"overrides": {"evaluate": {"judge": "nowhere"}}},
            "no judge there",
        ),
        (["violin", "zeppelin"], {}, "no judge knows zeppelin"),
        (["violin", "umbrella"], {"images": 0}, "no such number of images"),
        (["violin", "umbrella", "Violin"], {}, "erased twice"),
        (["violin", "umbrella"], {"words": "nowhere.txt"}, "no such word list"),
        (["violin", "umbrella"], {"method": "nothing"}, "nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(
    concepts, asked, said, tmp_path, monkeypatch
):
    monkeypatch.setattr(outcomes_module, "sample", lambda *a, **k: pytest.fail("drawn"))
    with pytest.raises(EditforgeError, match=said):
        measure(concepts, tmp_path / "g", **asked)
    assert not (tmp_path / "g").exists()


def test_a_folder_of_something_else_is_refused_and_left(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not a graph"):
        measure(["violin", "umbrella"], tmp_path, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_an_erasure_that_is_refused_at_once_leaves_no_folder(tmp_path):
    """Erased to itself: the solve refuses, after the base was drawn."""
    asked = {"method": "uce", "images": 1, "options": ["target.text=violin", "mine=null"]}
    with pytest.raises(EditforgeError):
        measure(["violin", "umbrella"], tmp_path / "g", **asked)
    assert not (tmp_path / "g").exists()


@pytest.fixture(scope="module")
def stable():
    """A tiny SD 1.x at random weights: no list of names, no judge, and it draws nothing."""
    overrides = {"model": {"id": str(tiny_folder("sd1")), "family": family_file("sd1")}}
    return {**QUICK, "overrides": overrides}


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "needs a judge"), ({"words": "all"}, "no list of names of its own")],
)
def test_a_family_without_a_judge_or_a_list_is_refused(stable, changes, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        measure(["violin", "guitar"], tmp_path / "g", **stable, **changes)
    assert not (tmp_path / "g").exists()


def test_another_family_is_judged_by_a_clip_folder_and_a_blank_model_claims_nothing(
    stable, tmp_path
):
    judge = str(emoji.folder().parent / "clip")
    asked = {**stable, "overrides": {**stable["overrides"], "evaluate": {"judge": judge}}}
    graph = measure(["violin", "guitar", "cello"], tmp_path / "g", **asked)
    assert graph.family == "sd1"
    assert [judge["name"] for judge in graph.judges] == ["clip-zero-shot"]
    assert all(node.base.value == 0 and node.unreliable for node in graph.nodes)
    assert graph.findings.pairs == 0
    assert not graph.findings.damage.defined
    assert graph.findings.asymmetry.mean is None
    text = (tmp_path / "g" / "graph.md").read_text()
    assert "undefined" in text
    assert str(tmp_path) not in text + (tmp_path / "g" / "graph.json").read_text()
    assert (tmp_path / "g" / "locality.png").is_file()


def test_the_command_reads_names_from_a_file_and_prints_the_findings(tmp_path):
    (tmp_path / "names.txt").write_text("umbrella\n# a remark\n")
    done = editforge(
        "graph",
        "violin",
        "--words=names.txt",
        "--method=uce",
        "--target=trumpet",
        "--set=mine=null",
        "--images=1",
        "--output=g",
        "--json",
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    assert done.json["concepts"] == ["violin", "umbrella"]
    assert done.json["findings"]["pairs"] <= 2
    assert "next: editforge erase" in done.err
    assert (tmp_path / "g" / "graph.md").is_file()
    again = editforge("graph", "violin", "spider", "--output=g", cwd=tmp_path)
    assert again.code == 2
    assert "another request" in again.err
