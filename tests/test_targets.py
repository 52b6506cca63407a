"""What a concept becomes and what must not move: rules, their linear algebra, a person's edits."""

from __future__ import annotations

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from editforge.artifacts.concepts import Concept
from editforge.artifacts.neighbors import Neighbor, Neighborhood, Neighbors
from editforge.artifacts.targets import Candidate, Preserved, Target, Targets
from editforge.families.metric import text_metric
from editforge.families.model import Model, Origin
from editforge.families.vocabulary import group_of, load_vocabulary
from editforge.ground.errors import EditError, RecipeError
from editforge.ground.linalg import solve
from editforge.ground.names import fold, with_article
from editforge.recipe.contract import Context, TargetInputs
from editforge.run.stages import choose, mine
from editforge.target.adaptive import AdaptiveConfig, adaptive
from editforge.target.fixed import FixedConfig
from editforge.target.look import Seen, survey
from tests.models import family_file, opened, recipe, tiny_folder
from tests.tiny import WORDS

NOUNS = [word for word in WORDS if len(word) >= 3]


def aimed(model, made):
    context = Context(model, made.seed)
    neighbors = mine(made, context)
    return neighbors, choose(made, neighbors, context)


def listed(tmp_path, words, **options):
    """Mining from a word list of our own, on random weights whose variants say nothing."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(words) + "\n")
    return {
        "use": "vocabulary",
        "words": str(path),
        "skip_top": 0,
        "min_variant_similarity": 2.0,
        **options,
    }


# --- never the concept itself -------------------------------------------------------------------


def test_the_concept_its_variants_and_its_aliases_are_never_chosen_or_preserved(tmp_path):
    words = [
        "violin",
        "Violin",
        "violins",
        "the violin",
        "red violin",
        "violin art",
        "fiddle",
        "fiddles",
        "dogs",
        "dog",
        "guitar",
        "piano",
        "house",
    ]
    made = recipe(
        [{"name": "violin", "aliases": ["fiddle"]}, {"name": "dog"}],
        {"mine": listed(tmp_path, words, min_displacement=0)},
    )
    neighbors, targets = aimed(opened("sd1"), made)
    violin, dog = (neighbors.of(name) for name in ("violin", "dog"))
    free = {"guitar", "piano", "house"}
    for near in (violin, dog):
        assert {row.word for row in near.words if row.candidate} == free
        assert set(near.having("preserve")) == free
    assert {targets.of(name).target for name in ("violin", "dog")} <= free
    assert set(targets.preserved) <= free
    reasons = {row.word: row.reason for row in violin.words}
    assert reasons["violins"] == reasons["Violin"] == reasons["the violin"] == "same word"
    assert reasons["red violin"] == "one contains the other"
    assert reasons["fiddle"] == "alias"
    assert reasons["fiddles"] == "same word"
    assert reasons["dog"] == reasons["dogs"] == "erased too"
    assert violin.having("erase") == ["fiddle"]


@pytest.mark.parametrize(
    ("word", "name", "same"),
    [
        ("violins", "violin", True),
        ("An Eye", "eye", True),
        ("strawberries", "strawberry", True),
        ("boxes", "box", True),
        ("truck", "garbage truck", True),
        ("garbage trucks", "truck", True),
        ("glass", "glas", False),
        ("eyeglasses", "eye", False),
        ("guitar", "violin", False),
    ],
)
def test_two_names_are_one_by_their_words(word, name, same, tmp_path):
    made = recipe(name, {"mine": listed(tmp_path, [word, "house"])})
    rows = {row.word: row.reason for row in mine(made, Context(opened("sd1"))).of(name).words}
    assert bool(rows[word]) is same
    assert rows["house"] == ""


def test_two_concepts_never_become_each_other():
    alone = aimed(opened("emoji"), recipe("violin"))[0].of("violin")
    names = ["violin", *[row.word for row in alone.words if row.candidate][:4]]  # alone, it may
    _, targets = aimed(
        opened("emoji"), recipe(names, {"target": {"use": "adaptive", "judge": None}})
    )
    chosen = {targets.of(name).target for name in names}
    assert not chosen & set(names)
    assert not set(targets.preserved) & set(names)
    assert len(names) == 5


def test_a_look_alike_in_a_curated_list_is_preserved_but_no_target_to_who_cannot_look():
    made = recipe("violin", {"target": {"use": "adaptive", "judge": None}})
    neighbors, targets = aimed(opened("emoji"), made)
    near = neighbors.of("violin")
    skipped = [row.word for row in near.words if row.role == "preserve" and not row.candidate]
    assert len(near.having("preserve")) == 16
    assert skipped
    assert all(row.doubtful for row in near.words if row.word in skipped)
    assert targets.of("violin").target not in skipped
    assert set(near.having("preserve")) <= set(targets.preserved)


# --- what candidates look like -------------------------------------------------------------------


def test_a_violin_becomes_a_guitar_and_a_dolphin_no_whale_for_the_pictures_say_so():
    _, targets = aimed(opened("emoji"), recipe(["violin", "dolphin"]))
    violin, dolphin = targets.of("violin"), targets.of("dolphin")
    assert violin.target == "guitar"  # among the nearest by text, where spelling could not tell
    whale = next(row for row in dolphin.candidates if row.word == "whale")
    assert whale.reason == "drawn like the concept"
    assert whale.as_concept > 0.1
    for one in (violin, dolphin):
        taken = one.candidates[0]
        assert taken.word == one.target
        assert taken.as_concept <= 0.1
        assert taken.itself == 1
        assert -1 <= taken.image <= 1
        assert -1 <= taken.meaning <= 1
        assert "looked at" in one.reason
        assert sum(row.itself is not None for row in one.candidates) >= 3


class Table:
    """An eye that has seen these shares: (taken for itself, taken for the concept)."""

    concept = "owl"

    def __init__(self, shares):
        self.shares, self.asked = shares, []

    def look(self, word):
        self.asked.append(word)
        return Seen(*self.shares[word], image=None)


def looked(shares, wanted=1, least=1, most=9):
    eye = Table(shares)
    return eye, survey(eye, list(shares), {}, wanted, least, most, (0.3, 0.5))


def test_pictures_refuse_what_passes_for_the_concept_and_what_nobody_knows():
    shares = {"eagle": (1.0, 0.31), "bat": (0.49, 0.0), "hen": (0.5, 0.3), "cow": (1.0, 0.0)}
    eye, found = looked(shares)
    assert found.passed == ("hen",)
    assert eye.asked == ["eagle", "bat", "hen"]  # no further than needed
    assert found.refused == {
        "eagle": "drawn like the concept",
        "bat": "seldom known for what it is",
    }
    assert looked(shares, least=4)[0].asked == list(shares)
    assert looked(shares, wanted=2)[1].passed == ("hen", "cow")


def test_where_nothing_is_known_well_the_best_known_is_taken_and_a_synonym_never_is():
    shares = {"eagle": (1.0, 0.5), "bat": (0.2, 0.0), "hen": (0.4, 0.0), "cow": (1.0, 0.0)}
    _, found = looked(shares, most=3)
    assert found.passed == ("hen",)
    assert "taken because" in found.refused["hen"]
    with pytest.raises(EditError, match="all are drawn like it"):
        looked({"eagle": (1.0, 0.5), "hawk": (1.0, 0.9)})


def test_a_target_is_of_the_concepts_own_group_if_one_will_do():
    made = recipe("robot")
    _, own = aimed(opened("emoji"), made)
    free = recipe("robot", {"target": {"use": "adaptive", "same_group": False}})
    _, any_group = aimed(opened("emoji"), free)
    family = opened("emoji").family
    assert group_of(family, own.of("robot").target) == group_of(family, "robot")
    assert group_of(family, any_group.of("robot").target) != group_of(family, "robot")


def test_who_knows_no_judge_for_a_concept_says_that_nobody_looked():
    said = []
    model, made = opened("emoji"), recipe("submarine")
    context = Context(model, made.seed, say=said.append)
    targets = choose(made, mine(made, context), context)
    assert any("no judge knows 'submarine'" in line for line in said)
    assert all(row.itself is None for row in targets.of("submarine").candidates)


def test_synonyms_are_those_nearer_than_the_concepts_own_spellings(tmp_path):
    model = opened("emoji")
    words = ["guitar", "banjo", "trumpet", "house", "dog"]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(words))
    strict = {
        "use": "vocabulary",
        "words": str(path),
        "min_variant_similarity": -1.0,
        "skip_top": 0,
    }
    counts = []
    for margin in (0.0, 2.0):
        made = recipe("violin", {"mine": {**strict, "synonym_margin": margin}})
        near = mine(made, Context(model)).of("violin")
        counts.append(near.passed_over.get("means the same", 0))
    assert counts[0] < counts[1] == len(words)


def test_where_variants_cannot_tell_the_nearest_words_are_passed_over(tmp_path):
    words = ["guitar", "piano", "house", "dog", "cat"]
    for skip in (0, 3):
        made = recipe(
            "violin", {"mine": listed(tmp_path, words, skip_top=skip, min_displacement=0)}
        )
        near = mine(made, Context(opened("sd1"))).of("violin")
        assert [bool(row.reason) for row in near.words] == [True] * skip + [False] * (5 - skip)
        similarities = [row.similarity for row in near.words]
        assert similarities == sorted(similarities, reverse=True)


def test_blocked_words_are_neither_chosen_nor_preserved(tmp_path):
    words = ["guitar", "piano", "house", "dog"]
    free = mine(recipe("violin", {"mine": listed(tmp_path, words)}), Context(opened("sd1"))).of(
        "violin"
    )
    made = recipe("violin", {"mine": listed(tmp_path, words, blocklist=["Guitar"])})
    blocked = mine(made, Context(opened("sd1"))).of("violin")
    assert "guitar" in free.having("preserve")
    assert "guitar" not in blocked.having("preserve")
    assert blocked.passed_over == {"blocklist": 1}


# --- the linear algebra -------------------------------------------------------------------------


def brute_force(model, made, inputs, config, word):
    """J(word) from fresh solves, with the word really in the preserve set."""
    known = load_vocabulary(model, inputs.neighbors.source)
    U, at = known.vectors.double(), {w: i for i, w in enumerate(known.words)}
    near = inputs.neighbors.of(made.concepts[0].name)
    c = model.encoder.encode_words([near.concept]).double().T
    mean = U.mean(dim=0)[:, None]
    kept = [U[at[w]][:, None] for w in near.having("preserve") if w in at]
    lam = config.ridge * float(c.T @ c)

    def leak(held):
        P = torch.cat(held, dim=1)
        return solve(
            c,
            P,
            erase_weight=torch.ones(1),
            preserve_weight=torch.full((P.shape[1],), config.preserve_weight),
            ridge=lam,
            ridge_scale="absolute",
        ).A[0]

    plain = leak([*kept, mean])
    out = {fold(row.word) for row in near.words if row.role == "erase" or row.reason} | {
        fold(near.concept)
    }
    ranked = (U @ plain).abs().argsort(descending=True).tolist()
    affected = [i for i in ranked if fold(known.words[i]) not in out]
    affected = [i for i in affected if known.words[i] != word][: config.num_affected]
    with_word = leak([*kept, mean, U[at[word]][:, None]])
    displacement = next(row.displacement for row in near.words if row.word == word)
    return displacement**2 * float((U[affected] @ with_word).square().mean()), plain, c


@pytest.mark.parametrize("kind", ["emoji", "sd1"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_damage_of_every_candidate_equals_a_fresh_solve(kind, weight):
    model = opened(kind)
    made = recipe(
        "violin",
        {
            "target": {
                "use": "adaptive",
                "preserve_weight": weight,
                "num_listed": 100,
                "num_nearest": 100,
                "judge": None,
            }
        },
    )
    neighbors, targets = aimed(model, made)
    config = AdaptiveConfig(preserve_weight=weight, num_listed=100, judge=None)
    inputs = TargetInputs(made.concepts, neighbors)
    rows = targets.of("violin").candidates
    assert [row.score for row in rows] == sorted(row.score for row in rows)
    assert len({row.score for row in rows}) > 3
    for row in rows[:3] + rows[-2:]:
        damage, plain, _ = brute_force(model, made, inputs, config, row.word)
        assert row.score == pytest.approx(damage, rel=1e-4)
        known = load_vocabulary(model, neighbors.source)
        own = known.vectors[known.words.index(row.word)].double()
        assert row.leak == pytest.approx(float(own @ plain), rel=1e-4, abs=1e-8)
    assert targets.of("violin").target == rows[0].word


@pytest.mark.parametrize("count", [1, 3])
def test_the_damage_decides_among_the_nearest_alone(count):
    target = {"use": "adaptive", "num_listed": 100, "num_nearest": count, "judge": None}
    _, targets = aimed(opened("emoji"), recipe("violin", {"target": target}))
    rows = targets.of("violin").candidates
    nearest = sorted(rows, key=lambda row: -row.similarity)[:count]
    assert targets.of("violin").target == rows[0].word
    assert rows[0] == min(nearest, key=lambda row: row.score)
    assert [row.score for row in rows[1:]] == sorted(row.score for row in rows[1:])


@pytest.mark.parametrize("count", [1, 4])
def test_the_damage_is_computed_where_it_decides_or_is_listed_and_nowhere_else(count, monkeypatch):
    """The same choice and the same numbers as with the damage of every candidate at hand."""
    computed = []

    def counted(**row):
        computed.append(row["word"])
        return Candidate(**row)

    monkeypatch.setattr("editforge.target.damage.Candidate", counted)
    some, every = (
        aimed(
            opened("emoji"),
            recipe("violin", {"target": {"use": "adaptive", "judge": None, **more}}),
        )[1]
        for more in (
            {"num_listed": 3, "num_nearest": count},
            {"num_listed": 100, "num_nearest": count},
        )
    )
    few, rows = some.of("violin").candidates, every.of("violin").candidates
    assert some.of("violin").target == every.of("violin").target
    assert some.of("violin").reason == every.of("violin").reason
    assert set(few) < set(rows)
    assert len(few) == 3 < len(rows)
    nearest = sorted(rows, key=lambda row: -row.similarity)[: max(3, count)]
    assert {row.word for row in few} <= {row.word for row in nearest}
    assert len(computed) == len(nearest) + len(rows)


def test_of_candidates_that_are_equally_near_the_damage_decides():
    model, made = opened("emoji"), recipe("violin")
    neighbors = mine(made, Context(model))
    rows = neighbors.of("violin").words
    twins = [row.model_copy(update={"similarity": 0.5} if row.candidate else {}) for row in rows]
    neighbors = Neighbors(
        source=neighbors.source,
        concepts=(neighbors.of("violin").model_copy(update={"words": tuple(twins)}),),
    )
    inputs = TargetInputs(made.concepts, neighbors)
    few, every = (
        adaptive(inputs, AdaptiveConfig(num_listed=listed, judge=None), Context(model)).of("violin")
        for listed in (2, 100)
    )
    assert few.target == every.target == min(every.candidates, key=lambda row: row.score).word
    assert few.candidates == every.candidates[:2]


def test_the_concepts_own_leak_is_the_erase_fraction():
    model, made = opened("emoji"), recipe("violin")
    neighbors, _ = aimed(model, made)
    config = AdaptiveConfig()
    word = next(row.word for row in neighbors.of("violin").words if row.candidate)
    _, plain, c = brute_force(model, made, TargetInputs(made.concepts, neighbors), config, word)
    known = load_vocabulary(model, "family")
    at = {w: i for i, w in enumerate(known.words)}
    kept = [known.vectors[at[w]].double() for w in neighbors.of("violin").having("preserve")]
    P = torch.stack([*kept, known.vectors.mean(dim=0).double()]).T
    G = config.ridge * float(c.T @ c) * torch.eye(len(c), dtype=torch.float64) + P @ P.T
    q = float(c.T @ torch.linalg.solve(G, c))
    assert float(plain @ c[:, 0]) == pytest.approx(q / (1 + q), rel=1e-6)


@settings(deadline=None, max_examples=5)
@given(order=st.permutations(NOUNS))
def test_the_order_of_the_word_list_changes_nothing(order, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("order")
    results = []
    for words in (NOUNS, order):
        made = recipe(["violin", "dog"], {"mine": listed(tmp, words)})
        neighbors, targets = aimed(opened("sd1"), made)
        results.append(
            (
                [targets.of(name).target for name in ("violin", "dog")],
                sorted(targets.preserved),
                [[row.word for row in neighbors.of(name).words] for name in ("violin", "dog")],
            )
        )
    assert results[0] == results[1]


class Scaled(Model):
    """All maps times one number, or each by its own."""

    factor = 1000.0

    def weight(self, path):
        return super().weight(path) * self.factor


def test_a_common_scale_of_all_maps_changes_nothing():
    plain = Model(tiny_folder("sd1"), Origin("tiny"), family=family_file("sd1"))
    scaled = Scaled(tiny_folder("sd1"), Origin("tiny"), family=family_file("sd1"))
    torch.testing.assert_close(text_metric(plain), text_metric(scaled), rtol=1e-5, atol=1e-9)
    made = recipe("violin")
    assert aimed(plain, made) == aimed(scaled, made)


def test_every_map_counts_alike_in_the_metric():
    model = opened("sd1")
    total = torch.zeros(model.family.text_width, model.family.text_width, dtype=torch.float64)
    for path in model.paths:
        W = model.weight(path).double()
        total += W.T @ W / W.square().sum()
    torch.testing.assert_close(
        text_metric(model).double(), total / len(model.paths), rtol=1e-5, atol=1e-8
    )
    assert float(text_metric(model).trace()) == pytest.approx(1, rel=1e-5)


# --- no target left -----------------------------------------------------------------------------


def test_no_candidate_left_is_refused_with_what_was_passed_over(tmp_path):
    words = ["violins", "red violin", "dog"]
    made = recipe(["violin", "dog"], {"mine": listed(tmp_path, words)})
    with pytest.raises(EditError, match="no target is left for 'violin'") as caught:
        aimed(opened("sd1"), made)
    assert "1 same word" in caught.value.got
    assert "1 one contains the other" in caught.value.got
    assert "1 erased too" in caught.value.got
    assert "--target TEXT" in caught.value.next
    assert aimed(opened("sd1"), recipe("violin", {"mine": listed(tmp_path, [*words, "house"])}))


def test_without_mining_there_is_nothing_to_choose_from_and_it_says_so():
    with pytest.raises(EditError, match="no target is left") as caught:
        aimed(opened("sd1"), recipe("violin", {"mine": None}))
    assert caught.value.got == "an empty word list"
    made = recipe("violin", {"mine": None, "target": {"use": "fixed", "text": "trumpet"}})
    assert aimed(opened("sd1"), made)[1].of("violin").target == "trumpet"


def test_a_name_too_long_is_refused_even_without_mining():
    long = " ".join(["cat"] * 40)
    for overrides in ({}, {"mine": None}):
        with pytest.raises(RecipeError, match="cut off by the text encoder"):
            aimed(opened("emoji"), recipe(long, overrides))


# --- fixed targets and preserve lists -------------------------------------------------------------


def test_one_target_for_all_or_one_for_each():
    texts = {"use": "fixed", "text": "trumpet", "texts": {"dog": "cat"}}
    _, targets = aimed(opened("sd1"), recipe(["violin", "dog"], {"target": texts}))
    assert [(row.concept, row.target) for row in targets.concepts] == [
        ("violin", "trumpet"),
        ("dog", "cat"),
    ]
    assert targets.preserved[:2] == ["trumpet", "cat"]
    with pytest.raises(RecipeError, match="texts names no erased concept") as caught:
        aimed(opened("sd1"), recipe("violin", {"target": {**texts, "texts": {"violn": "cat"}}}))
    assert "did you mean violin" in caught.value.allowed


@pytest.mark.parametrize("text", ["", " "])
def test_nothing_is_a_target_and_is_not_preserved(text):
    made = recipe("violin", {"target": {"use": "fixed", "text": text}, "preserve": ["guitar"]})
    _, targets = aimed(opened("sd1"), made)
    assert targets.of("violin").target == ""
    assert targets.preserved == ["guitar"]


@pytest.mark.parametrize("text", ["violin", "Violins", "a violin"])
def test_no_spelling_of_the_concept_is_its_target(text):
    with pytest.raises(RecipeError, match="nothing would be erased"):
        FixedConfig(text=text).check_early((Concept(name="violin"),))
    FixedConfig(text="viola").check_early((Concept(name="violin"),))


def test_the_target_is_preserved_unless_the_recipe_says_otherwise():
    for hold, expected in ((True, ["trumpet", "guitar"]), (False, ["guitar"])):
        fixed = {"use": "fixed", "text": "trumpet", "preserve_target": hold}
        made = recipe("violin", {"target": fixed, "preserve": ["guitar", "Guitar"]})
        assert aimed(opened("sd1"), made)[1].preserved == expected


@pytest.mark.parametrize("text", ["cat " * 90, "!!!"])
def test_a_target_that_cannot_be_read_is_refused(text):
    made = recipe("violin", {"target": {"use": "fixed", "text": text.strip()}})
    with pytest.raises(RecipeError):
        aimed(opened("sd1"), made)


def test_a_users_list_replaces_the_mined_one_and_targets_come_first():
    _, mined = aimed(opened("emoji"), recipe("violin"))
    _, typed = aimed(opened("emoji"), recipe("violin", {"preserve": ["dog", "cat"]}))
    assert len(mined.preserve) >= 16
    assert typed.preserved == [typed.of("violin").target, "dog", "cat"]
    assert [row.reason for row in typed.preserve][1:] == ["your list", "your list"]
    _, none = aimed(opened("emoji"), recipe("violin", {"preserve": []}))
    assert none.preserved == [none.of("violin").target]


def test_the_adaptive_choice_does_not_depend_on_the_order_of_concepts():
    forward = aimed(opened("emoji"), recipe(["violin", "spider"]))[1]
    backward = aimed(opened("emoji"), recipe(["spider", "violin"]))[1]
    assert {row.concept: row.target for row in forward.concepts} == {
        row.concept: row.target for row in backward.concepts
    }
    assert set(forward.preserved) == set(backward.preserved)


# --- lists that a person edits --------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path):
    neighbors, targets = aimed(opened("sd1"), recipe(["violin", "dog"]))
    neighbors.save(tmp_path)
    targets.save(tmp_path)
    return tmp_path


def test_lists_load_as_they_were_saved_and_say_what_they_mean(lists):
    neighbors, targets = aimed(opened("sd1"), recipe(["violin", "dog"]))
    assert Neighbors.load(lists) == neighbors
    assert Targets.load(lists) == targets
    assert (lists / "neighbors.yaml").read_text().startswith("# What lies near")
    assert "must not move" in (lists / "targets.yaml").read_text()


def rewritten(path, change):
    body = yaml.safe_load(path.read_text())
    change(body)
    path.write_text(yaml.safe_dump(body))


def test_an_edited_role_counts(lists):
    def mark(body):
        body["concepts"][0]["words"][0]["role"] = "erase"

    rewritten(lists / "neighbors.yaml", mark)
    near = Neighbors.load(lists).of("violin")
    assert near.having("erase") == [near.words[0].word]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            lambda body: body["concepts"][0]["words"][0].update(role="keep"),
            "concepts.0.words.0.role",
        ),
        (lambda body: body["concepts"][0]["words"][0].update(similarity="near"), "similarity"),
        (lambda body: body["concepts"][0]["words"][0].update(colour="red"), "colour"),
        (lambda body: body["concepts"][0]["words"][0].update(word=""), "word"),
        (lambda body: body["concepts"][0]["words"][0].pop("displacement"), "displacement"),
        (lambda body: body.update(concepts={"violin": []}), "concepts"),
    ],
)
def test_a_bad_edit_of_neighbors_is_refused_with_its_place(change, place, lists):
    rewritten(lists / "neighbors.yaml", change)
    with pytest.raises(
        RecipeError, match=r"neighbors.yaml was edited into something else"
    ) as caught:
        Neighbors.load(lists)
    assert place in caught.value.got
    assert "mend the line" in caught.value.next


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["concepts"][0].update(target="violin"), "equals its target"),
        (lambda body: body["concepts"][0].update(target="The Dog"), "is itself erased"),
        (lambda body: body["preserve"].append({"word": "Violin"}), "both erased and preserved"),
        (
            lambda body: body["concepts"].append({**body["concepts"][0], "candidates": []}),
            "has two targets",
        ),
        (lambda body: body["concepts"][0].update(target=None), "string"),
        (lambda body: body["preserve"].append("guitar"), "dictionary or instance"),
    ],
)
def test_a_bad_edit_of_targets_is_refused_with_the_reason(change, message, lists):
    rewritten(lists / "targets.yaml", change)
    with pytest.raises(RecipeError, match=r"targets.yaml was edited into something else") as caught:
        Targets.load(lists)
    assert message in caught.value.allowed


def test_a_list_without_a_row_for_a_concept_says_which(lists):
    rewritten(lists / "targets.yaml", lambda body: body["concepts"].pop(0))
    targets = Targets.load(lists)
    assert targets.of("dog").target
    with pytest.raises(RecipeError, match=r"targets.yaml has no target for 'violin'") as caught:
        targets.of("violin")
    assert caught.value.got == "dog"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "schema: editforge.targets/9", "concepts: []", "a: [", "a: !!python/name:os.system"],
)
def test_what_is_no_list_of_this_version_is_refused(text, lists):
    (lists / "targets.yaml").write_text(text)
    with pytest.raises(RecipeError):
        Targets.load(lists)


def test_merging_keeps_the_first_row_and_every_concept():
    def row(word, role="ignore", reason=""):
        return Neighbor(word=word, role=role, similarity=0.5, displacement=1, reason=reason)

    a = Neighbors(
        source="a", concepts=(Neighborhood(concept="violin", words=(row("x", "preserve"),)),)
    )
    b = Neighbors(
        source="b",
        concepts=(
            Neighborhood(concept="violin", words=(row("x"), row("y"))),
            Neighborhood(concept="dog", words=(row("z"),)),
        ),
    )
    both = a.merged(b)
    assert both.source == "a"
    assert [(r.word, r.role) for r in both.of("violin").words] == [
        ("x", "preserve"),
        ("y", "ignore"),
    ]
    assert [r.word for r in both.of("dog").words] == ["z"]
    assert both.of("cat").words == ()


def test_names_fold_and_take_their_article():
    assert fold("The  Van-Gogh!") == "van gogh"
    assert fold("A") == "a"
    assert with_article("eye") == "an eye"
    assert with_article("the moon") == "the moon"
    assert Preserved(word="guitar").word == "guitar"
    assert Target(concept="violin", target="").target == ""
    assert Concept(name="x").kind == "object"


def test_an_adaptive_target_of_many_concepts_is_one_row_each():
    names = ["violin", "dog", "house"]
    made = recipe(names)
    neighbors = mine(made, Context(opened("sd2")))
    found = adaptive(
        TargetInputs(made.concepts, neighbors), AdaptiveConfig(), Context(opened("sd2"))
    )
    assert [row.concept for row in found.concepts] == names
    assert all("the nearest of" in row.reason for row in found.concepts)
