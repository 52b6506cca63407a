"""The theorems of methods.md 1.8, each next to a case where the opposite happens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editforge.ground.errors import EditError
from editforge.ground.linalg import amplification, moved, null_operator, rank, solve

D = 24


def problem(n: int, m: int, seed: int = 0, d: int = D):
    generator = torch.Generator().manual_seed(seed)
    C, T = (torch.randn(d, n, generator=generator, dtype=torch.float64) for _ in range(2))
    P = torch.randn(d, m, generator=generator, dtype=torch.float64)
    return C, T, P


def factor(C, P, *, w_e=1.0, w_p=1.0, ridge=1e-2, **options):
    weights = {
        "erase_weight": torch.full((C.shape[1],), w_e, dtype=torch.float64),
        "preserve_weight": torch.full((P.shape[1],), w_p, dtype=torch.float64),
    }
    return solve(C, P, ridge=ridge, **{**weights, **options})


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 6), m=st.integers(0, 30), seed=st.integers(0, 99))
def test_rank_is_the_number_of_erased_vectors_and_never_more(n, m, seed):
    C, T, P = problem(n, m, seed)
    assert rank(T - C, factor(C, P).A) == n
    T[:, -1] = C[:, -1]  # one pair that asks for nothing lowers the rank by one
    assert rank(T - C, factor(C, P).A) == n - 1


def test_target_equal_to_erased_moves_nothing_and_another_target_does():
    C, T, P = problem(3, 5)
    A = factor(C, P).A
    assert torch.equal(moved(P, C, C, A), P)
    assert not torch.allclose(moved(P, C, T, A), P)


def test_no_concept_gives_an_empty_factor():
    C, _, P = problem(0, 5)
    assert factor(C, P).A.shape == (0, D)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 4), m=st.integers(0, 40), seed=st.integers(0, 99))
def test_both_routes_agree_with_brute_force_least_squares(n, m, seed):
    C, T, P = problem(n, m, seed)
    found = factor(C, P, ridge=0.05)
    through_cholesky = factor(C, P, ridge=0.05, moment=torch.zeros(D, D, dtype=torch.float64))
    W = torch.randn(7, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    # W' minimizes |W' C - W T|^2 + |W' P - W P|^2 + lam |W' - W|^2: one stacked least squares
    root = found.ridge**0.5
    left = torch.cat([C, P, root * torch.eye(D, dtype=torch.float64)], dim=1)
    right = torch.cat([W @ T, W @ P, root * W], dim=1)
    brute = torch.linalg.lstsq(left.T, right.T).solution.T
    edited = W + W @ (T - C) @ found.A
    torch.testing.assert_close(edited, brute, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.A, through_cholesky.A, rtol=1e-9, atol=1e-10)


def test_order_of_concepts_changes_rounding_alone():
    C, T, P = problem(4, 9)
    order = torch.tensor([2, 0, 3, 1])
    E = null_operator(C, T, factor(C, P).A)
    shuffled = null_operator(
        C[:, order], T[:, order], factor(C[:, order], P[:, torch.randperm(9)]).A
    )
    torch.testing.assert_close(E, shuffled, rtol=1e-10, atol=1e-10)


def test_a_pair_listed_twice_equals_the_pair_with_twice_the_weight():
    C, T, P = problem(2, 6)
    lam = {"ridge": 0.3, "ridge_scale": "absolute"}
    twice = null_operator(
        torch.cat([C, C[:, :1]], 1),
        torch.cat([T, T[:, :1]], 1),
        factor(torch.cat([C, C[:, :1]], 1), P, **lam).A,
    )
    heavy = factor(C, P, erase_weight=torch.tensor([2.0, 1.0], dtype=torch.float64), **lam).A
    torch.testing.assert_close(twice, null_operator(C, T, heavy), rtol=1e-10, atol=1e-10)


def test_what_is_orthogonal_to_all_vectors_does_not_move():
    C, T, P = problem(3, 6)
    basis, _ = torch.linalg.qr(torch.cat([C, P], 1))
    x = torch.randn(D, 4, dtype=torch.float64)
    outside = x - basis @ (basis.T @ x)
    A = factor(C, P).A
    torch.testing.assert_close(moved(outside, C, T, A), outside, rtol=0, atol=1e-12)
    assert (moved(x, C, T, A) - x).norm() > 0.1


def test_preserve_drift_follows_its_formula_and_falls_with_the_weight():
    C, T, P = problem(2, 5)
    lam = {"ridge": 0.2, "ridge_scale": "absolute"}
    without = factor(C, P[:, :4], **lam)
    G = 0.2 * torch.eye(D, dtype=torch.float64) + C @ C.T + P[:, :4] @ P[:, :4].T
    p = P[:, 4:]
    q = float(p.T @ torch.linalg.solve(G, p))
    before = (T - C) @ without.A @ p
    drifts = []
    for weight in (0.0, 0.5, 2.0, 50.0):
        weights = torch.tensor([1.0, 1, 1, 1, weight], dtype=torch.float64)
        A = factor(C, P, preserve_weight=weights, **lam).A
        drift = moved(p, C, T, A) - p
        torch.testing.assert_close(drift, before / (1 + weight * q), rtol=1e-9, atol=1e-10)
        drifts.append(float(drift.norm()))
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < 0.1 * drifts[0]
    assert drifts[-1] > 0  # soft: never exactly zero


def test_a_huge_ridge_leaves_the_weights_and_the_distance_falls_as_one_over_it():
    C, T, P = problem(2, 4)
    sizes = []
    for ridge in (1e2, 1e4, 1e6):
        A = factor(C, P, ridge=ridge, ridge_scale="absolute").A
        sizes.append(float(((T - C) @ A).norm()) * ridge)
    assert sizes[1] == pytest.approx(sizes[2], rel=1e-2)
    assert float(((T - C) @ A).norm()) < 1e-3


def test_feeding_the_moved_text_equals_editing_the_maps():
    C, T, P = problem(3, 6)
    A = factor(C, P).A
    W, h = torch.randn(9, D, dtype=torch.float64), torch.randn(D, 11, dtype=torch.float64)
    edited = W + W @ (T - C) @ A
    torch.testing.assert_close(edited @ h, W @ moved(h, C, T, A))
    torch.testing.assert_close(W @ null_operator(C, T, A) @ h, W @ moved(h, C, T, A))


def test_idempotent_only_in_the_limit_with_preserved_targets():
    C, T, P = problem(2, 4)
    P = torch.cat([P, T], 1)
    A = factor(C, P, ridge=1e-12).A
    E = null_operator(C, T, A)
    torch.testing.assert_close(E @ E, E, rtol=1e-6, atol=1e-6)
    free = null_operator(C, T, factor(C, P[:, :4], ridge=1e-12).A)
    assert (free @ free - free).norm() > 0.1


def test_a_sum_of_edits_is_the_joint_solution_only_without_interaction():
    C, T, P = problem(2, 4)
    lam = {"ridge": 0.2, "ridge_scale": "absolute"}
    joint = null_operator(C, T, factor(C, P, **lam).A)
    alone = [null_operator(C[:, [i]], T[:, [i]], factor(C[:, [i]], P, **lam).A) for i in (0, 1)]
    eye = torch.eye(D, dtype=torch.float64)
    assert (alone[0] + alone[1] - eye - joint).norm() > 1e-3
    # make the second concept G-orthogonal to the first: then the sum is exact
    G = 0.2 * eye + P @ P.T
    a = C[:, :1]
    b = C[:, 1:] - a * float(a.T @ torch.linalg.solve(G, C[:, 1:])) / float(
        a.T @ torch.linalg.solve(G, a)
    )
    pair = torch.cat([a, b], 1)
    joint = null_operator(pair, T, factor(pair, P, **lam).A)
    alone = [
        null_operator(pair[:, [i]], T[:, [i]], factor(pair[:, [i]], P, **lam).A) for i in (0, 1)
    ]
    torch.testing.assert_close(alone[0] + alone[1] - eye, joint, rtol=1e-9, atol=1e-9)


def test_erase_fraction_follows_its_formula():
    C, _, P = problem(1, 5)
    found = factor(C, P, w_e=1.7, ridge=0.2, ridge_scale="absolute")
    G = 0.2 * torch.eye(D, dtype=torch.float64) + P @ P.T
    q = float(C.T @ torch.linalg.solve(G, C))
    assert float(found.A @ C) == pytest.approx(1.7 * q / (1 + 1.7 * q), rel=1e-10)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_amplification_is_the_spectral_norm_of_the_operator(n):
    C, T, P = problem(n, 6)
    A = factor(C, P).A
    exact = float(torch.linalg.matrix_norm(null_operator(C, T, A), ord=2))
    assert amplification(C, T, A) == pytest.approx(exact, rel=1e-9)


def test_a_singular_system_is_refused_and_a_regular_one_without_ridge_is_solved():
    C, _, P = problem(2, 4)
    with pytest.raises(EditError, match="singular without a ridge"):
        factor(C, P, ridge=0.0)
    C, _, P = problem(2, 40)
    assert torch.isfinite(factor(C, P, ridge=0.0).A).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"erased": float("nan")}, "erased holds a NaN"),
        ({"w_e": -1.0}, "must not be negative"),
        ({"ridge": float("nan")}, "must not be negative"),
        ({"shape": True}, "shapes do not fit"),
    ],
)
def test_bad_numbers_are_refused_by_name(change, message):
    C, _, P = problem(2, 4)
    if "erased" in change:
        C[0, 0] = change["erased"]
    if "shape" in change:
        P = P[:-1]
    with pytest.raises(EditError, match=message):
        factor(C, P, w_e=change.get("w_e", 1.0), ridge=change.get("ridge", 1e-2))
