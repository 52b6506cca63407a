"""Every editing method on every family, and the promises that each method makes of its own."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbors
from editforge.artifacts.system import System
from editforge.artifacts.targets import Preserved, Target, Targets
from editforge.artifacts.weight_edit import WeightEdit
from editforge.edit.vectors import Columns
from editforge.ground.errors import EditError, EditforgeError, PackageError, RecipeError
from editforge.ground.linalg import constrained, moved
from editforge.ground.linalg import rank as rank_of
from editforge.recipe.contract import Context, EditInputs
from editforge.recipe.registry import get
from editforge.run.stages import edit as run_edit
from tests.models import KINDS, LOOSE, TINY, opened, operator, recipe, solved

METHODS = {
    "ridge": {"use": "ridge"},
    "ridge, one state": {"use": "ridge", "templates": ["{n}"]},
    "ridge, name and end": {"use": "ridge", "templates": ["{n}"], "tokens": "subject_eot"},
    "mean-shift": {
        "use": "mean-shift",
        "reach": 1.0,
        "erase_weight": None,
        "preserve_weight": 1.0,
        "background_limit": 12,
    },
}
# A word list of twenty: "among the nearest, perhaps the same" would pass over half of it.
MINE = {"use": "vocabulary", "skip_top": 0, "min_variant_similarity": 2.0}
CELLS = list(itertools.product(METHODS, KINDS))
# How many independent columns one name has. The states of "{a}" and of "{a}, fluent style" are one.
COLUMNS = {
    ("ridge", "emoji"): 3,
    ("ridge", "tiny"): 3,
    ("ridge, one state", "emoji"): 1,
    ("ridge, one state", "tiny"): 1,
    ("ridge, name and end", "emoji"): 2,
    ("ridge, name and end", "tiny"): 2,
    ("mean-shift", "emoji"): 4,  # its templates have words behind the name
    ("mean-shift", "tiny"): 3,
}


def cell(method, kind, concepts="violin", *sets, **overrides):
    """A recipe with a typed target and preserve list, so that nothing but the edit is at work."""
    body = {
        "edit": METHODS[method],
        "target": {"use": "fixed", "text": "trumpet"},
        "mine": MINE,
        "preserve": ["guitar", "piano"] if kind != "emoji" else ["guitar", "banjo"],
    }
    return recipe(concepts, {**body, **overrides}, *LOOSE, *sets)


# --- the matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_an_edit_touches_exactly_the_familys_modules_at_the_promised_rank(method, kind):
    model = opened(kind)
    output = solved(model, cell(method, kind))[2]
    edit, columns = output.edit, COLUMNS[method, "emoji" if kind == "emoji" else "tiny"]
    assert isinstance(edit, WeightEdit)
    assert sorted(edit.factors) == model.paths
    assert not edit.dense
    assert edit.strength == 1
    assert edit.exact_rank == columns
    assert len({id(pair.A) for pair in edit.factors.values()}) == 1  # one A for all maps
    for path, pair in edit.factors.items():
        assert pair.shape == model.shape(path)
        assert pair.B.dtype == pair.A.dtype == torch.float32
        assert rank_of(pair.B, pair.A, 1e-5) == min(columns, pair.shape[0])
        assert float(pair.B.norm()) > 0
    assert edit.provenance["checks"]["change"] > 0
    assert edit.provenance["erased"][0]["name"] == "violin"


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_two_runs_write_the_same_bytes(method, kind, tmp_path):
    for name in ("a", "b"):
        output = solved(opened(kind), cell(method, kind))[2]
        output.edit.save(tmp_path / name)
        output.system.save(tmp_path / f"{name}.solve")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.solve").read_bytes() == (tmp_path / "b.solve").read_bytes()
    other = solved(opened(kind), cell(method, kind, target={"use": "fixed", "text": "lighthouse"}))[
        2
    ]
    other.edit.save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_the_order_of_concepts_changes_rounding_alone(method, kind):
    names = [
        {"name": "violin", "kind": "object"},
        {"name": "lighthouse", "kind": "broad"},
        {"name": "dog", "kind": "style"},
    ]
    edits = [
        solved(opened(kind), cell(method, kind, list(order)))[2].edit
        for order in (names, names[::-1])
    ]
    assert edits[0].difference(edits[1]) < 1e-4
    alone = solved(opened(kind), cell(method, kind, names[0]))[2].edit
    assert edits[0].difference(alone) > 0.1


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_the_concept_is_moved_to_its_target_and_more_so_than_anything_else(method, kind):
    model = opened(kind)
    output = solved(model, cell(method, kind))[2]
    W, edited = operator(output, model)
    templates = METHODS[method].get("templates") or model.family.templates["object"]
    columns = Columns(model, templates, "subject")
    state = {name: columns.of(name).mean(dim=1) for name in ("violin", "trumpet", "guitar")}
    gap = (W @ (state["violin"] - state["trumpet"])).norm()
    left = (edited @ state["violin"] - W @ state["trumpet"]).norm()
    drift = (edited @ state["guitar"] - W @ state["guitar"]).norm()
    assert left < (0.5 if kind in TINY else 0.15) * gap
    assert drift < (0.8 if kind in TINY else 0.3) * gap


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_aliases_and_marked_neighbors_are_erased_with_the_name(method, kind):
    model = opened(kind)
    made = cell(method, kind, {"name": "violin", "aliases": ["cello"]})
    neighbors, targets, output = solved(model, made)
    alone = solved(model, cell(method, kind))[2]
    columns = COLUMNS[method, "emoji" if kind == "emoji" else "tiny"]
    assert output.edit.exact_rank == 2 * columns == 2 * alone.edit.exact_rank
    assert output.edit.provenance["erased"][0]["aliases"] == ["cello"]
    near = neighbors.of("violin")
    marked = near.model_copy(
        update={
            "words": tuple(
                r.model_copy(update={"role": "erase"}) if r.word == "boat" else r
                for r in near.words
            )
        }
    )
    if not marked.having("erase"):
        row = near.words[0].model_copy(update={"word": "boat", "role": "erase", "candidate": False})
        marked = near.model_copy(update={"words": (*near.words, row)})
    inputs = EditInputs(made.concepts, targets, Neighbors(concepts=(marked,)))
    third = get("edit", made.edit.use).function(inputs, made.edit, Context(model))
    assert third.edit.exact_rank == 3 * columns
    row = third.edit.provenance["erased"][0]
    # the gate draws aliases that the eraser was not given, so given and mined words stay apart
    assert (row["aliases"], row["mined"]) == (["cello"], ["boat"])
    assert set(third.system.names) == {"violin", "cello", "boat"}


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_preserve_drift_falls_with_the_preserve_weight(method, kind):
    model, drifts = opened(kind), []
    for weight in (0.0, 1.0, 30.0):
        made = cell(
            method, kind, "violin", f"edit.preserve_weight={weight}", "edit.background=null"
        )
        W, edited = operator(solved(model, made)[2], model)
        templates = METHODS[method].get("templates") or model.family.templates["object"]
        held = Columns(model, templates, "subject").of("guitar")
        drifts.append(float(((edited - W) @ held).norm()))
    assert drifts == sorted(drifts, reverse=True)
    assert 0 < drifts[2] < 0.6 * drifts[0]


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_a_concept_cannot_become_itself_its_alias_or_what_is_erased_too(method, kind):
    both = [{"name": "violin", "aliases": ["cello"]}, {"name": "dog"}]
    for text in ("violin", "The Violin", "cello", "dog"):
        with pytest.raises(RecipeError, match="this target cannot be"):
            solved(opened(kind), cell(method, kind, both, target={"use": "fixed", "text": text}))
    # a list that a person edited passes no target stage
    targets = Targets(
        concepts=(Target(concept="violin", target="cello"), Target(concept="dog", target="cat"))
    )
    with pytest.raises(RecipeError, match="cannot become what is erased itself") as caught:
        solved(opened(kind), cell(method, kind, both), targets)
    assert caught.value.got == "'cello', a name of 'violin'"


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_joining_an_earlier_edit_is_the_joint_solution_and_not_the_sum(method, kind, tmp_path):
    model = opened(kind)
    x = {"name": "violin", "aliases": ["cello"]}
    y = {"name": "dog", "kind": "broad"}
    first = solved(model, cell(method, kind, x))[2]
    first.system.save(tmp_path / "edit/solve.safetensors")
    second = solved(model, cell(method, kind, y))[2]
    joined = solved(model, cell(method, kind, y, continue_from=str(tmp_path)))[2]
    joint = solved(model, cell(method, kind, [x, y]))[2]
    assert joined.edit.difference(joint.edit) < 1e-5
    assert joined.edit.exact_rank == joint.edit.exact_rank
    assert [row["name"] for row in joined.edit.provenance["erased"]] == ["violin", "dog"]
    assert joined.edit.provenance["combined"] == "joint"
    both = first.edit + second.edit
    assert both.difference(joint.edit) > 0.01
    assert both.provenance["combined"] == "sum of 2 edits"


@pytest.mark.parametrize(("method", "kind"), CELLS)
def test_strength_zero_is_the_base_bit_for_bit_and_one_is_not(method, kind):
    model = opened(kind)
    edit = solved(model, cell(method, kind))[2].edit
    for path in model.paths[:4]:
        weight = model.weight(path)
        assert torch.equal(edit.scaled(0).edited(path, weight), weight)
        assert not torch.equal(edit.edited(path, weight), weight)


@pytest.mark.parametrize("use", ["ridge", "mean-shift"])
def test_a_shift_of_zero_leaves_the_weights_bit_for_bit(use):
    """A target equal to its concept is refused by name and by state; behind them it is nothing."""
    model = opened("sd1")
    made = cell(use, "sd1")
    output = solved(model, made)[2]
    same = replace(output.system, target=output.system.erased.clone())
    shift = same.target - same.erased
    for path in model.paths[:4]:
        pair = output.edit.factors[path]
        nothing = WeightEdit({path: replace(pair, B=(model.weight(path).double() @ shift).float())})
        assert torch.equal(nothing.edited(path, model.weight(path)), model.weight(path))
        assert not torch.equal(output.edit.edited(path, model.weight(path)), model.weight(path))


# --- mean-shift ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reach", [1.0, 1.3])
def test_mean_states_go_exactly_as_far_as_reach_says(kind, reach):
    model = opened(kind)
    made = cell("mean-shift", kind, ["violin", "dog"], f"edit.reach={reach}")
    output = solved(model, made)[2]
    system = output.system
    path = model.paths[-1]
    W, edited = operator(output, model, path)
    want = W @ (system.erased + reach * (system.target - system.erased))
    torch.testing.assert_close(
        edited @ system.erased, want, rtol=1e-4, atol=1e-4 * float(want.abs().max())
    )
    A = output.edit.factors[path].A.double()
    torch.testing.assert_close(
        A @ system.erased,
        torch.eye(len(system.erased_owner), dtype=torch.float64),
        rtol=0,
        atol=2e-4,
    )
    # the means are those of last token, words behind, end and padding over the family's templates
    columns = Columns(model, model.family.templates["object"], "phrase")
    X = columns.of("violin")
    groups = [group for group in columns.groups("violin") if group]
    assert len(groups) == COLUMNS["mean-shift", "emoji" if kind == "emoji" else "tiny"]
    means = torch.stack([X[:, group].mean(dim=1) for group in groups], dim=1)
    torch.testing.assert_close(system.erased[:, : len(groups)], means, rtol=1e-5, atol=1e-5)


def test_no_other_factor_that_answers_the_means_drifts_less():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    M, X = draw(20, 4), draw(20, 9)
    S = X @ X.T
    found = constrained(M, S, ridge=1e-2)
    torch.testing.assert_close(found.A @ M, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)

    def drift(A):
        return found.ridge * A.square().sum() + torch.trace(A @ S @ A.T)

    # every feasible A differs from this one by rows orthogonal to the means
    free = torch.eye(20, dtype=torch.float64) - M @ torch.linalg.pinv(M)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            other = found.A + size * draw(4, 20) @ free
            torch.testing.assert_close(other @ M, found.A @ M, rtol=0, atol=1e-9)
            assert drift(other) > drift(found.A)
    plain = torch.linalg.pinv(M)  # the shortest feasible A is not the one that drifts least
    torch.testing.assert_close(plain @ M, found.A @ M, rtol=0, atol=1e-9)
    assert drift(plain) > 1.05 * drift(found.A)


def test_the_mean_shift_is_the_limit_of_a_ridge_with_a_growing_erase_weight():
    from editforge.ground.linalg import solve

    generator = torch.Generator().manual_seed(1)
    M, X = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (3, 8))
    lam = 0.1 * float(M.square().sum(dim=0).mean())
    exact = constrained(M, X @ X.T, ridge=0.1).A
    gaps = []
    for weight in (1.0, 1e2, 1e4, 1e6):
        A = solve(
            M,
            X,
            erase_weight=torch.full((3,), weight),
            preserve_weight=torch.ones(8),
            ridge=lam,
            ridge_scale="absolute",
        ).A
        gaps.append(float((A - exact).norm() / exact.norm()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1e-2
    assert gaps[-1] < 1e-4


def test_names_that_are_one_to_the_encoder_are_refused():
    M = torch.randn(12, 2, dtype=torch.float64)
    with pytest.raises(EditError, match="two erased names are one"):
        constrained(torch.cat([M, M[:, :1]], dim=1), torch.zeros(12, 12), ridge=1e-2)
    assert constrained(M, torch.zeros(12, 12), ridge=1e-2).A.shape == (2, 12)


def test_words_that_mean_the_concept_are_not_held_against_its_erasure(tmp_path):
    model = opened("sd1")
    listed = tmp_path / "words.txt"
    listed.write_text("violins\nguitar\npiano\ndog\n")
    base = {"mine": {**MINE, "words": str(listed)}, "preserve": []}
    held = cell("mean-shift", "sd1", "violin", f"edit.background={listed}", **base)
    listed_without = tmp_path / "fewer.txt"
    listed_without.write_text("guitar\npiano\ndog\n")
    fewer = cell("mean-shift", "sd1", "violin", f"edit.background={listed_without}", **base)
    a, b = solved(model, held)[2], solved(model, fewer)[2]
    assert a.edit.difference(b.edit) < 1e-5
    assert a.system.kin == ("violins",)
    # and they stay unheld when another edit joins this one
    path = tmp_path / "solve.safetensors"
    a.system.save(path)
    dog = cell(
        "mean-shift", "sd1", "dog", f"edit.background={listed}", continue_from=str(path), **base
    )
    both = cell("mean-shift", "sd1", ["violin", "dog"], f"edit.background={listed}", **base)
    assert solved(model, dog)[2].edit.difference(solved(model, both)[2].edit) < 1e-5


# --- UCE as published -----------------------------------------------------------------------------


def published_uce(W, blocks, held, *, lam, erase, keep, technique="replace"):
    """The release's own formula, map by map: W' = (lam W + sum v k^T) (lam I + sum k k^T)^-1."""
    d = W.shape[1]
    left, right = lam * W.clone(), lam * torch.eye(d, dtype=torch.float64)
    for old, new in blocks:  # (d, k) each
        value = W @ new
        if technique == "tensor":
            u = W @ old
            u = u / u.norm()
            value = value - (u * value).sum() * u
        left += erase * value @ old.T
        right += erase * old @ old.T
    for P in held:
        left += keep * W @ P @ P.T
        right += keep * P @ P.T
    return left @ torch.linalg.inv(right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["", "trumpet"])
@pytest.mark.parametrize("kept", [[], ["guitar", "dog"]])
def test_official_2025_is_the_released_formula(kind, target, kept):
    model = opened(kind)
    made = recipe(
        ["violin", "lighthouse"],
        {"target": {"use": "fixed", "text": target}, "preserve": kept},
        *LOOSE,
        method="uce",
        preset="official-2025",
    )
    output = solved(model, made)[2]
    states = model.encoder.encode(["violin", "lighthouse", target, *kept]).double()
    last = [model.encoder.span(name, name).last for name in ("violin", "lighthouse")]
    goal = states[2, model.encoder.span(target, target).last if target else 0]  # begin of text
    blocks = [(states[i, last[i]][:, None], goal[:, None]) for i in (0, 1)]
    held = [states[3 + i, model.encoder.span(w, w).last][:, None] for i, w in enumerate(kept)]
    for path in model.paths[:3]:
        W, edited = operator(output, model, path)
        want = published_uce(W, blocks, held, lam=0.5, erase=1, keep=1)
        gap = (want - W).norm()
        assert gap > 0.01 * W.norm()
        assert (edited - want).norm() < 1e-4 * gap
    assert output.system.preserve == tuple(kept)  # the release does not hold the target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [" ", "red trumpet"])
@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_official_2023_is_the_released_formula(kind, target, technique):
    model, kept = opened(kind), ["guitar", "dog"]
    made = recipe(
        ["violin"],
        {"target": {"use": "fixed", "text": target}, "preserve": kept},
        f"edit.values={technique}",
        *LOOSE,
        method="uce",
        preset="official-2023",
    )
    output = solved(model, made)[2]
    window = model.encoder.window
    old, new = model.encoder.encode(["violin", target.strip()]).double()
    # the release: begin at both last tokens, shorten the side that would run over
    a = len(model.encoder.tokens("violin"))
    b = len(model.encoder.tokens(target)) if target.strip() else 0
    farthest = max(a, b)
    block = old[a : window - max(0, farthest - a)].T, new[b : window - max(0, farthest - b)].T
    held = [states.T for states in model.encoder.encode(["", *kept]).double()]
    for path in model.paths[:3]:
        W, edited = operator(output, model, path)
        want = published_uce(
            W, [block], held, lam=0.5, erase=1, keep=max(0.1, 1 / 3), technique=technique
        )
        gap = (want - W).norm()
        assert gap > 0.01 * W.norm()
        assert (edited - want).norm() < 2e-3 * gap
    assert output.edit.exact_rank <= block[0].shape[1]


def test_tensor_and_replace_differ_and_the_preset_is_replace():
    overrides = {"target": {"use": "fixed", "text": "trumpet"}}
    made = [
        recipe("violin", overrides, *LOOSE, *more, method="uce", preset="official-2023")
        for more in ((), ("edit.values=replace",), ("edit.values=tensor",))
    ]
    preset, replaced, tensor = (solved(opened("sd1"), one)[2].edit for one in made)
    assert preset.difference(replaced) < 1e-12
    assert preset.difference(tensor) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_without_drawn_neighbors_the_ridge_is_uce_2025_to_rounding(kind):
    """What RealEra reduces to at K = 0: the same vectors and ridge give the same solve."""
    model = opened(kind)
    overrides = {
        "target": {"use": "fixed", "text": "trumpet", "preserve_target": False},
        "preserve": ["guitar"],
    }
    plain = {
        "use": "ridge",
        "tokens": "subject",
        "templates": ["{n}"],
        "ridge": 0.5,
        "ridge_scale": "absolute",
        "erase_weight": 1.0,
        "preserve_weight": 1.0,
        "background": None,
    }
    a = solved(model, recipe("violin", {**overrides, "edit": plain}, *LOOSE))[2].edit
    b = solved(model, recipe("violin", overrides, *LOOSE, method="uce", preset="official-2025"))[
        2
    ].edit
    assert a.difference(b) < 1e-12
    heavier = recipe("violin", {**overrides, "edit": {**plain, "ridge": 5.0}}, *LOOSE)
    assert solved(model, heavier)[2].edit.difference(b) > 1e-3


# --- checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "message", "knob"),
    [
        (["edit.limits.change=[1e-6, 1e-5]"], "the edit is refused: change", "nearer target"),
        (["edit.limits.amplification=[1, 1.01]"], "refused: amplification", "raise edit.ridge"),
        (["edit.limits.condition=[2, 3]"], "refused: condition", "raise edit.ridge"),
        (["edit.ridge=1e3"], "refused: residual 0.999 of 'violin'", "lower edit.ridge"),
        (["edit.erase_weight=0"], "refused: residual", "raise edit.erase_weight"),
        (["edit.ridge=0"], "singular without a ridge", "edit.ridge=6.5e-4"),
    ],
)
def test_a_wild_or_idle_solve_is_refused_and_names_its_knob(sets, message, knob):
    model = opened("emoji")
    plain = {
        "edit": METHODS["ridge, one state"],
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar"],
    }
    solved(model, recipe("violin", plain))  # the control: refused by the change alone
    with pytest.raises(EditError, match=message) as caught:
        solved(model, recipe("violin", plain, *sets))
    assert knob in caught.value.next


def test_a_refusal_prints_a_setting_that_lets_the_edit_pass():
    model = opened("emoji")
    plain = {
        "edit": METHODS["ridge, one state"],
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar"],
    }
    with pytest.raises(EditError) as caught:
        solved(model, recipe("violin", plain, "edit.limits.change=[0.01, 0.05]"))
    setting = caught.value.next.split("--set ")[1].replace("'", "")
    assert solved(model, recipe("violin", plain, setting))[2].edit.rank == 1


def test_a_number_over_its_first_limit_warns_and_a_drift_is_named():
    said: list[str] = []
    model = opened("emoji")
    plain = {
        "edit": METHODS["ridge, one state"],
        "target": {"use": "fixed", "text": "trumpet"},
        "preserve": ["guitar"],
    }
    made = recipe("violin", plain, "edit.limits.change=[0.01, 9]", "edit.limits.drift=1e-6")
    inputs = EditInputs(
        made.concepts,
        Targets(
            concepts=(Target(concept="violin", target="trumpet"),),
            preserve=(Preserved(word="guitar"),),
        ),
        Neighbors(),
    )
    get("edit", "ridge").function(inputs, made.edit, Context(model, say=said.append))
    assert any(line.startswith("warning: change") for line in said)
    assert any("'guitar' drifts" in line for line in said)
    said.clear()
    quiet = recipe("violin", plain, "edit.limits.change=[9, 99]", "edit.limits.drift=1")
    get("edit", "ridge").function(inputs, quiet.edit, Context(model, say=said.append))
    assert said == []


def test_limits_come_in_pairs_and_in_order():
    with pytest.raises(EditforgeError):
        recipe("violin", None, "edit.limits.change=[1]")
    with pytest.raises(EditforgeError, match="limits"):
        recipe("violin", None, "edit.limits.wildness=[1, 2]")


# --- an earlier edit ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("earlier") / "solve.safetensors"
    solved(opened("sd1"), cell("ridge", "sd1"))[2].system.save(path)
    return path


@pytest.mark.parametrize(
    ("method", "kind", "concepts", "target", "message"),
    [
        ("ridge", "sd2", "dog", "cat", "another base model"),
        ("mean-shift", "sd1", "dog", "cat", "another method"),
        ("ridge", "sd1", "violin", "cat", "erases this already"),
        ("ridge", "sd1", "trumpet", "cat", "is the other's target"),
        ("ridge", "sd1", "dog", "violin", "is the other's target"),
    ],
)
def test_an_earlier_edit_that_does_not_fit_is_refused(
    method, kind, concepts, target, message, earlier
):
    fits = cell(
        "ridge", "sd1", "dog", target={"use": "fixed", "text": "cat"}, continue_from=str(earlier)
    )
    solved(opened("sd1"), fits)
    made = cell(
        method, kind, concepts, target={"use": "fixed", "text": target}, continue_from=str(earlier)
    )
    with pytest.raises(EditError, match=message):
        solved(opened(kind), made)


def test_what_was_preserved_may_be_erased_later(earlier):
    made = cell("ridge", "sd1", "guitar", preserve=["dog"], continue_from=str(earlier))
    system = solved(opened("sd1"), made)[2].system
    assert "guitar" not in system.preserve
    assert {"trumpet", "dog", "piano"} <= set(system.preserve)


def test_a_file_without_a_system_is_refused(tmp_path):
    edit = solved(opened("sd1"), cell("ridge", "sd1"))[2].edit
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(PackageError, match="holds no system to solve jointly with"):
        System.load(tmp_path / "edit.safetensors")
    with pytest.raises(PackageError, match="no file"):
        System.load(tmp_path)


def test_a_system_loads_as_it_was_saved(earlier):
    first = System.load(earlier)
    made = solved(opened("sd1"), cell("ridge", "sd1"))[2].system
    assert torch.equal(first.erased, made.erased)
    assert torch.equal(first.target, made.target)
    assert replace(first, erased=None, target=None) == replace(made, erased=None, target=None)
    moment = replace(made, scatter=torch.eye(len(made.erased), dtype=torch.float64))
    moment.save(earlier.with_name("moment"))
    assert torch.equal(System.load(earlier.with_name("moment")).scatter, moment.scatter)


def test_an_edit_moves_states_as_the_operator_says():
    """W' h = W E h for all maps at once: the checks measure in text space what the maps do."""
    model = opened("sd1")
    output = solved(model, cell("ridge", "sd1"))[2]
    A = output.edit.factors[model.paths[0]].A.double()
    h = model.encoder.encode(["a red house"])[0].double().T
    fed = moved(h, output.system.erased, output.system.target, A)
    for path in model.paths[:4]:
        W, edited = operator(output, model, path)
        torch.testing.assert_close(edited @ h, W @ fed, rtol=1e-4, atol=1e-4)


def test_a_recipe_without_a_closed_form_makes_an_empty_edit():
    made = cell("ridge", "sd1").model_copy(update={"edit": None})
    targets = Targets(concepts=(Target(concept="violin", target="trumpet"),))
    output = run_edit(made, targets, Neighbors(), Context(opened("sd1")))
    assert output.edit.rank == 0
    assert output.system is None
    assert output.edit.provenance["erased"][0]["target"] == "trumpet"


def test_concepts_of_one_edit_are_told_apart_by_name():
    assert Concept(name="violin").names == ("violin",)
    assert Concept(name="violin", aliases=("fiddle",)).names == ("violin", "fiddle")
