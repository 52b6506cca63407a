"""Known answers: a metric that is wrong here is wrong everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editforge.evaluate import metrics
from editforge.ground.errors import EditforgeError


def test_wilson_interval_of_a_textbook_case():
    estimate = metrics.rate([1] * 15 + [0] * 5)
    assert (estimate.value, estimate.n, estimate.unit) == (0.75, 20, "images")
    assert estimate.lo == pytest.approx(0.531298, abs=1e-5)
    assert estimate.hi == pytest.approx(0.888139, abs=1e-5)


def test_zero_hits_have_the_exact_one_sided_bound():
    estimate = metrics.rate([0] * 32)
    assert (estimate.value, estimate.lo) == (0, 0)
    assert estimate.hi == pytest.approx(1 - 0.05 ** (1 / 32), abs=1e-6)


def test_all_hits_reach_one():
    estimate = metrics.rate([1] * 32)
    assert (estimate.value, estimate.hi) == (1, 1)
    assert 0.85 < estimate.lo < 0.95


@pytest.mark.parametrize(
    "estimate",
    [
        metrics.rate([]),
        metrics.kept([], []),
        metrics.mean([]),
        metrics.kept([[]], [[]]),
        metrics.ratio([], [1, 0]),
    ],
)
def test_an_empty_set_is_undefined_with_a_reason(estimate):
    assert (estimate.defined, estimate.value, estimate.n) == (False, None, 0)
    assert estimate.reason


def test_a_base_that_draws_nothing_leaves_the_ratio_undefined():
    assert not metrics.kept([[0, 0], [0]], [[1, 1], [1]]).defined


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: metrics.rate(bad),
        lambda bad: metrics.kept([[1, 1]], [bad]),
        lambda bad: metrics.mean([bad]),
        lambda bad: metrics.ratio([1, 1], bad),
    ],
)
def test_a_nan_raises(call):
    with pytest.raises(EditforgeError, match="NaN"):
        call([1.0, float("nan")])


def test_a_ratio_of_shares_that_do_not_pair_up():
    estimate = metrics.ratio([1] * 30 + [0] * 70, [1] * 30 + [0] * 10)
    assert (estimate.value, estimate.n) == (0.4, 100)
    assert estimate.lo < 0.33 < 0.48 < estimate.hi
    assert metrics.ratio([1, 1], [1, 0]).value == 1
    assert not metrics.ratio([1, 1], [0, 0]).defined
    assert not metrics.ratio([1, 1], []).defined
    assert metrics.ratio([0] * 50, [1] * 50).value == 0


def test_unpaired_images_raise():
    with pytest.raises(EditforgeError, match="pair"):
        metrics.kept([[1, 1]], [[1]])


def test_nothing_erased_is_one_and_everything_lost_is_zero():
    same = metrics.kept([[1, 0, 1]] * 8, [[1, 0, 1]] * 8)
    lost = metrics.kept([[1, 0, 1]] * 8, [[0, 0, 0]] * 8)
    assert (same.value, same.lo, same.hi) == (1, 1, 1)
    assert (lost.value, lost.lo, lost.hi) == (0, 0, 0)


def test_a_model_better_than_the_base_keeps_at_most_one():
    assert metrics.kept([[1, 0]] * 4, [[1, 1]] * 4).value == 1


def test_half_the_names_lost_is_half_kept_and_wide():
    estimate = metrics.kept([[1] * 8] * 8, [[1] * 8] * 4 + [[0] * 8] * 4)
    assert estimate.value == 0.5
    assert estimate.lo < 0.3
    assert estimate.hi > 0.7


def test_pairing_narrows_the_interval():
    """The same loss on the very images the base draws is less uncertain than on others."""
    base = [[1, 1, 1, 1, 0, 0, 0, 0]] * 8
    paired = metrics.kept(base, base)
    unpaired = metrics.kept(base, [row[::-1] for row in base])
    assert paired.hi - paired.lo == 0
    assert unpaired.hi - unpaired.lo > 0


def test_mean_of_known_groups():
    estimate = metrics.mean([[0.0, 0.0], [1.0, 1.0]])
    assert estimate.value == 0.5
    assert estimate.lo == 0
    assert estimate.hi == 1


def test_bootstrap_covers_at_about_the_nominal_rate():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        p = generator.uniform(0.5, 0.9, size=24)
        edited = [generator.random(8) < share for share in p]
        estimate = metrics.kept([[1] * 8] * 24, edited, seed=trial)
        covered += estimate.lo <= 0.7 <= estimate.hi
    assert covered >= 51  # 85 %: the percentile interval of 24 names is a little narrow


def test_fifty_erased_and_fifty_kept_whatever_the_batches():
    """A public package reports 0.5 and 0 here: it indexes the data set a batch at a time."""
    hits = np.array([1] * 50 + [0] * 50)
    for size in (1, 7, 32, 100):
        batches = [hits[start : start + size] for start in range(0, 100, size)]
        assert metrics.rate(np.concatenate(batches)[:50]).value == 1
        assert metrics.rate(np.concatenate(batches)[50:]).value == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_row_order_changes_no_rate(hits, random):
    shuffled = hits[:]
    random.shuffle(shuffled)
    assert metrics.rate(hits) == metrics.rate(shuffled)
    estimate = metrics.rate(hits)
    assert 0 <= estimate.lo <= estimate.value <= estimate.hi <= 1


def test_the_medoid_finds_one_picture_and_not_many():
    generator = np.random.default_rng(0)
    one = np.repeat(generator.integers(0, 256, (1, 8, 8, 3)), 10, axis=0).astype(np.uint8)
    many = generator.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    assert metrics.medoid_share(one, 0.02) == 1
    assert metrics.medoid_share(many, 0.02) == 0.1


def test_a_single_image_is_not_one_picture_many_times():
    assert metrics.medoid_share(np.zeros((1, 4, 4, 3), np.uint8), 0.02) == 0
    assert metrics.medoid_share(np.zeros((0, 4, 4, 3), np.uint8), 0.02) == 0
