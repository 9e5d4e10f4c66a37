"""How kinds start whose sites share arrays: a bank, a vector, bases; frozen ones are drawn too."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import ShapeError, UnsupportedError, listing
from jaxmix.families import PVeRA, RandLoRA, TinyLoRA, UniLoRA, Update, VBLoRA, VeRA
from jaxmix.training.draws import kaiming, normal, site_key, uniform
from jaxmix.training.kinds.checks import positive
from jaxmix.training.kinds.kind import LINEAR, Kind
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

Targets = Mapping[str, Target]


def _dtype(targets: Targets) -> Any:
    """The dtype of what all share."""
    return np.result_type(*(one.dtype for one in targets.values()))


def vera(
    key: Any, targets: Targets, *, rank: int = 256, d_initial: float = 0.1
) -> dict[str, Update]:
    """VeRA: A and B uniform, of all sites the same and as large as the largest; λ_b zero."""
    a, b = _projections(key, targets, rank, rank)
    return {
        site: VeRA(
            a,
            b,
            jnp.zeros(one.outputs, one.dtype),
            jnp.full((rank,), d_initial, one.dtype),
            transposed=one.is_turned,
        )
        for site, one in targets.items()
    }


def pvera(
    key: Any, targets: Targets, *, rank: int = 256, d_initial: float = 0.1
) -> dict[str, Update]:
    """PVeRA: as VeRA, with twice the rows of A and the numbers of λ_d."""
    a, b = _projections(key, targets, 2 * rank, rank)
    return {
        site: PVeRA(
            a,
            b,
            jnp.zeros(one.outputs, one.dtype),
            jnp.full((2 * rank,), d_initial, one.dtype),
            transposed=one.is_turned,
        )
        for site, one in targets.items()
    }


def _projections(key: Any, targets: Targets, rows: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """A (rows, in) and B (out, rank) for the largest sites."""
    positive(rank=rank)
    one, two = jax.random.split(key)
    inputs = max(x.inputs for x in targets.values())
    outputs = max(x.outputs for x in targets.values())
    dtype = _dtype(targets)
    a = kaiming(one, (rows, inputs), dtype, slope=0)
    return a, kaiming(two, (outputs, rank), dtype, slope=0)


def randlora(
    key: Any, targets: Targets, *, rank: int = 32, alpha: float = 640
) -> dict[str, Update]:
    """RandLoRA: A and B uniform, of deviation 1, the same for all sites; λ zero."""
    positive(rank=rank)
    one, two = jax.random.split(key)
    inputs = max(x.inputs for x in targets.values())
    outputs = max(x.outputs for x in targets.values())
    small, large = sorted((inputs, outputs))
    dtype = _dtype(targets)
    a = _normed(uniform(one, (rank, 1, small), dtype, 1.0))
    b = _normed(uniform(two, (large, -(-small // rank), rank), dtype, 1.0))
    made: dict[str, Update] = {}
    for site, target in targets.items():
        size = min(target.shape)
        bases = -(-size // rank)
        gamma = jnp.full((bases, size), 1 / max(bases, size), target.dtype)
        weights = jnp.zeros((rank, bases), target.dtype)
        made[site] = RandLoRA(a, b, weights, gamma, alpha / rank, transposed=target.is_turned)
    return made


def _normed(x: jax.Array) -> jax.Array:
    """With a standard deviation of 1."""
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
    """VB-LoRA: a uniform bank for all sites, normal logits; so it is not quite the base."""
    positive(rank=rank, num_vectors=num_vectors, vector_length=vector_length, topk=topk)
    length = vector_length
    odd = [
        f"{site}: ({one.outputs}, {one.inputs})"
        for site, one in targets.items()
        if one.outputs % length or one.inputs % length
    ]
    if odd or topk > num_vectors:
        raise ShapeError(
            f"vector_length is {length} and topk {topk} of {num_vectors} vectors, expected a "
            f"divisor of all sizes and no more than there are:{listing(odd)}"
        )
    bank = uniform(
        site_key(key, ""), (num_vectors, length), _dtype(targets), init_vector_bank_bound
    )
    made: dict[str, Update] = {}
    for site, one in targets.items():
        first, second = jax.random.split(site_key(key, site))
        rows, cols = one.outputs // length, one.inputs // length
        a = normal(first, (rank, cols, num_vectors), one.dtype, init_logits_std)
        b = normal(second, (rows, rank, num_vectors), one.dtype, init_logits_std)
        made[site] = VBLoRA((a,), (b,), bank, topk, one.is_turned)
    return made


def unilora(
    key: Any,
    targets: Targets,
    *,
    rank: int = 4,
    theta_d_length: int = 256,
    init_theta_d_bound: float = 0.02,
) -> dict[str, Update]:
    """UniLoRA: θ uniform, its numbers dealt to all factors as often each; not quite the base."""
    positive(rank=rank, theta_d_length=theta_d_length)
    first, second, third = jax.random.split(key, 3)
    dtype = _dtype(targets)
    theta = uniform(first, (theta_d_length,), dtype, init_theta_d_bound)
    sizes = [rank * (one.outputs + one.inputs) for one in targets.values()]
    # The numbers that are dealt once more than others are drawn, and then all places.
    order = jax.random.permutation(second, theta_d_length)
    dealt = order[jnp.arange(sum(sizes)) % theta_d_length].astype(np.int32)
    dealt = jax.random.permutation(third, dealt)
    often = jnp.bincount(dealt, length=theta_d_length)
    scales = jnp.where(often > 0, jax.lax.rsqrt(jnp.maximum(often, 1).astype(dtype)), 0)
    made: dict[str, Update] = {}
    start = 0
    for (site, one), size in zip(targets.items(), sizes, strict=True):
        own = dealt[start : start + size]
        a = own[: rank * one.inputs].reshape(rank, one.inputs)
        b = own[rank * one.inputs :].reshape(one.outputs, rank)
        made[site] = UniLoRA(theta, a, b, scales[a], scales[b], transposed=one.is_turned)
        start += size
    return made


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
    """TinyLoRA: v zero, or uniform, one for a group of sites; P normal; A and B the base's own."""
    positive(rank=rank, u=u)
    if init_weights not in (True, "uniform") or not 0 <= weight_tying <= 1:
        raise UnsupportedError(
            f"init_weights is {init_weights!r} and weight_tying {weight_tying}, expected True or "
            "'uniform', and from 0 to 1"
        )
    count = len(targets)
    groups = max(1, round(count * (1.0 - weight_tying)))
    vectors: dict[int, jax.Array] = {}
    made: dict[str, Update] = {}
    for number, (site, one) in enumerate(targets.items()):
        group = min(number // max(1, count // groups), groups - 1)
        if group not in vectors:
            bound = init_v_bound if init_weights == "uniform" else 0.0
            vectors[group] = uniform(site_key(key, f"group {group}"), (u,), one.dtype, bound)
        left, values, right = jnp.linalg.svd(one.matrix, full_matrices=False)
        r = min(rank, *one.shape)
        roots = jnp.sqrt(values[:r])
        made[site] = TinyLoRA(
            roots[:, None] * right[:r],
            left[:, :r] * roots[None],
            normal(site_key(key, site), (u, r, r), one.dtype, r**-0.5),
            vectors[group],
            number=number,
            transposed=one.is_turned,
        )
    return made


KINDS = {
    "vera": Kind(vera, LINEAR, shared=True),
    "pvera": Kind(pvera, LINEAR, shared=True),
    "randlora": Kind(randlora, LINEAR, shared=True),
    "vblora": Kind(vblora, LINEAR, shared=True),
    "unilora": Kind(unilora, LINEAR, shared=True),
    "tinylora": Kind(tinylora, (*LINEAR, "embedding"), shared=True),
}
