"""How kinds start that are laid out by decompositions of the base: FRoD and AdaMSS."""

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
from jaxmix.training.kinds.checks import positive
from jaxmix.training.kinds.kind import LINEAR, Kind
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

Targets = Mapping[str, Target]


# ---------------------------------------------------------------- FRoD


def frod(
    key: Any, targets: Targets, *, sparse_rate: float = 0.01, regularization_alpha: float = 1e-3
) -> dict[str, Update]:
    """FRoD: V of all weights of one kind of module, l the base's own, S zero at drawn places.

    PEFT leaves all but the last out of V where sites of one kind have one layer's number too.
    """
    if not 0 <= sparse_rate <= 1:
        raise ShapeError(f"sparse_rate is {sparse_rate}, expected from 0 to 1")
    kinds: dict[str, list[str]] = {}
    for site in targets:
        kinds.setdefault(module_category(site), []).append(site)
    _alike(kinds, targets)
    made: dict[str, Update] = {}
    for kind, sites in kinds.items():
        matrices = {site: targets[site].matrix for site in sites}
        size, dtype = (
            targets[sites[0]].inputs,
            np.result_type(*(targets[site].dtype for site in sites)),
        )
        v = _basis([x.astype(dtype) for x in matrices.values()], regularization_alpha)
        places = _places(site_key(key, kind), size, sparse_rate)
        for site, matrix in matrices.items():
            none = jnp.zeros(places.shape[1], matrix.dtype)
            made[site] = FRoD(v, none, places, _lengths(matrix, v), targets[site].is_turned)
    _within_reach(made)
    return {site: made[site] for site in targets}


def _alike(kinds: Mapping[str, Sequence[str]], targets: Targets) -> None:
    """Refuses modules of one kind that have not the same number of inputs."""
    wrong = [
        f"{kind}: {', '.join(f'{site} {targets[site].shape}' for site in sites)}"
        for kind, sites in kinds.items()
        if len({targets[site].inputs for site in sites}) > 1
    ]
    if wrong:
        raise ShapeError(
            "FRoD has one basis for all modules of one kind, by the last two parts of their names, "
            f"and these have other inputs each:{listing(wrong)}\n"
            "Make an adapter for each and mix them."
        )


_lengths = jax.jit(lengths)


@jax.jit
def _basis(matrices: Sequence[Float[Array, "_ in"]], alpha: float) -> Float[Array, "in in"]:
    """V: ``Rᵀ E``, with ``Q R`` all weights below each other and E what their Qᵢ lean to.

    E are the eigenvectors of the mean of ``(Qᵢᵀ Qᵢ + α I)⁻¹``. Where there are fewer rows than
    inputs V is that of the SVD.
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


def _places(key: Any, size: int, rate: float) -> Int[Array, "2 n"]:
    """As many places off the diagonal as the rate says, drawn without one twice."""
    every = size * (size - 1)
    count = min(int(size * size * rate), every)
    if rate > 0 and every:
        count = max(count, 1)
    if not count:
        return jnp.zeros((2, 0), np.int32)
    drawn = jax.random.choice(key, every, (count,), replace=False)
    row, column = drawn // (size - 1), drawn % (size - 1)
    return jnp.stack([row, jnp.where(column < row, column, column + 1)]).astype(np.int32)


def _within_reach(made: Mapping[str, Any]) -> None:
    """Refuses weights from which no basis can be made: all of them zero, say."""
    wrong = [
        f"{site}: a weight of {len(update.lengths)} inputs"
        for site, update in made.items()
        if not isinstance(update.lengths, Tracer) and not jnp.isfinite(update.lengths).all()
    ]
    if wrong:
        raise ShapeError(
            "FRoD needs weights that together reach all of their inputs, and these, with the "
            f"others of their kind, don't:{listing(wrong)}\nLeave them out with exclude_modules."
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
    """AdaMSS: PEFT's own groups of the base's rows, Aᵢ what these lean to, and Bᵢ zero.

    The groups come from the seed and not from the key, so that PEFT finds them again.
    """
    del key
    positive(rank=rank, num_subspaces=num_subspaces, subspace_rank=subspace_rank)
    weight, has_bias = target.matrix, target.bias is not None
    if isinstance(weight, Tracer) or isinstance(target.leaf, jax.ShapeDtypeStruct):
        raise UnsupportedError(
            "AdaMSS groups a weight's rows by their numbers, which traced params don't have yet. "
            "Call init outside of jit"
        )
    if has_bias:
        weight = jnp.concatenate([weight, target.bias_vector[:, None]], axis=1)
    if subspace_rank > (most := min(rank, *weight.shape)):
        raise ShapeError(
            f"subspace_rank is {subspace_rank}, expected {most} at the most, which is the rank of "
            f"all groups together, from weight {target.shape}"
        )
    try:
        left, right, rows = grouped(np.asarray(weight), rank, num_subspaces, random_seed)
    except ImportError as error:
        raise UnsupportedError(
            "AdaMSS groups a weight's rows as PEFT does, with torch's singular vectors and "
            "scikit-learn's k-means. Install them: pip install 'jaxmix-peft[torch]'"
        ) from error
    threshold = svd_threshold if use_dynamic_rank else None
    a = [_leanings(left[own], subspace_rank, threshold) for own in rows]
    dtype, size = target.dtype, target.inputs
    return AdaMSS(
        tuple(jnp.asarray(x, dtype) for x in a),
        tuple(jnp.zeros((len(own), len(x)), dtype) for own, x in zip(rows, a, strict=True)),
        jnp.asarray(right[:, :size], dtype),
        jnp.asarray(np.concatenate(rows), np.int32),
        jnp.asarray(right[:, size], dtype) if has_bias else None,
        random_seed,
    )


def _leanings(part: np.ndarray, rank: int, threshold: float | None) -> np.ndarray:
    """Aᵢ (rᵢ, r): the largest right singular vectors of a group's rows (n, r) of all singular ones.

    With a threshold only those whose square is above it, beside the largest one's. PEFT comes near
    these vectors by a randomised SVD of the rows' Gram matrix, and a QR.
    """
    _, values, vectors = np.linalg.svd(part, full_matrices=False)
    if threshold is not None:
        rank = min(rank, int((values**2 > threshold * values[0] ** 2).sum()))
    return vectors[: max(rank, 1)]


KINDS = {
    "frod": Kind(frod, LINEAR, shared=True),
    "adamss": Kind(adamss, ("linear",)),
}
