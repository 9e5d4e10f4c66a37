"""Initializes FRoD and AdaMSS, which use decompositions of the base."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxmix.errors import ShapeError, UnsupportedError, listing
from jaxmix.families import AdaMSS, FRoD, Update
from jaxmix.families.adamss import grouped
from jaxmix.families.frod import lengths, module_category
from jaxmix.training.draws import site_key
from jaxmix.training.initializers.checks import check_positive
from jaxmix.training.initializers.initializer import LINEAR, Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

Targets = Mapping[str, Target]


# ---------------------------------------------------------------- FRoD


def frod(
    key: Any, targets: Targets, *, sparse_rate: float = 0.01, regularization_alpha: float = 1e-3
) -> dict[str, Update]:
    """FRoD: V from all weights of one category, l from the base, S zero at random positions.

    If sites of one category also have the same layer number, PEFT uses only the last of them for V.
    """
    if not 0 <= sparse_rate <= 1:
        raise ShapeError(f"sparse_rate is {sparse_rate}, expected a number from 0 to 1")
    categories: dict[str, list[str]] = {}
    for site in targets:
        categories.setdefault(module_category(site), []).append(site)
    _check_inputs(categories, targets)
    updates: dict[str, Update] = {}
    for category, sites in categories.items():
        matrices = {site: targets[site].matrix for site in sites}
        size, dtype = (
            targets[sites[0]].inputs,
            np.result_type(*(targets[site].dtype for site in sites)),
        )
        v = _basis([x.astype(dtype) for x in matrices.values()], regularization_alpha)
        positions = _positions(site_key(key, category), size, sparse_rate)
        for site, matrix in matrices.items():
            zeros = jnp.zeros(positions.shape[1], matrix.dtype)
            lengths_, is_transposed = _lengths(matrix, v), targets[site].is_transposed
            updates[site] = FRoD(v, zeros, positions, lengths_, is_transposed)
    _check_basis(updates)
    return {site: updates[site] for site in targets}


def _check_inputs(categories: Mapping[str, Sequence[str]], targets: Targets) -> None:
    """Checks that all modules of a category have the same number of inputs."""
    wrong = [
        f"{category}: {', '.join(f'{site} {targets[site].shape}' for site in sites)}"
        for category, sites in categories.items()
        if len({targets[site].inputs for site in sites}) > 1
    ]
    if wrong:
        raise ShapeError(
            "FRoD shares one basis among all modules with the same last two parts of their names, "
            f"but these have different numbers of inputs:{listing(wrong)}\n"
            "Make an adapter for each and mix them."
        )


_lengths = jax.jit(lengths)


@jax.jit
def _basis(matrices: Sequence[Float[Array, "_ in"]], alpha: float) -> Float[Array, "in in"]:
    """Returns ``V = Rᵀ E``, where ``Q R`` is the QR decomposition of all weights, stacked.

    E holds the eigenvectors of the mean of ``(Qᵢᵀ Qᵢ + α I)⁻¹``, where Qᵢ is the part of Q that
    belongs to weight i. With fewer rows than inputs, V is the V of an SVD.
    """
    with jax.default_matmul_precision("highest"):
        stacked = jnp.concatenate(matrices)
        rows, size = stacked.shape
        if rows < size:
            return jnp.linalg.svd(stacked, full_matrices=True)[2].T
        q, r = jnp.linalg.qr(stacked)
        ends = np.cumsum([len(x) for x in matrices])[:-1].tolist()
        ridge = alpha * jnp.eye(size, dtype=stacked.dtype)
        parts = [jnp.linalg.inv(part.T @ part + ridge) for part in jnp.split(q, ends)]
        _, vectors = jnp.linalg.eigh(sum(parts[1:], parts[0]) / len(parts))
        return r.T @ vectors


def _positions(key: Any, size: int, rate: float) -> Int[Array, "2 n"]:
    """Draws distinct positions off the diagonal, as many as the rate requires."""
    total = size * (size - 1)
    count = min(int(size * size * rate), total)
    if rate > 0 and total:
        count = max(count, 1)
    if not count:
        return jnp.zeros((2, 0), np.int32)
    drawn = jax.random.choice(key, total, (count,), replace=False)
    row, column = drawn // (size - 1), drawn % (size - 1)
    return jnp.stack([row, jnp.where(column < row, column, column + 1)]).astype(np.int32)


def _check_basis(updates: Mapping[str, Any]) -> None:
    """Checks that the basis is regular, which it is not for weights of zeros, for example."""
    wrong = [
        f"{site}: a weight of {len(update.lengths)} inputs"
        for site, update in updates.items()
        if not isinstance(update.lengths, Tracer) and not jnp.isfinite(update.lengths).all()
    ]
    if wrong:
        raise ShapeError(
            "FRoD needs weights whose rows together span all inputs, but these, with the others of "
            f"their category, do not:{listing(wrong)}\nLeave them out with exclude_modules."
        )


# ---------------------------------------------------------------- AdaMSS


def adamss(
    key: Any,
    target: Target,
    *,
    rank: int = 100,
    num_subspaces: int = 5,
    subspace_rank: int = 1,
    use_dynamic_rank: bool = False,
    svd_threshold: float = 0.1,
    random_seed: int = 0,
) -> Update:
    """AdaMSS: PEFT's groups of the base's rows, Aᵢ from their singular vectors, and Bᵢ zero.

    The groups depend on the seed, not on the key, so that PEFT finds the same groups.
    """
    del key
    check_positive(rank=rank, num_subspaces=num_subspaces, subspace_rank=subspace_rank)
    weight, has_bias = target.matrix, target.bias is not None
    if isinstance(weight, Tracer) or isinstance(target.leaf, jax.ShapeDtypeStruct):
        raise UnsupportedError(
            "AdaMSS groups a weight's rows by their values, which traced params do not have. Call "
            "init outside of jit"
        )
    if has_bias:
        weight = jnp.concatenate([weight, target.bias_vector[:, None]], axis=1)
    if subspace_rank > (limit := min(rank, *weight.shape)):
        raise ShapeError(
            f"subspace_rank is {subspace_rank}, expected at most {limit}, the rank of all groups "
            f"together, from weight {target.shape}"
        )
    try:
        left, right, rows = grouped(np.asarray(weight), rank, num_subspaces, random_seed)
    except ImportError as error:
        raise UnsupportedError(
            "AdaMSS groups a weight's rows as PEFT does, with torch's singular vectors and "
            "scikit-learn's k-means. Install them: pip install 'jaxmix-peft[torch]'"
        ) from error
    threshold = svd_threshold if use_dynamic_rank else None
    a = [_directions(left[group], subspace_rank, threshold) for group in rows]
    dtype, size = target.dtype, target.inputs
    return AdaMSS(
        tuple(jnp.asarray(x, dtype) for x in a),
        tuple(jnp.zeros((len(group), len(x)), dtype) for group, x in zip(rows, a, strict=True)),
        jnp.asarray(right[:, :size], dtype),
        jnp.asarray(np.concatenate(rows), np.int32),
        jnp.asarray(right[:, size], dtype) if has_bias else None,
        random_seed,
    )


def _directions(part: np.ndarray, rank: int, threshold: float | None) -> np.ndarray:
    """Returns Aᵢ (rᵢ, r): the leading right singular vectors of a group's rows of U (n, r).

    With a threshold, only vectors whose squared singular value exceeds this share of the largest
    are used. PEFT approximates the vectors with a randomized SVD of the rows' Gram matrix and a QR.
    """
    _, values, vectors = np.linalg.svd(part, full_matrices=False)
    if threshold is not None:
        rank = min(rank, int((values**2 > threshold * values[0] ** 2).sum()))
    return vectors[: max(rank, 1)]


KINDS = {
    "frod": Initializer(frod, LINEAR, shared=True),
    "adamss": Initializer(adamss, ("linear",)),
}
