"""RealEra's closed form: what is mined, what is held, and what the solve promises of both."""

from __future__ import annotations

import math

import pytest
import torch

from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.edit.mined import kappa
from editforge.ground.disk import dump_yaml, read_yaml
from editforge.ground.errors import EditError, PresetUnavailable, RecipeError
from editforge.ground.keyed import keyed
from editforge.ground.linalg import rank as rank_of
from editforge.ground.linalg import solve, truncated
from editforge.ground.shell import (
    FALLBACK,
    InfeasibleShell,
    beyond_of,
    calibrated_bounds,
    draw_shell,
    inside,
    nearest_is_own,
    neighbors_of,
    sample_beyond,
    shell_at,
    shell_of,
)
from editforge.recipe.contract import Context
from editforge.recipe.layers import resolve
from editforge.run.load import load_edit
from editforge.run.stages import choose, edit, mine
from tests.command import UNJUDGED, editforge
from tests.models import LOOSE, opened, recipe, solved

KINDS = ("sd1", "sdxl", "emoji")
FEW = ("mine.perturbation.num_neighbors=4", "mine.perturbation.num_beyond=40")
FREE = (*LOOSE, "edit.kappa_min=[0, -10]", "edit.neighbor_map=collapse")
# one state a concept and nothing held but what a test asks for
BARE = ("edit.tokens=subject", 'edit.templates=["{n}"]', "edit.beyond=none", "edit.erase_weight=1")


def realera(concepts="violin", *sets, **overrides):
    """The shipped recipe with a typed target, few samples, and no word list but the family's."""
    shipped = resolve("realera", {"concepts": [{"name": "violin"}]})
    body = {
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar", "piano"],
        "mine": [one.model_dump() for one in shipped.mine if one.use != "associates"],
        **overrides,
    }
    return recipe(concepts, body, *FEW, *FREE, *sets, method="realera")


def state(d=64, seed=0):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the shell ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [None, 5.0])
@pytest.mark.parametrize("d", [2, 64, 768])
def test_every_mined_point_satisfies_all_three_bounds_at_acceptance_one(d, distance):
    e = state(d) * 8 / state(d).norm()
    shell = shell_of(e, distance, 0.7, 0.95)
    drawn = draw_shell(e, shell, 500, keyed(0, "test"))
    assert drawn.drawn == 500 == drawn.points.shape[1]
    away = (drawn.points - e[:, None]).norm(dim=0)
    cosines = torch.cosine_similarity(drawn.points, e[:, None], dim=0)
    assert float(away.max()) <= (distance or math.inf) + 1e-9
    assert float(cosines.min()) >= 0.7 - 1e-12
    assert float(cosines.max()) <= 0.95 + 1e-12
    assert float(away.max() - away.min()) > 0.5 * (shell.r_hi - shell.r_lo)  # the whole shell
    # a point of another length is refused by the same check
    assert not inside(e, shell, e[:, None] * 1.0001).any()
    assert not inside(e, shell, -drawn.points).any()


def test_samples_beyond_lie_outside_the_neighborhood():
    e = state()
    shell = shell_of(e, None, 0.7, 0.95)
    points = sample_beyond(e, shell, 1.5, 3.0, 200, keyed(0, "beyond"))
    away = (points - e[:, None]).norm(dim=0) / shell.r_hi
    assert float(away.min()) >= 1.5 - 1e-9
    assert float(away.max()) <= 3 + 1e-9
    assert not inside(e, shell, points).any()
    with pytest.raises(EditError, match="inside the shell"):
        sample_beyond(e, shell, 0.9, 3.0, 1, keyed(0, "beyond"))


@pytest.mark.parametrize(
    ("distance", "low", "high"), [(None, 0.95, 0.95), (None, 0.99, 0.9), (0.1, 0.7, 0.95)]
)
def test_bounds_that_exclude_each_other_are_refused_with_bounds_that_would_do(distance, low, high):
    e = state()
    with pytest.raises(InfeasibleShell) as caught:
        shell_of(e, distance, low, high)
    text = str(caught.value)
    assert f"cos_lo (S1) below {high:.4g}" in text
    least = float(text.split("distance (D1) above ")[1].split()[0])
    shell_of(e, None if distance is None else least * 1.01, min(low, high - 0.01), high)


@pytest.mark.parametrize("bad", [(0.0, 0.9), (0.5, 1.2), (-0.1, 0.9)])
def test_a_cosine_bound_out_of_range_is_refused(bad):
    with pytest.raises(EditError, match="out of range"):
        shell_of(state(), None, *bad)
    with pytest.raises(EditError, match="no shell around"):
        shell_of(torch.zeros(8), None, 0.7, 0.95)


def test_calibrated_bounds_leave_a_core_to_the_concept_and_reach_the_nearest_words():
    cosines = torch.linspace(0.0, 0.8, 101)
    low, high = calibrated_bounds(cosines)
    assert low == pytest.approx(0.76)
    assert high == pytest.approx(0.9)
    for unfit in (cosines[:19], cosines - 0.9, cosines / 0.8):  # few, away from e, on top of e
        assert calibrated_bounds(unfit) == FALLBACK


def test_same_seed_and_key_same_points_whatever_else_is_drawn():
    e, mined = state(256), mined_of("emoji").shell
    a, b = (neighbors_of(e, mined, 5, 0, "violin", 3) for _ in range(2))
    assert torch.equal(a, b)
    for other in (
        neighbors_of(e, mined, 5, 1, "violin", 3),
        neighbors_of(e, mined, 5, 0, "violin", 4),
        neighbors_of(e, mined, 5, 0, "viola", 3),
        beyond_of(e, mined, 5, 0, "violin", 3),
    ):
        assert not torch.isclose(a, other).any()


def test_the_shell_moves_with_the_state_it_is_put_around():
    mined = mined_of("emoji").shell
    mined = mined.model_copy(update={"distance": mined.r_hi * 0.9})
    e = state(256)
    here, there = shell_at(e, mined), shell_at(3 * e, mined)
    assert there.r_hi == pytest.approx(3 * here.r_hi)
    assert here.r_hi / here.radius == pytest.approx(0.9 * mined.r_hi / mined.radius)


# --- mining -------------------------------------------------------------------------------------


def mined_of(kind, *sets, name="violin") -> Neighborhood:
    made = realera(name, *sets)
    return mine(made, Context(opened(kind), made.seed)).of(name)


@pytest.mark.parametrize("kind", KINDS)
def test_mining_says_where_it_drew_how_many_it_accepted_and_what_is_near(kind):
    found = mined_of(kind)
    shell = found.shell
    assert shell is not None
    assert shell.accepted == shell.drawn == shell.num_neighbors == 4
    assert shell.r_lo < shell.r_hi
    assert shell.cos_lo < shell.cos_hi
    assert len(shell.nearest) == 4
    assert all(len(words) == 3 for words in shell.nearest)
    assert {row.role for row in found.words if row.word in shell.in_band} <= {"preserve", "ignore"}
    assert "violin" not in shell.in_band


def test_two_runs_write_the_same_neighbors_and_the_same_edit(tmp_path):
    for name in ("a", "b"):
        neighbors, _, output = solved(opened("emoji"), realera())
        (tmp_path / name).mkdir()
        neighbors.save(tmp_path / name)
        output.edit.save(tmp_path / name / "edit")
    for file in ("neighbors.yaml", "edit"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert Neighbors.load(tmp_path / "a") == neighbors
    other = solved(opened("emoji"), realera(seed=1))[2].edit
    assert other.difference(output.edit) > 1e-3


def test_words_that_mean_the_concept_go_with_it_and_siblings_do_not():
    made = recipe(["spider", "bicycle"], {"mine": [{"use": "associates"}]})
    found = mine(made, Context(opened("emoji")))
    assert {"tarantula", "arachnid"} <= set(found.of("spider").having("erase"))
    assert "bike" in found.of("bicycle").having("erase")
    words = {row.word for entry in found.concepts for row in entry.words}
    assert not words & {"ant", "scorpion", "motorcycle", "spider", "bicycle"}
    none = mine(
        recipe("spider", {"mine": [{"use": "associates", "min_similarity": 0.99}]}),
        Context(opened("emoji")),
    )
    assert none.of("spider").words == ()


def test_where_names_are_all_words_associates_need_spellings_that_tell():
    """A tiny random encoder places no variant near its name: nothing may be erased unasked."""
    made = recipe("violin", {"mine": [{"use": "associates", "min_similarity": 0.0}]})
    found = mine(made, Context(opened("sd1"))).of("violin").words
    assert all(row.similarity > 0.5 for row in found)


def test_a_word_marked_erase_is_erased_though_another_miner_ignores_it():
    def rows(role, reason=""):
        word = Neighbor(word="viola", role=role, similarity=1, displacement=1, reason=reason)
        return Neighbors(concepts=(Neighborhood(concept="violin", words=(word,)),))

    ignored = rows("ignore", "means the same")
    assert ignored.merged(rows("erase")).of("violin").having("erase") == ["viola"]
    assert ignored.merged(rows("preserve")).of("violin").having("ignore") == ["viola"]
    assert rows("preserve").merged(rows("erase")).of("violin").having("preserve") == ["viola"]


# --- the closed form ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rank_is_one_and_k_if_neighbors_collapse_and_one_if_they_translate(kind):
    ranks = {}
    for how in ("none", "collapse", "translate"):
        sets = (*BARE, f"edit.neighbor_map={how}")
        output = solved(opened(kind), realera("violin", *sets))[2]
        ranks[how] = output.edit.exact_rank
        for pair in output.edit.factors.values():
            assert pair.rank == ranks[how]
        if how != "none":
            assert output.system.erased.shape[1] == 5
    assert ranks == {"none": 1, "collapse": 5, "translate": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_without_neighbors_and_beyond_it_is_uce_to_rounding(kind):
    made = realera("violin", *BARE, "mine.perturbation.num_neighbors=0")
    ours = solved(opened(kind), made)[2].edit
    plain = {"target": {"use": "fixed", "text": "trumpet"}, "preserve": ["guitar", "piano"]}
    uce = solved(opened(kind), recipe("violin", plain, *LOOSE, method="uce"))[2].edit
    assert ours.difference(uce) < 1e-12
    some = solved(opened(kind), realera("violin", *BARE))[2].edit
    assert some.difference(uce) > 1e-3


def test_a_concept_that_is_its_target_changes_no_bit():
    """t = e and K = 0: the columns are equal, so the factors are zero and so is the change."""
    e = state()[:, None]
    A = solve(
        e,
        state(64, 1)[:, None],
        erase_weight=torch.ones(1),
        preserve_weight=torch.ones(1),
        ridge=1e-3,
    ).A
    weight = torch.randn(16, 64)
    assert torch.equal((weight.double() + weight.double() @ (e - e) @ A).float(), weight)
    moved = (weight.double() + weight.double() @ (2 * e - e) @ A).float()
    assert not torch.equal(moved, weight)


@pytest.mark.parametrize("kind", ["sd1", "emoji"])
def test_the_order_of_concepts_changes_rounding_alone(kind):
    names = ["violin", "lighthouse", "dog"]
    edits = [
        solved(opened(kind), realera(list(order), "edit.max_rank=null"))[2].edit
        for order in (names, names[::-1])
    ]
    assert edits[0].difference(edits[1]) < 1e-4
    alone = solved(opened(kind), realera("violin"))[2].edit
    assert edits[0].difference(alone) > 0.1


def test_neighbors_more_like_what_is_preserved_are_left_out():
    e = torch.tensor([1.0, 0.0, 0.0]).double()
    near = torch.tensor([[1.0, 0.2, 0.0], [0.5, 1.0, 0.0]]).double().T
    preserve = torch.tensor([[0.0, 1.0, 0.0]]).double().T
    assert nearest_is_own(e, near, preserve).tolist() == [True, False]
    assert nearest_is_own(e, near, preserve[:, :0]).tolist() == [True, True]


@pytest.mark.parametrize("weight", [1.0, 1e4])
def test_what_is_held_beyond_keeps_its_outputs(weight):
    """Held in all directions, a sample's displacement moves less than `tolerance` of its length."""
    model = opened("emoji")
    sets = ("edit.beyond=perturbation", "mine.perturbation.num_beyond=2000", *BARE[:2], BARE[3])
    moves = {}
    for beyond in (0.0, weight):
        made = realera("violin", *sets, f"edit.sample_weight={beyond}", "edit.beyond_weight=0")
        neighbors, _, output = solved(model, made)
        e = output.system.erased[:, 0]
        points = beyond_of(e, neighbors.of("violin").shell, 64, made.seed + 1, "fresh")
        eta = points - e[:, None]
        path = model.paths[0]
        W = model.weight(path).double()
        change = output.edit.delta(path).double() @ eta
        moves[beyond] = float((change.norm(dim=0) / (W @ eta).norm(dim=0)).mean())
    assert moves[weight] < (0.03 if weight == 1.0 else 1e-3)
    assert moves[0.0] > 0.06


def test_kappa_of_isotropic_samples_is_the_formula():
    """methods.md 2.4 for K and M well above d: measured within 5 % of the prediction."""
    d, K, M, l1, l2 = 24, 6000, 6000, 1.0, 0.3
    e, t = state(d) * 5, state(d, 1) * 5
    shell = shell_of(e, None, 0.8, 0.95)
    near = draw_shell(e, shell, K, keyed(0, "near")).points
    eta = sample_beyond(e, shell, 1.5, 3.0, M, keyed(0, "beyond")) - e[:, None]
    C = torch.cat([e[:, None], near], dim=1)
    rho = float((near - e[:, None]).square().sum(dim=0).mean())
    x = torch.randn(d, 200, generator=keyed(0, "x"), dtype=torch.float64)
    # orthogonal to e and to t: the target's direction takes what the neighbors lose
    basis, _ = torch.linalg.qr(torch.stack([e, t], dim=1))
    x = x - basis @ (basis.T @ x)
    for held in (0.0, l2):
        solution = solve(
            C,
            C[:, :0],
            erase_weight=torch.full((K + 1,), l1, dtype=torch.float64),
            preserve_weight=torch.zeros(0, dtype=torch.float64),
            ridge=6.5e-4 * 3 * K,
            moment=held * eta @ eta.T,
        )
        s = held * M * float(eta.square().sum(dim=0).mean()) / (d - 1)
        predicted = (solution.ridge + s) / (solution.ridge + s + l1 * K * rho / (d - 1))
        measured = float(kappa(x, t[:, None] - C, solution.A).mean())
        assert measured == pytest.approx(predicted, rel=0.05)
    assert predicted > 0.6  # held
    assert solution.ridge / (solution.ridge + l1 * K * rho / (d - 1)) < 0.5  # not held


def test_shrinkage_is_refused_and_names_its_knobs():
    sets = (
        "edit.beyond=none",
        "edit.neighbor_weight=100",
        "mine.perturbation.num_neighbors=512",
        "edit.kappa_min=[0.95, 0.5]",
    )
    with pytest.raises(EditError, match="shrink what they should not") as caught:
        solved(opened("emoji"), realera("violin", *BARE[:2], *sets))
    assert "edit.sample_weight" in str(caught.value)
    solved(opened("emoji"), realera("violin", *BARE[:2], *sets, "edit.neighbor_map=translate"))


def test_truncated_factors_say_what_they_lose():
    exact = solved(opened("emoji"), realera("violin", *BARE[:2], "edit.max_rank=null"))[2].edit
    said = []
    made = realera("violin", *BARE[:2], "edit.max_rank=3")
    context = Context(opened("emoji"), made.seed, say=said.append)
    neighbors = mine(made, context)
    cut = edit(made, choose(made, neighbors, context), neighbors, context).edit
    assert exact.exact_rank == 5
    assert cut.exact_rank is None
    assert cut.rank == 3
    lost = cut.provenance["checks"]["truncation"]
    assert 0 < lost < 1
    assert any(f"rank {exact.exact_rank} cut to 3" in line for line in said)
    assert "truncation" not in exact.provenance["checks"]


def test_the_truncation_error_is_that_of_the_best_approximation():
    left, right = torch.randn(20, 6).double(), torch.randn(6, 30).double()
    a, b, lost = truncated(left, right, 3)
    sigma = torch.linalg.svdvals(left @ right)
    assert rank_of(a, b) == 3
    assert lost == pytest.approx(float(sigma[3:6].norm() / sigma.norm()))
    assert float((left @ right - a @ b).norm() / sigma.norm()) == pytest.approx(lost)
    assert truncated(left, right, 6)[2] < 1e-12


@pytest.mark.parametrize("beyond", ["siblings", "captions", "all"])
def test_each_kind_of_beyond_holds_something(beyond, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("an emoji of a cat on a red background\na dog\n\na dog\n")
    model = opened("emoji")
    without = solved(model, realera("violin", "edit.beyond=none"))[2].edit
    with_it = solved(
        model, realera("violin", f"edit.beyond={beyond}", f"edit.captions={captions}")
    )[2].edit
    assert with_it.difference(without) > 1e-3


def test_captions_must_be_there(tmp_path):
    model = opened("emoji")
    with pytest.raises(RecipeError, match="no captions to hold"):
        solved(model, realera("violin", "edit.beyond=captions"))
    lost = tmp_path / "lost.txt"
    with pytest.raises(RecipeError, match="no such caption file"):
        solved(model, realera("violin", "edit.beyond=captions", f"edit.captions={lost}"))


def test_a_later_edit_joins_the_neighbors_of_an_earlier_one(tmp_path):
    model = opened("emoji")
    sets = ("edit.beyond=perturbation", "edit.beyond_weight=0", "edit.sample_weight=1")
    first = realera("spider", *sets)
    solved(model, first)[2].system.save(tmp_path / "solve.safetensors")
    later = realera("violin", *sets, continue_from=str(tmp_path / "solve.safetensors"))
    joint = solved(model, realera(["spider", "violin"], *sets))[2].edit
    both = solved(model, later)[2]
    assert {"spider", "violin"} <= set(both.system.names)
    assert both.edit.difference(joint) < 1e-3
    alone = solved(model, realera("violin", *sets))[2].edit
    assert both.edit.difference(alone) > 0.5


# --- the recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_unpublished_presets_list_what_is_missing(preset):
    with pytest.raises(PresetUnavailable) as caught:
        resolve("realera", {"concepts": [{"name": "violin"}]}, preset=preset)
    missing = {"paper": "D1, S1 and S2", "official": "no code was released"}
    assert missing[preset] in str(caught.value)
    resolve("realera", {"concepts": [{"name": "violin"}]}, preset="editforge")


def test_one_of_several_miners_is_set_by_its_name():
    made = realera("violin", "mine.perturbation.num_neighbors=7", "mine.vocabulary.k_closest=9")
    by_name = {one.use: one for one in made.mine}
    assert by_name["perturbation"].num_neighbors == 7
    assert by_name["vocabulary"].k_closest == 9


def test_a_cut_rank_needs_values_that_all_maps_share():
    with pytest.raises(RecipeError, match="max_rank"):
        realera("violin", "edit.values=tensor", "edit.max_rank=8")


def test_a_list_that_a_person_edited_is_kept_and_obeyed(tmp_path):
    line = ("erase", "spider", "--method", "realera", "--target", "bomb", *UNJUDGED)
    line += ("--set", "align=null")
    options = [word for one in (*FEW, *FREE) for word in ("--set", one)]
    output = ("--output", "run")
    assert editforge(*line, *options, *output, cwd=tmp_path).code == 0
    file = tmp_path / "run" / "mine" / "neighbors.yaml"
    body = read_yaml(file)
    rows = body["concepts"][0]["words"]
    roles = {row["word"]: row["role"] for row in rows}
    assert roles["tarantula"] == "erase"
    kept = next(word for word, role in roles.items() if role == "preserve")
    for row in rows:
        row["role"] = {"tarantula": "ignore", kept: "erase"}.get(row["word"], row["role"])
    file.write_text(dump_yaml(body))
    edited = file.read_bytes()
    again = editforge(*line, *options, *output, "--json", cwd=tmp_path)
    assert again.code == 0, again.err
    assert file.read_bytes() == edited
    edited = load_edit(tmp_path / "run").provenance["erased"]
    row = next(row for row in edited if row["name"] == "spider")
    assert kept in row["mined"]
    assert "tarantula" not in row["mined"]
    assert row["aliases"] == []
