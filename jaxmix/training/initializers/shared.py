"""Initializes kinds whose sites share arrays, such as VeRA's projections or VB-LoRA's bank."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import ShapeError, UnsupportedError, listing
from jaxmix.families import PVeRA, RandLoRA, TinyLoRA, UniLoRA, Update, VBLoRA, VeRA
from jaxmix.training.draws import kaiming, normal, site_key, uniform
from jaxmix.training.initializers.checks import check_positive
from jaxmix.training.initializers.initializer import LINEAR, Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

Targets = Mapping[str, Target]


def _dtype(targets: Targets) -> Any:
    """Returns the dtype of the shared arrays."""
    return np.result_type(*(target.dtype for target in targets.values()))


def vera(
    key: Any, targets: Targets, *, rank: int = 256, d_initial: float = 0.1
) -> dict[str, Update]:
    """VeRA: A and B uniform, shared by all sites and as large as the largest; λ_b zero."""
    a, b = _projections(key, targets, rank, rank)
    return {
        site: VeRA(
            a,
            b,
            jnp.zeros(target.outputs, target.dtype),
            jnp.full((rank,), d_initial, target.dtype),
            transposed=target.is_transposed,
        )
        for site, target in targets.items()
    }


def pvera(
    key: Any, targets: Targets, *, rank: int = 256, d_initial: float = 0.1
) -> dict[str, Update]:
    """PVeRA: as VeRA, with twice the rows of A and twice the entries of λ_d."""
    a, b = _projections(key, targets, 2 * rank, rank)
    return {
        site: PVeRA(
            a,
            b,
            jnp.zeros(target.outputs, target.dtype),
            jnp.full((2 * rank,), d_initial, target.dtype),
            transposed=target.is_transposed,
        )
        for site, target in targets.items()
    }


def _projections(key: Any, targets: Targets, rows: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """Draws A (rows, in) and B (out, rank) for the largest sites."""
    check_positive(rank=rank)
    a_key, b_key = jax.random.split(key)
    inputs = max(x.inputs for x in targets.values())
    outputs = max(x.outputs for x in targets.values())
    dtype = _dtype(targets)
    a = kaiming(a_key, (rows, inputs), dtype, slope=0)
    return a, kaiming(b_key, (outputs, rank), dtype, slope=0)


def randlora(
    key: Any, targets: Targets, *, rank: int = 32, alpha: float = 640
) -> dict[str, Update]:
    """RandLoRA: A and B uniform with standard deviation 1, shared by all sites; λ zero."""
    check_positive(rank=rank)
    a_key, b_key = jax.random.split(key)
    inputs = max(x.inputs for x in targets.values())
    outputs = max(x.outputs for x in targets.values())
    small, large = sorted((inputs, outputs))
    dtype = _dtype(targets)
    a = _standardized(uniform(a_key, (rank, 1, small), dtype, 1.0))
    b = _standardized(uniform(b_key, (large, -(-small // rank), rank), dtype, 1.0))
    updates: dict[str, Update] = {}
    for site, target in targets.items():
        size = min(target.shape)
        bases = -(-size // rank)
        gamma = jnp.full((bases, size), 1 / max(bases, size), target.dtype)
        weights = jnp.zeros((rank, bases), target.dtype)
        is_transposed = target.is_transposed
        updates[site] = RandLoRA(a, b, weights, gamma, alpha / rank, transposed=is_transposed)
    return updates


def _standardized(x: jax.Array) -> jax.Array:
    """Scales an array to a standard deviation of 1."""
    return x / jnp.std(x, ddof=1)


def vblora(
    key: Any,
    targets: Targets,
    *,
    rank: int = 4,
    num_vectors: int = 256,
    vector_length: int = 256,
    topk: int = 2,
    init_vector_bank_bound: float = 0.02,
    init_logits_std: float = 0.1,
) -> dict[str, Update]:
    """VB-LoRA: a uniform bank for all sites and normal logits, which changes the base slightly."""
    check_positive(rank=rank, num_vectors=num_vectors, vector_length=vector_length, topk=topk)
    length = vector_length
    wrong = [
        f"{site}: ({target.outputs}, {target.inputs})"
        for site, target in targets.items()
        if target.outputs % length or target.inputs % length
    ]
    if wrong or topk > num_vectors:
        raise ShapeError(
            f"vector_length is {length} and topk {topk}, expected a vector_length that divides all "
            f"sizes and a topk of at most {num_vectors}, the number of vectors:{listing(wrong)}"
        )
    bank = uniform(
        site_key(key, ""), (num_vectors, length), _dtype(targets), init_vector_bank_bound
    )
    updates: dict[str, Update] = {}
    for site, target in targets.items():
        a_key, b_key = jax.random.split(site_key(key, site))
        rows, cols = target.outputs // length, target.inputs // length
        a = normal(a_key, (rank, cols, num_vectors), target.dtype, init_logits_std)
        b = normal(b_key, (rows, rank, num_vectors), target.dtype, init_logits_std)
        updates[site] = VBLoRA((a,), (b,), bank, topk, target.is_transposed)
    return updates


def unilora(
    key: Any,
    targets: Targets,
    *,
    rank: int = 4,
    theta_d_length: int = 256,
    init_theta_d_bound: float = 0.02,
) -> dict[str, Update]:
    """UniLoRA: θ uniform and each entry used equally often, which changes the base slightly."""
    check_positive(rank=rank, theta_d_length=theta_d_length)
    theta_key, order_key, deal_key = jax.random.split(key, 3)
    dtype = _dtype(targets)
    theta = uniform(theta_key, (theta_d_length,), dtype, init_theta_d_bound)
    sizes = [rank * (target.outputs + target.inputs) for target in targets.values()]
    # First draw the entries that are used once more than the others, then the positions of all.
    order = jax.random.permutation(order_key, theta_d_length)
    indices = order[jnp.arange(sum(sizes)) % theta_d_length].astype(np.int32)
    indices = jax.random.permutation(deal_key, indices)
    counts = jnp.bincount(indices, length=theta_d_length)
    scales = jnp.where(counts > 0, jax.lax.rsqrt(jnp.maximum(counts, 1).astype(dtype)), 0)
    updates: dict[str, Update] = {}
    start = 0
    for (site, target), size in zip(targets.items(), sizes, strict=True):
        site_indices = indices[start : start + size]
        a = site_indices[: rank * target.inputs].reshape(rank, target.inputs)
        b = site_indices[rank * target.inputs :].reshape(target.outputs, rank)
        is_transposed = target.is_transposed
        updates[site] = UniLoRA(theta, a, b, scales[a], scales[b], transposed=is_transposed)
        start += size
    return updates


def tinylora(
    key: Any,
    targets: Targets,
    *,
    rank: int = 2,
    u: int = 64,
    weight_tying: float = 0.0,
    init_weights: bool | str = True,
    init_v_bound: float = 0.02,
) -> dict[str, Update]:
    """TinyLoRA: v zero or uniform, one per group of sites; P normal; A and B from the base."""
    check_positive(rank=rank, u=u)
    if init_weights not in (True, "uniform") or not 0 <= weight_tying <= 1:
        raise UnsupportedError(
            f"init_weights is {init_weights!r} and weight_tying {weight_tying}, expected True or "
            "'uniform', and a number from 0 to 1"
        )
    count = len(targets)
    groups = max(1, round(count * (1.0 - weight_tying)))
    vectors: dict[int, jax.Array] = {}
    updates: dict[str, Update] = {}
    for number, (site, target) in enumerate(targets.items()):
        group = min(number // max(1, count // groups), groups - 1)
        if group not in vectors:
            bound = init_v_bound if init_weights == "uniform" else 0.0
            vectors[group] = uniform(site_key(key, f"group {group}"), (u,), target.dtype, bound)
        left, values, right = jnp.linalg.svd(target.matrix, full_matrices=False)
        r = min(rank, *target.shape)
        roots = jnp.sqrt(values[:r])
        updates[site] = TinyLoRA(
            roots[:, None] * right[:r],
            left[:, :r] * roots[None],
            normal(site_key(key, site), (u, r, r), target.dtype, r**-0.5),
            vectors[group],
            number=number,
            transposed=target.is_transposed,
        )
    return updates


KINDS = {
    "vera": Initializer(vera, LINEAR, shared=True),
    "pvera": Initializer(pvera, LINEAR, shared=True),
    "randlora": Initializer(randlora, LINEAR, shared=True),
    "vblora": Initializer(vblora, LINEAR, shared=True),
    "unilora": Initializer(unilora, LINEAR, shared=True),
    "tinylora": Initializer(tinylora, (*LINEAR, "embedding"), shared=True),
}
