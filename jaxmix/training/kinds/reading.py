"""How kinds start that read the base, or are laid out by its sizes: with a change of zero."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmix.errors import ShapeError
from jaxmix.families import (
    DEFT,
    AdaLoRA,
    DeLoRA,
    GLoRA,
    GraLoRA,
    MiSS,
    PEANuT,
    Rebase,
    Together,
    Update,
)
from jaxmix.families.peanut import ACTIVATIONS
from jaxmix.training.draws import kaiming, normal
from jaxmix.training.kinds.checks import one_of, positive
from jaxmix.training.kinds.kind import LINEAR, Kind
from jaxmix.training.modules import Target

__all__ = ["KINDS"]


def delora(key: Any, target: Target, *, rank: int = 8, delora_lambda: float = 15) -> Update:
    """DeLoRA: A uniform, B zero, λ as said, and the norms of the base's columns."""
    positive(rank=rank)
    return DeLoRA(
        kaiming(key, (rank, target.inputs), target.dtype),
        jnp.zeros((target.outputs, rank), target.dtype),
        jnp.full((1,), delora_lambda, target.dtype),
        jnp.linalg.norm(target.matrix, axis=0),
    )


def gralora(
    key: Any,
    target: Target,
    *,
    rank: int = 32,
    alpha: float = 64,
    gralora_k: int = 2,
    hybrid_r: int = 0,
) -> Update:
    """GraLoRA: A uniform by blocks, B zero; likewise the general factors of the hybrid form."""
    positive(rank=rank)
    k, (out_size, in_size), dtype = gralora_k, target.shape, target.dtype
    if k < 1 or rank % k or out_size % k or in_size % k or hybrid_r < 0:
        raise ShapeError(
            f"gralora_k is {k} and hybrid_r {hybrid_r}, expected a divisor of the rank {rank} and "
            f"of both of {target.shape}, and 0 or more"
        )
    one, two = jax.random.split(key)
    # Each block (r, in/k) is drawn as a layer of its own.
    a = kaiming(one, (k * rank, in_size // k), dtype).reshape(k, rank, in_size // k)
    return GraLoRA(
        jnp.swapaxes(a, 1, 2),
        jnp.zeros((k, rank, out_size // k), dtype),
        alpha / (rank + hybrid_r),
        kaiming(two, (hybrid_r, in_size), dtype) if hybrid_r else None,
        jnp.zeros((out_size, hybrid_r), dtype) if hybrid_r else None,
        target.is_turned,
    )


def miss(
    key: Any,
    target: Target,
    *,
    rank: int = 64,
    mini_r: int = 1,
    init_weights: Literal[True, "bat", "mini"] = True,
) -> Update:
    """MiSS: zeros, in one of its three forms."""
    del key
    positive(rank=rank)
    one_of("init_weights", init_weights, (True, "bat", "mini"))
    (out_size, in_size), is_bat = target.shape, init_weights == "bat"
    columns = mini_r if init_weights == "mini" else out_size
    if rank > in_size or (is_bat and (in_size % rank or out_size % rank)):
        said = f"a divisor of both of {target.shape}" if is_bat else f"{in_size} at the most"
        raise ShapeError(f"rank is {rank}, expected {said}")
    if columns < 1 or out_size % columns:
        raise ShapeError(f"mini_r is {mini_r}, expected a divisor of {out_size}")
    shape = (out_size // rank, rank, rank) if is_bat else (rank, columns)
    return MiSS(jnp.zeros(shape, target.dtype), is_bat)


def peanut(
    key: Any,
    target: Target,
    *,
    rank: int = 32,
    depth: int = 0,
    act_fn: str = "relu",
    scaling: float = 1.0,
) -> Update:
    """PEANuT: all uniform but B, which is zero."""
    positive(rank=rank)
    one_of("act_fn", act_fn, tuple(ACTIVATIONS))
    keys = jax.random.split(key, 1 + 2 * depth)
    inner = [kaiming(one, (rank, rank), target.dtype) for one in keys[1:]]
    return PEANuT(
        kaiming(keys[0], (rank, target.outputs), target.dtype),
        jnp.zeros((target.outputs, rank), target.dtype),
        tuple(inner[:depth]),
        tuple(inner[depth:]),
        float(scaling),
        act_fn,
    )


def glora(
    key: Any,
    target: Target,
    *,
    rank: int = 8,
    config_A_B: str = "lora",
    config_C: str = "lora",
    config_D_E: str = "constant",
) -> Update:
    """GLoRA: all paths zero; those of the bias only where there is one."""
    positive(rank=rank)
    one_of("config_A_B", config_A_B, ("lora", "vector", "constant", "none"))
    one_of("config_C", config_C, ("lora", "vector", "none"))
    one_of("config_D_E", config_D_E, ("vector", "constant", "none"))
    one, two, three = jax.random.split(key, 3)
    (out_size, in_size), dtype = target.shape, target.dtype
    c = d = "none"
    if target.bias is not None:
        c, d = config_C, config_D_E

    def path(how: str, key: Any, rows: int, columns: int | None) -> tuple[jax.Array, ...]:
        """One path; of the bias's own, which have no columns, a vector is no column."""
        if how == "lora":
            size = columns or 1
            return jnp.zeros((rows, rank), dtype), kaiming(key, (rank, size), dtype)
        shapes = {"vector": (rows,) if columns is None else (rows, 1), "constant": (1,)}
        return (jnp.zeros(shapes[how], dtype),) if how in shapes else ()

    return GLoRA(
        path(config_A_B, one, out_size, in_size),
        path(config_A_B, two, out_size, in_size),
        path(c, three, in_size, 1),
        path(d, None, out_size, None),
        path(d, None, out_size, None),
    )


def deft(
    key: Any,
    target: Target,
    *,
    rank: int = 8,
    alpha: float | None = None,
    decomposition_method: Literal["relu", "qr"] = "relu",
    para: bool = False,
) -> Update:
    """DEFT: P normal, and N what P takes off the base; PaRa has no N, and so is not the base."""
    positive(rank=rank)
    one_of("decomposition_method", decomposition_method, ("relu", "qr"))
    rank = min(rank, target.outputs)
    scale = alpha / rank if alpha else 1.0
    p = normal(key, (target.outputs, rank), target.dtype, 0.02)
    bare = DEFT(p, None, scale, decomposition_method, target.is_turned)
    if para:
        return bare
    kept = jax.nn.relu(p) if decomposition_method == "relu" else jnp.linalg.qr(p)[0]
    with jax.default_matmul_precision("highest"):
        injected = kept.T @ target.matrix / scale
    return DEFT(p, injected, scale, decomposition_method, target.is_turned)


def osf(key: Any, target: Target, *, effective_rank: int | float | None = None) -> Update:
    """OSF: the base without its small singular parts, and these parts, as an AdaLoRA.

    PEFT keeps the gradients away from the large ones, which an optimizer has to do here.
    """
    del key
    most = min(target.shape)
    told = most // 2 if effective_rank is None else effective_rank
    high = int(told * most) if isinstance(told, float) and told < 1 else int(told)
    if not 1 <= high < most:
        raise ShapeError(f"effective_rank is {effective_rank}, expected from 1 to {most - 1}")
    w = target.matrix
    u, values, v = jnp.linalg.svd(w, full_matrices=False)
    low = AdaLoRA(v[high:], u[:, high:], values[high:], 1.0)
    with jax.default_matmul_precision("highest"):
        rest = w - (u[:, high:] * values[None, high:]) @ v[high:]
    return Together((Rebase(rest), low))


KINDS = {
    "delora": Kind(delora, ("linear",)),
    "gralora": Kind(gralora),
    "miss": Kind(miss, ("linear",)),
    "peanut": Kind(peanut, ("linear",)),
    "glora": Kind(glora, ("linear",)),
    "deft": Kind(deft, LINEAR),
    "osf": Kind(osf, ("linear",)),
}
