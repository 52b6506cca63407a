"""RealEra's closed form: what is mined, what is held, and what the solve promises of both."""

from __future__ import annotations

import math

import pytest
import torch

from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.edit.beyond import beyond_samples
from editforge.edit.mined import Around, kappa
from editforge.edit.vectors import Columns
from editforge.ground.disk import dump_yaml, read_yaml
from editforge.ground.errors import EditError, PresetUnavailable, RecipeError
from editforge.ground.keyed import keyed
from editforge.ground.linalg import rank as rank_of
from editforge.ground.linalg import solve, truncated
from editforge.ground.shell import (
    FALLBACK,
    InfeasibleShell,
    beyond_moment,
    beyond_of,
    calibrated_bounds,
    draw_shell,
    inside,
    moments_of,
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
from tests import test_align
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
    none = torch.zeros(256, 0)
    a, b = (neighbors_of(e, mined, none, 5, 0, "violin", 3) for _ in range(2))
    assert torch.equal(a, b)
    for other in (
        neighbors_of(e, mined, none, 5, 1, "violin", 3),
        neighbors_of(e, mined, none, 5, 0, "violin", 4),
        neighbors_of(e, mined, none, 5, 0, "viola", 3),
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


LAWS = ("tangent_shell", "words", "paraphrases")


@pytest.mark.parametrize("law", LAWS)
def test_the_moments_of_each_law_are_those_of_its_samples(law):
    """Closed forms against forty thousand draws; the same moments of another law are refused."""
    d = 12
    e, ways = state(d) * 3, torch.randn(d, 5, generator=keyed(0, "ways")).double()
    base = mined_of("emoji").shell.model_copy(update={"radius": float(e.norm())})
    mined = base.model_copy(update={"law": law, "along": ("x",)})
    eta = neighbors_of(e, mined, ways, 40000, 0, "x") - e[:, None]
    found = moments_of(e, mined, ways)
    mean, covariance = eta.mean(dim=1), torch.cov(eta)
    size = float(eta.square().sum(dim=0).mean().sqrt())
    assert float((found.mean - mean).norm()) < 0.02 * size
    assert float((found.covariance - covariance).norm() / covariance.norm()) < 0.03
    other = mined.model_copy(update={"law": LAWS[LAWS.index(law) - 1]})
    wrong = moments_of(e, other, ways).covariance
    assert float((wrong - covariance).norm() / covariance.norm()) > 0.1
    if law == "words":
        assert inside(e, shell_at(e, mined), e[:, None] + eta).all()
    beyond = beyond_of(e, mined, 40000, 0, "x") - e[:, None]
    second = beyond @ beyond.T / beyond.shape[1]
    assert float((beyond_moment(e, mined) - second).norm() / second.norm()) < 0.03


def test_a_paraphrase_lies_between_the_states_it_is_mixed_from():
    e, ways = state(8), torch.eye(8, 2).double()
    mined = mined_of("emoji").shell.model_copy(
        update={"law": "paraphrases", "along": ("x", "y"), "radius": float(e.norm())}
    )
    eta = neighbors_of(e, mined, ways, 200, 0, "x") - e[:, None]
    torch.testing.assert_close(eta.sum(dim=0), torch.ones(200).double())
    assert eta.min() >= 0
    with pytest.raises(EditError, match="no states to displace along"):
        neighbors_of(e, mined, ways[:, :0], 2, 0, "x")


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


@pytest.mark.parametrize("law", LAWS[1:])
def test_a_law_is_recorded_with_what_it_displaces_along(law, tmp_path):
    made = realera({"name": "violin", "aliases": ["fiddle"]}, f"mine.perturbation.law={law}")
    found = mine(made, Context(opened("emoji"), made.seed))
    shell = found.of("violin").shell
    assert shell.law == law
    told = {"words": "guitar", "paraphrases": "an emoji of a fiddle"}
    assert told[law] in shell.along
    assert told[LAWS[3 - LAWS.index(law)]] not in shell.along
    found.save(tmp_path)
    assert Neighbors.load(tmp_path) == found
    file = tmp_path / "neighbors.yaml"
    body = read_yaml(file)
    body["concepts"][0]["shell"]["along"] = []
    file.write_text(dump_yaml(body))
    with pytest.raises(RecipeError, match="needs `along`"):
        Neighbors.load(tmp_path)


def test_training_displaces_along_the_words_that_the_closed_form_displaces_along(monkeypatch):
    """One word along: every neighbor of the training lies in its one direction, at many distances."""
    words = test_align.SHELL.model_copy(update={"law": "words", "along": ("dog",)})
    monkeypatch.setattr(test_align, "SHELL", words)
    _, _, prompts, _ = test_align.prepared()
    prompts._held = prompts._held[:, :0]  # a tiny encoder has all words on one side
    prompt = prompts.erased[0]
    found = [prompts.neighbor(0, sample).states - prompt.erased.states for sample in range(40)]
    eta = torch.stack([row[prompt.last].double() for row in found if bool(row.any())])
    e, dog = opened("sd1").encoder.encode_words(["violin", "dog"]).double()
    tangent = (dog - e) - (dog - e) @ e / e.square().sum() * e
    assert len(eta) > 8
    assert float(torch.cosine_similarity(eta, tangent[None]).min()) > 0.999
    assert float(eta.norm(dim=1).std()) > 0.1


# --- which position becomes which ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "own", "goal"),
    [  # "a NAME cat": begin 0, "a" 1, the name from 2 on
        ("violin", "red blue trumpet", [1, 2, 3, 4], [1, 4, 5, 6]),
        ("red blue trumpet", "violin", [1, 2, 3, 4, 5, 6], [1, 2, 2, 2, 3, 4]),
        ("red violin", "blue trumpet", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ("red blue violin", "blue trumpet", [1, 2, 3, 4, 5, 6], [1, 3, 2, 3, 4, 5]),
    ],
)
def test_all_positions_are_paired_by_what_stands_there(name, target, own, goal):
    """The name with the name, words behind it with themselves, end with end, padding with padding."""
    model = opened("sd1")
    text = "a {n} cat"
    left, right = model.encoder.encode([text.format(n=name), text.format(n=target)]).double()
    pads = 76 - max(own[-1], goal[-1])
    own = own + [own[-1] + 1 + at for at in range(pads)]
    goal = goal + [goal[-1] + 1 + at for at in range(pads)]
    columns = Columns(model, (text,), "all")
    C, T = columns.pair(name, target)
    assert C.shape[1] == len(own)
    torch.testing.assert_close(C, left[own].T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(T, right[goal].T, atol=1e-5, rtol=1e-5)
    last = model.encoder.span(text.format(n=name), name).last
    assert columns.subjects(name, target) == [own.index(last)]


def test_nothing_as_a_target_leaves_the_words_before_a_name():
    C, T = Columns(opened("sd1"), ("a {n}",), "all").pair("violin", "")
    assert torch.equal(C[:, 0], T[:, 0])
    assert not torch.isclose(C[:, 1:], T[:, 1:]).all(dim=0).any()


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
        assert output.system.erased.shape[1] == {"none": 1, "collapse": 5, "translate": 2}[how]
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


def test_two_seeds_give_one_edit_unless_samples_are_drawn():
    """The expectation knows no seed; drawn, the same recipe is another edit with each."""
    model, moves = opened("emoji"), {}
    for samples in ("expected", "drawn"):
        sets = (
            "edit.neighbor_map=translate",
            f"edit.samples={samples}",
            "edit.beyond=perturbation",
        )
        first, second = (solved(model, realera("violin", *sets, seed=seed))[2] for seed in (0, 1))
        moves[samples] = second.edit.difference(first.edit)
    assert moves["expected"] < 0.1
    assert moves["drawn"] > 0.3


@pytest.mark.parametrize("law", LAWS)
def test_many_drawn_neighbors_solve_what_their_expectation_solves(law):
    """The difference falls as neighbors grow: to the edit that knows no seed."""
    model, ends = opened("sd1"), {}
    for count, samples in ((20, "drawn"), (2000, "drawn"), (2000, "expected")):
        sets = (*BARE, "edit.neighbor_map=translate", f"edit.samples={samples}")
        sets += (f"mine.perturbation.law={law}", f"mine.perturbation.num_neighbors={count}")
        made = realera("violin", *sets, "mine.perturbation.num_nearest=0", preserve=[])
        ends[count, samples] = solved(model, made)[2].edit
    exact = ends[2000, "expected"]
    assert ends[2000, "drawn"].difference(exact) < 0.2
    assert ends[20, "drawn"].difference(exact) > 2 * ends[2000, "drawn"].difference(exact)


@pytest.mark.parametrize("hold", ["displacement", "point"])
def test_many_drawn_samples_hold_what_their_expectation_holds(hold):
    output = solved(opened("sd1"), realera("violin", *BARE))[2]
    shell = mined_of("sd1").shell.model_copy(
        update={"num_beyond": 20000, "beyond_shell_fraction": 1.0}
    )
    around, held = [Around("violin", 0, 0, shell)], {}
    for samples in ("drawn", "expected"):
        made = realera("violin", "edit.beyond=perturbation", f"edit.samples={samples}")
        options = made.edit.model_copy(update={"beyond_hold": hold})
        held[samples] = beyond_samples(output.system, around, options, 0)
    gap = (held["drawn"] - held["expected"]).norm() / held["expected"].norm()
    assert float(gap) < 0.1
    e = output.system.erased[:, 0]
    along = float(e @ held["expected"] @ e / held["expected"].norm())
    assert (along > 0.1) == (hold == "point")  # of a displacement nothing lies along e


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
    assert "edit.neighbor_map=translate" in str(caught.value)
    assert "edit.beyond=all" in str(caught.value)
    solved(opened("emoji"), realera("violin", *BARE[:2], *sets, "edit.neighbor_map=translate"))


@pytest.mark.parametrize("how", ["collapse", "translate"])
@pytest.mark.parametrize(
    ("beyond", "weight", "mined"),
    [("none", 0, 0), ("siblings", 0.1, 40), ("perturbation", 0, 40), ("perturbation", 0.1, 40)],
)
def test_each_hint_on_kappa_is_not_set_yet_and_raises_it(how, beyond, weight, mined):
    """The setting that a warning names, once applied, raises what the warning is about."""
    given = (*BARE[:2], f"edit.neighbor_map={how}", f"edit.beyond={beyond}")
    given += (f"mine.perturbation.num_beyond={mined}",)
    given += (f"edit.sample_weight={weight}", "edit.kappa_min=[2, -10]")
    model, said = opened("emoji"), []
    made = realera("violin", *given)
    context = Context(model, made.seed, say=said.append)
    neighbors = mine(made, context)
    targets = choose(made, neighbors, context)
    before = edit(made, targets, neighbors, context).edit.provenance["checks"]
    for what in ("kappa_random", "kappa_preserved"):
        hints = next(line for line in said if what in line).split("; ")[1:]
        assert hints
        for hint in hints:
            settings = hint.removeprefix("or ").removeprefix("--set ").split(" --set ")
            assert not {*settings} & {*given}
            changed = realera("violin", *given, *settings)
            found = mine(changed, context)
            after = edit(changed, targets, found, context).edit.provenance["checks"]
            assert after[what] > before[what] or before[what] > 0.9995, (settings, what)


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
