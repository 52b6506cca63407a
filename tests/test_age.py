"""AGE: a game of two players in the one loop, the gradients that each sees, and what is learned."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from editforge.align import state
from editforge.align.age import KEEP_T, AgeConfig, candidates_of, scale_of, turns_of
from editforge.align.denoiser import Encoded
from editforge.align.mixture import Candidates, Mixture
from editforge.align.objective import ERASE, ERASED, MIXED, MIXTURE, WEIGHTS
from editforge.align.rows import Rows
from editforge.align.train import Loop, Opponent, _closed, prepared
from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.artifacts.targets import Preserved, Target, Targets
from editforge.artifacts.weight_edit import WeightEdit
from editforge.ground.errors import EditError, PackageError, RecipeError
from editforge.recipe import registry
from editforge.recipe.contract import AlignInputs, Context
from editforge.recipe.layers import resolve
from editforge.run.check import check
from tests.models import TINY, opened
from tests.test_align import SMALL, Stopped, same

OWN, GOAL = (ERASE, ERASED), (ERASE, MIXED)
QUICK = {**SMALL, "steps": 3, "lead_runs": 2, "k_closest": 4, "pi_lr": 0.5, "temperature": 1.0}
WORDS = ("guitar", "trumpet", "piano", "drum", "fiddle", "violins")


def near(words=WORDS[:4], others=(("fiddle", "erase"), ("violins", "ignore"))):
    rows = [
        Neighbor(word=word, role="preserve", candidate=True, similarity=0.5, displacement=1.0)
        for word in words
    ]
    rows += [
        Neighbor(word=word, role=role, similarity=0.9, displacement=0.4, reason="same word")
        for word, role in others
    ]
    return Neighbors(concepts=(Neighborhood(concept="violin", words=tuple(rows)),))


def inputs_of(neighbors=None, start=None):
    targets = Targets(
        concepts=(Target(concept="violin", target="trumpet"),),
        preserve=(Preserved(word="guitar"),),
    )
    empty = WeightEdit({}, exact_rank=0)
    return AlignInputs((Concept(name="violin"),), targets, neighbors or near(), start or empty)


def played(kind="sd1", *, work=None, log=None, neighbors=None, **options):
    config = AgeConfig(use="age", **{**QUICK, **options})
    context = Context(opened(kind), 0, work=work, log=log)
    return registry.get("align", "age").function(inputs_of(neighbors), config, context)


class Table:
    """A loop around a toy game on the tiny model, with everything at hand."""

    def __init__(self, kind="sd1", equal=False, **options):
        self.config = AgeConfig(use="age", **{**QUICK, **options})
        self.context = Context(opened(kind), 0)
        self._open = prepared(inputs_of(), self.config, self.context)
        self.denoiser, self.model, self.prompts = self._open.__enter__()
        own = candidates_of(
            Concept(name="violin"),
            inputs_of(),
            self.config,
            self.prompts,
            self.denoiser,
            self.context,
        )
        if equal:  # every candidate is the concept
            concept = self.prompts.erased[0].erased.states
            own = replace(own, states=tuple(concept.expand_as(s).clone() for s in own.states))
        self.mixture = Mixture(
            {"violin": own},
            temperature=self.config.temperature,
            hard=self.config.hard,
            topk=self.config.topk,
            seed=0,
        )
        self.turns = turns_of(self.config, scale_of(self.config.space, self.denoiser))
        against = Opponent(self.mixture, self.config.pi_lr, self.config.quiet_from, 2)
        self.loop = Loop(
            self.config, self.turns, self.context, self.denoiser, self.model, self.prompts, against
        )
        self.loop.draw()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.__exit__(None, None, None)

    def wander(self):
        """A student that is not the teacher."""
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.add_(
                    0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                )

    def parts(self, turn, samples=(0, 1)):
        for name, player in self.loop.state.players.items():
            player.opened(name == turn.player)
        self.loop.gather.lead()
        rows = self.loop.rows(samples, turn)
        teacher = self.loop.predict(rows, turn.objective.teacher, turn, grad=bool(turn.teacher))
        with self.model.student():
            student = self.loop.predict(rows, turn.objective.student, turn, grad=True)
        return turn.objective.parts(teacher, student)

    def reach(self, turn, part):
        """Whether a part's gradient reaches (the weights, the mixture)."""
        found = self.parts(turn)[part]
        if not found.requires_grad:
            return False, False
        found.backward()
        grads = []
        for own in (self.model.parameters(), self.mixture.parameters()):
            grads.append(any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in own))
        for own in (self.model, self.mixture):
            own.zero_grad()
        return tuple(grads)


# --- the gradient table of methods.md 3.5 --------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    ("l1", "l2", "erase", "keep"),
    [
        (True, True, True, True),  # paper
        (False, False, False, True),  # official: the synonym-repelling half never reaches pi
        (True, False, True, True),
        (False, True, False, True),
    ],
)
def test_each_term_reaches_what_the_table_says(l1, l2, erase, keep, hard):
    with Table(l1_grad_to_pi=l1, frozen_l2_grad_to_pi=l2, hard=hard, topk=4) as table:
        table.wander()
        weights, mixture = table.turns
        assert table.reach(weights, "erase") == (True, False)
        assert table.reach(weights, "keep") == (True, False)
        assert table.reach(mixture, "erase") == (False, erase)
        assert table.reach(mixture, "keep") == (False, keep)


def test_the_frozen_branch_of_the_keep_term_counts_only_where_it_is_open():
    """Through both branches the gradient is another one than through the trained branch alone."""
    grads = []
    for open_too in (True, False):
        with Table(frozen_l2_grad_to_pi=open_too, topk=4) as table:
            table.wander()
            table.parts(table.turns[1])["keep"].backward()
            grads.append(table.mixture.pi("violin").grad.clone())
    assert not torch.allclose(*grads)


@pytest.mark.parametrize("target", ["plain", "overshoot"])
def test_equal_words_give_no_loss_and_no_gradient_at_the_start(target):
    with Table(equal=True, erase_target=target, erase_runs=1, precision="fp32") as table:
        parts = table.parts(table.turns[0])
        assert float(parts["loss"]) == pytest.approx(0, abs=1e-9)
        parts["loss"].backward()
        assert all(float(w.grad.abs().max()) < 1e-4 for w in table.model.parameters())


def test_overshoot_goes_past_the_target_by_the_way_from_the_concept():
    frozen = {GOAL: torch.tensor(3.0), OWN: torch.tensor(1.0), KEEP_T: torch.tensor(0.0)}
    student = {OWN: torch.tensor(5.0), KEEP_T: torch.tensor(2.0)}
    for kind, goal in (("plain", 3.0), ("overshoot", 3.0 - 2.0 * (1.0 - 3.0))):
        turn, other = turns_of(AgeConfig(erase_target=kind, ng=2.0, lam=0.5), None)
        parts = turn.objective.parts(frozen, student)
        assert float(parts["erase"]) == (5.0 - goal) ** 2
        assert float(parts["loss"]) == (5.0 - goal) ** 2 + 0.5 * 4.0
        assert float(other.objective.parts(frozen, student)["erase"]) == 4.0  # always plain


@pytest.mark.parametrize("kind", TINY)
def test_the_loss_in_x0_is_the_loss_in_noise_times_its_weight(kind):
    """From a latent and two outputs, noise or velocity: both predicted images, by hand."""
    scheduler = opened(kind).pipeline().scheduler
    denoiser = type("D", (), {"pipe": opened(kind).pipeline()})()
    times = torch.tensor([999, 500, 3])
    abar = scheduler.alphas_cumprod.double()[times]
    z, a, b = torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    root, rest = abar.sqrt()[:, None], (1 - abar).sqrt()[:, None]
    velocity = scheduler.config.prediction_type == "v_prediction"

    def image(output):
        return root * z - rest * output if velocity else (z - rest * output) / root

    def noise(output):
        return root * output + rest * z if velocity else output

    assert scale_of("eps", denoiser) is None  # the model's own output
    ours = scale_of("x0", denoiser)(times)[:, None] * (a - b)
    assert torch.allclose(ours.square(), (image(a) - image(b)).square())
    weight = ((1 - abar) / abar)[:, None]
    assert torch.allclose(ours.square(), weight * (noise(a) - noise(b)).square())


# --- the mixture --------------------------------------------------------------------------------


def candidates(n=6, q=3, d=5):
    states = torch.randn(n, q, d, generator=torch.Generator().manual_seed(3))
    return Candidates(tuple("abcdefgh"[:n]), (states,))


def mixture_of(own, **options):
    return Mixture(
        {"x": own}, **{"temperature": 0.5, "hard": False, "topk": 2, "seed": 0, **options}
    )


def test_a_mixture_sums_to_one_and_a_hard_one_is_exactly_a_candidate():
    own = candidates()
    for sample in range(20):
        assert float(mixture_of(own).shares("x", sample, 1.0).sum()) == pytest.approx(1)
        found = mixture_of(own, hard=True).mixed("x", 0, sample, 1.0).states
        assert any(torch.equal(found, row) for row in own.states[0])
    words = {
        int(mixture_of(own, hard=True).shares("x", sample, 1.0).argmax()) for sample in range(40)
    }
    assert len(words) > 2  # the noise decides at first
    assert {int(mixture_of(own).shares("x", s, 0.0).argmax()) for s in range(9)} == {0}  # without


def test_a_soft_mixture_keeps_the_largest_shares_and_the_length_of_its_parts():
    own = candidates()
    mixture = mixture_of(own, topk=2)
    y = mixture.shares("x", 4, 1.0)
    top = y.topk(2)
    weights = top.values / top.values.sum()
    parts = own.states[0][top.indices]
    found = mixture.mixed("x", 0, 4, 1.0).states
    length = (weights[:, None] * parts.norm(dim=-1)).sum(dim=0)
    assert torch.allclose(found.norm(dim=-1), length, atol=1e-5)
    mean = (weights[:, None, None] * parts).sum(dim=0)
    assert torch.allclose(
        torch.nn.functional.normalize(found, dim=-1), torch.nn.functional.normalize(mean, dim=-1)
    )


def test_a_hard_mixture_passes_the_gradient_of_the_soft_one():
    own = candidates()
    grads = []
    for hard in (True, False):
        mixture = mixture_of(own, hard=hard, topk=6)
        y = mixture.shares("x", 1, 1.0)
        if hard:
            mixture.mixed("x", 0, 1, 1.0).states.sum().backward()
        else:
            torch.tensordot(y, own.states[0], dims=1).sum().backward()
        grads.append(mixture.pi("x").grad)
    assert torch.allclose(*grads, atol=1e-6)


def test_only_the_concept_of_a_sample_moves():
    own = candidates()
    mixture = Mixture({"x": own, "y": own}, temperature=0.5, hard=False, topk=3, seed=0)
    mixture.mixed("x", 0, 0, 1.0).states.square().sum().backward()
    assert mixture.pi("x").grad.abs().sum() > 0
    assert mixture.pi("y").grad is None


# --- the game -----------------------------------------------------------------------------------


def test_turns_alternate_and_only_the_mover_moves():
    with Table() as table:
        table.wander()
        parts = {WEIGHTS: list(table.model.parameters()), MIXTURE: list(table.mixture.parameters())}
        for step in range(4):
            before = {name: [p.detach().clone() for p in own] for name, own in parts.items()}
            mover = (WEIGHTS, MIXTURE)[step % 2]
            assert table.loop.state.mover == mover
            table.loop.step(step)
            for name, own in parts.items():
                moved = any(not torch.equal(p, q) for p, q in zip(own, before[name], strict=True))
                assert moved is (name == mover)


def test_the_mixture_climbs_and_the_model_descends():
    with Table(steps=12, pi_lr=0.3, lr=1e-3, quiet_from=None, topk=4) as table:
        table.wander()
        mixture = table.turns[1]
        samples = range(6)
        high = float(table.parts(mixture, samples)["loss"].detach())
        for _ in range(8):
            (-table.parts(mixture, samples)["loss"]).backward()
            table.loop.state.players[MIXTURE].move()
        assert float(table.parts(mixture, samples)["loss"].detach()) > high


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("hard", [False, True])
def test_every_family_plays_and_twice_to_the_same_bits(kind, hard):
    first, again = played(kind, hard=hard), played(kind, hard=hard)
    assert same(first, again)
    assert first.provenance == again.provenance
    words = [word for word, _ in first.provenance["align"]["targets"]["violin"]]
    assert set(words) == set(WORDS[:4])  # neither the concept, an alias, nor its plural
    assert first.provenance["erased"][0]["target"] == words[0]
    assert first.exact_rank == first.rank <= QUICK["rank"]


def test_current_latents_are_sampled_by_the_model_in_training():
    pooled, current = played(), played(latents="current")
    assert not same(pooled, current)
    assert same(current, played(latents="current"))


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_stopped_game_resumes_to_the_same_bits(stop, tmp_path, monkeypatch):
    whole = played(log=tmp_path / "whole")
    advance = state.State.advance

    def stops(self, losses):
        advance(self, losses)
        if self.step == stop:
            raise Stopped

    work = tmp_path / "work"
    work.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(state.State, "advance", stops)
        with pytest.raises(Stopped):
            played(work=work, save_every=1)
    resumed = played(work=work, log=tmp_path / "resumed", save_every=1)
    assert same(resumed, whole)
    assert resumed.provenance == whole.provenance
    told = [
        (tmp_path / which / "align" / "trajectory.json").read_bytes()
        for which in ("whole", "resumed")
    ]
    assert told[0] == told[1]


def test_the_way_of_the_targets_is_a_table_and_a_picture(tmp_path):
    edit = played(log=tmp_path, steps=5)
    told = json.loads((tmp_path / "align" / "trajectory.json").read_text())
    assert told["led"]["violin"][0]["step"] == 1
    assert told["led"]["violin"][-1]["word"] == edit.provenance["erased"][0]["target"]
    picture = Image.open(tmp_path / "align" / "trajectory.png").convert("L")
    assert picture.getextrema()[0] < 128 < picture.getextrema()[1]  # something is drawn on it


def test_a_fixed_target_has_no_opponent_and_is_trained_towards(tmp_path):
    edit = played(mixture="fixed", log=tmp_path)
    assert edit.provenance["align"]["targets"] == {"violin": [["trumpet", 1.0]]}
    assert edit.provenance["align"]["steps"] == QUICK["steps"]
    assert not (tmp_path / "align" / "trajectory.json").exists()  # there is no way to show


@pytest.mark.parametrize("part", ["lora", "xattn", "noxattn"])
def test_a_game_that_recomputes_activations_is_the_same_game(part):
    """The teacher is differentiated while the student is on: it must not be computed again then."""
    options = {"train": part, "rank": 4, "lr": 1e-3, "steps": 2}
    kept, again = played(**options), played(checkpointing=True, **options)
    shares = [dict(edit.provenance["align"]["targets"]["violin"]) for edit in (kept, again)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-3)
    assert kept.difference(again) < 1e-2


def test_a_checkpoint_of_an_earlier_version_starts_again(tmp_path):
    played(work=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    old = {name.removeprefix("weights."): tensor for name, tensor in load_file(path).items()}
    save_file(old, path, {"parts": "loss,erase,keep"})
    assert same(played(work=tmp_path), played())


# --- parts of the denoiser, trained whole ---------------------------------------------------------


@pytest.mark.parametrize("part", ["xattn", "noxattn"])
def test_a_part_is_trained_whole_and_the_error_of_its_factors_is_said(part):
    model = opened("sd1")
    pipe = model.pipeline()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    edit = played(train=part, rank=2, lr=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    touched = {*edit.factors, *edit.dense}
    assert touched
    assert all((".attn2." in name) == (part == "xattn") for name in touched)
    assert all(pair.rank <= 2 for pair in edit.factors.values())
    assert 0 < edit.provenance["align"]["truncation_error"] < 1
    whole = played(train=part, rank=10_000, lr=1e-3)
    assert whole.provenance["align"]["truncation_error"] < 1e-6
    assert edit.difference(whole) > 0
    with whole.applied(pipe):
        assert any(not torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())


def test_a_part_trained_whole_equals_its_change_applied():
    """The student while it trains, and the base with the edit on it, predict the same."""
    with Table(train="xattn", rank=10_000, precision="fp32") as table:
        with torch.no_grad():
            for at, copy in enumerate(table.model.named_parameters().values()):
                copy.add_(
                    0.01 * torch.randn(copy.shape, generator=torch.Generator().manual_seed(at))
                )
        rows = Rows(
            {
                ERASE: torch.randn(
                    1, *table.denoiser.shape, generator=torch.Generator().manual_seed(9)
                )
            },
            {ERASE: torch.tensor([500])},
            {OWN: [table.prompts.erased[0].erased]},
        )
        with table.model.student():
            trained = table.loop.predict(rows, (OWN,), grad=False)[OWN]
        edit = table.loop.on(WeightEdit({}, exact_rank=0)) if table.loop.state._history else None
        change = table.model.change(table.loop.state.values())
        assert edit is None
        factors = {f"unet.{path}": pair for path, pair in change.factors.items()}
        dense = {f"unet.{name}": delta for name, delta in change.dense.items()}
        with WeightEdit(factors, dense).applied(table.denoiser.pipe), torch.no_grad():
            applied = table.denoiser(rows.latents[ERASE], rows.times[ERASE], rows.texts[OWN])
    assert torch.allclose(applied, trained, atol=1e-4)


def test_a_lora_file_for_parts_trained_whole_is_refused_before_anything_is_trained():
    recipe = resolve("age", {"concepts": [{"name": "violin"}]}, ["align.train=xattn"])
    with pytest.raises(PackageError, match="low-rank factors alone"):
        check(recipe)
    check(resolve("age", {"concepts": [{"name": "violin"}]}, preset="official"))


# --- bad input -----------------------------------------------------------------------------------


def test_a_list_that_holds_only_the_concept_is_refused():
    with pytest.raises(EditError, match="no candidate to become"):
        played(neighbors=near(words=()))


def test_an_unknown_part_of_the_parameters_is_refused():
    with pytest.raises(RecipeError) as caught:
        resolve("age", {"concepts": [{"name": "violin"}]}, ["align.train=attn2"])
    assert "xattn" in str(caught.value.allowed) + str(caught.value)


def test_a_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(RecipeError, match="place for the name"):
        AgeConfig(templates=("a picture",)).check_early((Concept(name="violin"),))


def test_the_papers_preset_says_what_was_never_published():
    with pytest.raises(RecipeError, match="published nowhere"):
        resolve("age", {"concepts": [{"name": "violin"}]}, preset="paper")


def test_a_closed_text_carries_no_gradient():
    text = Encoded(torch.ones(2, 2, requires_grad=True) * 2)
    assert not _closed(text).states.requires_grad
