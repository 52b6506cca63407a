"""The numeric core: one ridge solve, its checks, ranks. Pure float64 tensors, no model, no names.

Why float64 everywhere: eigenvalues of the Gram matrix lie between the ridge and the sum of squared
norms. With a thousand preserve vectors of width 768 the condition number passes 1e6, and a float32
solve may be off by 9 %, a float64 solve by 2e-10. No inverse is ever formed. methods.md 1.1 to 1.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editforge.ground.errors import EditError


@dataclass(frozen=True)
class Solution:
    """A factor `A` (n, d) that serves every layer, and what the solve knows about itself.

    `ridge` is absolute. `condition` bounds the condition number of G from its extreme eigenvalues.
    """

    A: Tensor
    ridge: float
    condition: float


def solve(
    erased: Tensor,
    preserve: Tensor,
    *,
    erase_weight: Tensor,
    preserve_weight: Tensor,
    ridge: float,
    ridge_scale: str = "relative",
    moment: Tensor | None = None,
) -> Solution:
    """One factor A for all layers: map erased vectors to their targets and hold preserve vectors.

    Guarantee: with B_l = W_l (T - C), the change B_l A minimizes the weighted squared error of
    methods.md 1.1 for every layer l, whatever the targets T (d, n) are: they do not enter A. The rank
    of the change is at most min(n, rank(T - C)), and exactly that in a generic case. It tends to zero
    as the ridge grows. Preserve vectors drift softly, less with more weight.

    Formula, with C, P = erased, preserve:

        lam = ridge * mean |C_i|^2              (ridge itself if ridge_scale is "absolute")
        G   = lam I + C diag(w_e) C^T + P diag(w_p) P^T + moment
        A   = diag(w_e) C^T G^-1                one Cholesky factorization, no layer enters

    With fewer vectors than dimensions and no moment, the Woodbury form solves an (n + m)-square
    system instead; both agree to rounding.

    Args:
        erased: (d, n), any float dtype. More columns: higher rank.
        preserve: (d, m), m may be 0. More columns: less drift, weaker erasure.
        erase_weight: (n,), >= 0. Raising it moves the concept closer to its target.
        preserve_weight: (m,), >= 0. Raising it shrinks the drift of that vector.
        ridge: > 0. Raising it shrinks the edit everywhere. 0 only if G is well conditioned without.
        ridge_scale: "relative" to the mean squared norm of the erased vectors, or "absolute".
        moment: (d, d), symmetric, a preserve moment summed beforehand over a long list.

    Raises:
        EditError: shapes do not fit, a negative weight, a value that is not finite, a singular G.

    Reference: Gandikota et al., "Unified Concept Editing in Diffusion Models", arXiv 2308.14761.

    Known failure: an erased vector close to the span of preserve is hardly moved.
    The caller reports the remaining distance to the target per concept.
    """
    C, P = erased.double(), preserve.double()
    w_e, w_p = erase_weight.double(), preserve_weight.double()
    _check_inputs(C, P, w_e, w_p, ridge, moment)
    d, n = C.shape
    if n == 0:
        return Solution(torch.zeros(0, d, dtype=torch.float64), 0.0, 1.0)
    lam = ridge * float(C.square().sum(dim=0).mean()) if ridge_scale == "relative" else ridge
    Y = torch.cat([C * w_e.sqrt(), P * w_p.sqrt()], dim=1)  # (d, n + m)
    if moment is None and Y.shape[1] < d and lam > 0:
        small = Y.T @ Y  # (n + m, n + m)
        low, high = _extremes(small, floor=0.0)
        small.diagonal().add_(lam)
        A = w_e.sqrt()[:, None] * torch.cholesky_solve(Y.T.contiguous(), _factor(small))[:n]
        return Solution(A, lam, (high + lam) / lam)
    gram = Y @ Y.T
    if moment is not None:
        gram += (moment.double() + moment.double().T) / 2  # rounding left it slightly asymmetric
    low, high = _extremes(gram, floor=0.0)
    if lam == 0 and low <= 1e-8 * high:
        raise EditError(
            "the system is singular without a ridge",
            got=f"smallest eigenvalue {low:.3g}, largest {high:.3g}",
            allowed="ridge > 0",
            next="--set edit.ridge=6.5e-4",
        )
    gram.diagonal().add_(lam)
    A = torch.cholesky_solve((C * w_e).contiguous(), _factor(gram)).T
    return Solution(A, lam, (high + lam) / (low + lam))


def constrained(means: Tensor, gram: Tensor, *, ridge: float) -> Solution:
    """The factor A (k, d) that answers each mean with one and everything held the least.

    Guarantee: A M = I, and of all A that satisfy it this one minimizes lam |A|_F^2 + trace(A S A^T), the
    weighted sum of |A x|^2 over what S was summed from. So W' = W + W D A moves the k mean states by
    exactly D and the rest as little as possible, whatever D (d, k) is. It is the limit of `solve` for
    an erase weight that grows without bound.

    Formula, with M = means (minimum variance under a linear constraint: Capon 1969):

        lam = ridge * mean |M_i|^2          G = lam I + S
        A   = (M^T G^-1 M)^-1 M^T G^-1

    Args:
        means: (d, k), linearly independent.
        gram: (d, d), S, symmetric, positive semidefinite. Larger: what it holds drifts less.
        ridge: > 0. Raising it shrinks A where nothing is held.

    Raises:
        EditError: means that are one to the encoder, a value that is not finite, a singular G.

    Known failure: a mean inside the span of what is held needs a large A; the check on
    amplification refuses it.
    """
    M, S = means.double(), gram.double()
    none = torch.zeros(0, dtype=torch.float64)
    _check_inputs(M, M[:, :0], torch.ones(M.shape[1]).double(), none, ridge, S)
    if M.shape[1] == 0:
        return Solution(torch.zeros(0, M.shape[0], dtype=torch.float64), 0.0, 1.0)
    lam = ridge * float(M.square().sum(dim=0).mean())
    G = (S + S.T) / 2
    low, high = _extremes(G, floor=0.0)
    G.diagonal().add_(lam)
    solved = torch.cholesky_solve(M, _factor(G))  # G^-1 M, (d, k)
    inner = M.T @ solved
    smallest, largest = _extremes((inner + inner.T) / 2, floor=0.0)
    if not smallest > 1e-10 * largest:
        raise EditError(
            "two erased names are one to the text encoder",
            got=f"condition {largest / max(smallest, 1e-300):.2g} of their means",
            next="leave out the alias or the neighbor that means exactly the same",
        )
    A = torch.cholesky_solve(solved.T.contiguous(), _factor((inner + inner.T) / 2))
    return Solution(A, lam, (high + lam) / (low + lam))


def null_space(
    erased: Tensor, preserved: Tensor, fixed: Tensor, *, threshold: float, ridge: float
) -> Solution:
    """A factor A (n, d) that is zero on the span of what is preserved, and on `fixed`.

    Guarantee: A p = 0 for every p in the span of the eigenvectors of `preserved` above the threshold,
    and A K = 0 for K = fixed, both to rounding. Rank at most n.

    Formula, with C = erased and sigma, U the eigenvalues and eigenvectors of `preserved`:

        P = U_0 U_0^T, columns with sigma < threshold * sigma_max      S = C C^T / n
        lam = ridge * mean |C_i|^2            M = (S P + lam I)^-1
        A   = C^T P (I - M K (K^T P M K)^+ K^T P) M / n

    Args:
        erased: (d, n).
        preserved: (d, d), mean of p p^T over what is preserved. More: a smaller null space.
        fixed: K (d, k), states that stay whatever is preserved.
        threshold: relative. Higher: more directions are free, and what is preserved drifts more.
        ridge: > 0. Raising it shrinks the edit.

    Raises:
        EditError: nothing is free, shapes do not fit, or a value that is not finite.

    Reference: Li et al., "SPEED", arXiv 2503.07392; methods.md 5.4.
    """
    C, K, S0 = erased.double(), fixed.double(), preserved.double()
    ones = torch.ones(C.shape[1], dtype=torch.float64)
    _check_inputs(C, K, ones, torch.ones(K.shape[1], dtype=torch.float64), ridge, S0)
    d, n = C.shape
    sigma, U = torch.linalg.eigh((S0 + S0.T) / 2)
    free = U[:, sigma <= threshold * sigma[-1].clamp(min=0)]
    if free.shape[1] == 0:
        raise EditError(
            "what is preserved leaves no direction to edit",
            got=f"{d} of {d} dimensions in use",
            next="preserve fewer names (--set edit.background=null), or raise edit.threshold",
        )
    P = free @ free.T
    lam = ridge * float(C.square().sum(dim=0).mean())
    G = C @ C.T / n @ P
    G.diagonal().add_(lam)
    M = torch.linalg.solve(G, torch.eye(d, dtype=torch.float64))
    inner = torch.linalg.pinv(K.T @ P @ M @ K, rtol=1e-10)
    A = C.T @ P @ (M - M @ K @ inner @ (K.T @ P @ M)) / n
    values = torch.linalg.svdvals(G)
    return Solution(A, lam, float(values[0] / values[-1]))


def null_operator(erased: Tensor, target: Tensor, A: Tensor) -> Tensor:
    """E = I + (T - C) A, (d, d): feeding E h to the original maps equals editing all of them."""
    d = erased.shape[0]
    return torch.eye(d, dtype=torch.float64) + (target.double() - erased.double()) @ A.double()


def moved(vectors: Tensor, erased: Tensor, target: Tensor, A: Tensor) -> Tensor:
    """E x for columns x of `vectors` (d, k), without forming E."""
    x = vectors.double()
    return x + (target.double() - erased.double()) @ (A.double() @ x)


def amplification(erased: Tensor, target: Tensor, A: Tensor) -> float:
    """Spectral norm of E = I + (T - C) A, from a system of twice the rank, never (d, d)."""
    shift, A = target.double() - erased.double(), A.double()
    n, d = A.shape
    if n == 0:
        return 1.0
    # E acts as the identity outside the span of T - C and A^T, so its norm lives inside that span.
    basis, _ = torch.linalg.qr(torch.cat([shift, A.T], dim=1))  # (d, min(d, 2n))
    inside = torch.eye(basis.shape[1], dtype=torch.float64) + (basis.T @ shift) @ (A @ basis)
    return max(float(torch.linalg.matrix_norm(inside, ord=2)), 1.0 if basis.shape[1] < d else 0.0)


def rank(left: Tensor, right: Tensor, tolerance: float = 1e-9) -> int:
    """Numerical rank of left (o, r) @ right (r, d), measured on the factors, not on a difference."""
    _, a = torch.linalg.qr(left.double())
    _, b = torch.linalg.qr(right.double().T)
    sigma = torch.linalg.svdvals(a @ b.T)
    largest = float(sigma[0]) if sigma.numel() else 0.0
    return int((sigma > tolerance * largest).sum()) if largest > 0 else 0


def truncated(
    left: Tensor, right: Tensor, keep: int | None = None, *, tolerance: float = 0.0
) -> tuple[Tensor, Tensor, float]:
    """The best rank-`keep` factors of left (o, r) @ right (r, d), and the relative Frobenius error.

    Without `keep`, all singular values above `tolerance` times the largest. Columns of the first and
    rows of the second have equal norms: what 16 bits hold best.
    """
    a, core_left = torch.linalg.qr(left.double())
    b, core_right = torch.linalg.qr(right.double().T)
    u, sigma, vh = torch.linalg.svd(core_left @ core_right.T)
    if keep is None:
        keep = int((sigma > tolerance * sigma[:1]).sum())
    root = sigma[:keep].sqrt()
    lost = float(sigma[keep:].norm() / sigma.norm().clamp(min=1e-300))
    return (a @ u[:, :keep]) * root, root[:, None] * (vh[:keep] @ b.T), lost


def product_norm(left: Tensor, right: Tensor) -> float:
    """|left right|_F without the product; triangular factors keep what a Gram matrix would cancel."""
    a = torch.linalg.qr(left.double()).R
    b = torch.linalg.qr(right.double().T).R
    return float(torch.linalg.matrix_norm(a @ b.T))


def _check_inputs(
    C: Tensor, P: Tensor, w_e: Tensor, w_p: Tensor, ridge: float, moment: Tensor | None
) -> None:
    d = C.shape[0]
    fits = P.shape[0] == d and w_e.shape == C.shape[1:] and w_p.shape == P.shape[1:]
    if not fits or (moment is not None and tuple(moment.shape) != (d, d)):
        shapes = [tuple(t.shape) for t in (C, P, w_e, w_p)]
        raise EditError("the shapes do not fit", got=shapes, allowed="(d, n), (d, m), (n,), (m,)")
    named = {"erased": C, "preserve": P, "erase_weight": w_e, "preserve_weight": w_p}
    for name, value in named.items() if moment is None else {**named, "moment": moment}.items():
        if not bool(torch.isfinite(value).all()):
            raise EditError(f"{name} holds a NaN or an infinity", next="check the text encoder")
    if bool((w_e < 0).any()) or bool((w_p < 0).any()) or not ridge >= 0:
        raise EditError("weights and ridge must not be negative", got=f"ridge {ridge}")


def _extremes(gram: Tensor, floor: float) -> tuple[float, float]:
    values = torch.linalg.eigvalsh(gram)
    return max(float(values[0]), floor), float(values[-1])


def _factor(gram: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        raise EditError(
            "the system is not positive definite",
            got=f"leading minor {int(info)}",
            next="raise edit.ridge, or drop contradictory preserve concepts",
        )
    return factor
