"""Initializes kinds that read the base or depend on its sizes; they start with no change."""

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
from jaxmix.training.initializers.checks import check_choice, check_positive
from jaxmix.training.initializers.initializer import LINEAR, Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]


def delora(key: Any, target: Target, *, rank: int = 8, delora_lambda: float = 15) -> Update:
    """DeLoRA: A uniform, B zero, λ as given, and the norms of the base's columns."""
    check_positive(rank=rank)
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
    """GraLoRA: A uniform for each block, B zero; likewise the factors of the hybrid form."""
    check_positive(rank=rank)
    k, (out_size, in_size), dtype = gralora_k, target.shape, target.dtype
    if k < 1 or rank % k or out_size % k or in_size % k or hybrid_r < 0:
        raise ShapeError(
            f"gralora_k is {k} and hybrid_r {hybrid_r}, expected a gralora_k that divides the rank "
            f"{rank} and both sizes of {target.shape}, and a hybrid_r of at least 0"
        )
    a_key, general_key = jax.random.split(key)
    # Each block (r, in/k) is drawn like a separate layer.
    a = kaiming(a_key, (k * rank, in_size // k), dtype).reshape(k, rank, in_size // k)
    return GraLoRA(
        jnp.swapaxes(a, 1, 2),
        jnp.zeros((k, rank, out_size // k), dtype),
        alpha / (rank + hybrid_r),
        kaiming(general_key, (hybrid_r, in_size), dtype) if hybrid_r else None,
        jnp.zeros((out_size, hybrid_r), dtype) if hybrid_r else None,
        target.is_transposed,
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
    check_positive(rank=rank)
    check_choice("init_weights", init_weights, (True, "bat", "mini"))
    (out_size, in_size), is_bat = target.shape, init_weights == "bat"
    columns = mini_r if init_weights == "mini" else out_size
    if rank > in_size or (is_bat and (in_size % rank or out_size % rank)):
        expected = f"a divisor of both sizes of {target.shape}" if is_bat else f"at most {in_size}"
        raise ShapeError(f"rank is {rank}, expected {expected}")
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
    """PEANuT: B zero, all other layers uniform."""
    check_positive(rank=rank)
    check_choice("act_fn", act_fn, tuple(ACTIVATIONS))
    keys = jax.random.split(key, 1 + 2 * depth)
    inner = [kaiming(layer_key, (rank, rank), target.dtype) for layer_key in keys[1:]]
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
    """GLoRA: all support tensors zero; those of the bias only if there is a bias."""
    check_positive(rank=rank)
    check_choice("config_A_B", config_A_B, ("lora", "vector", "constant", "none"))
    check_choice("config_C", config_C, ("lora", "vector", "none"))
    check_choice("config_D_E", config_D_E, ("vector", "constant", "none"))
    a_key, b_key, c_key = jax.random.split(key, 3)
    (out_size, in_size), dtype = target.shape, target.dtype
    c = d = "none"
    if target.bias is not None:
        c, d = config_C, config_D_E

    def zero(form: str, key: Any, rows: int, columns: int | None) -> tuple[jax.Array, ...]:
        """Returns one support tensor; those of the bias (D and E) have no columns."""
        if form == "lora":
            size = columns or 1
            return jnp.zeros((rows, rank), dtype), kaiming(key, (rank, size), dtype)
        shapes = {"vector": (rows,) if columns is None else (rows, 1), "constant": (1,)}
        return (jnp.zeros(shapes[form], dtype),) if form in shapes else ()

    return GLoRA(
        zero(config_A_B, a_key, out_size, in_size),
        zero(config_A_B, b_key, out_size, in_size),
        zero(c, c_key, in_size, 1),
        zero(d, None, out_size, None),
        zero(d, None, out_size, None),
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
    """DEFT: P normal, and N restores what P removes. PaRa has no N, so it changes the base."""
    check_positive(rank=rank)
    check_choice("decomposition_method", decomposition_method, ("relu", "qr"))
    rank = min(rank, target.outputs)
    scale = alpha / rank if alpha else 1.0
    p = normal(key, (target.outputs, rank), target.dtype, 0.02)
    bare = DEFT(p, None, scale, decomposition_method, target.is_transposed)
    if para:
        return bare
    kept = jax.nn.relu(p) if decomposition_method == "relu" else jnp.linalg.qr(p)[0]
    with jax.default_matmul_precision("highest"):
        injected = kept.T @ target.matrix / scale
    return DEFT(p, injected, scale, decomposition_method, target.is_transposed)


def osf(key: Any, target: Target, *, effective_rank: int | float | None = None) -> Update:
    """OSF: splits the base into its large singular values and, as an AdaLoRA, its small ones.

    PEFT also projects gradients to be orthogonal to the large part; here the optimizer must do so.
    """
    del key
    full = min(target.shape)
    requested = full // 2 if effective_rank is None else effective_rank
    high = (
        int(requested * full) if isinstance(requested, float) and requested < 1 else int(requested)
    )
    if not 1 <= high < full:
        raise ShapeError(f"effective_rank is {effective_rank}, expected from 1 to {full - 1}")
    w = target.matrix
    u, values, v = jnp.linalg.svd(w, full_matrices=False)
    low = AdaLoRA(v[high:], u[:, high:], values[high:], 1.0)
    with jax.default_matmul_precision("highest"):
        rest = w - (u[:, high:] * values[None, high:]) @ v[high:]
    return Together((Rebase(rest), low))


KINDS = {
    "delora": Initializer(delora, ("linear",)),
    "gralora": Initializer(gralora),
    "miss": Initializer(miss, ("linear",)),
    "peanut": Initializer(peanut, ("linear",)),
    "glora": Initializer(glora, ("linear",)),
    "deft": Initializer(deft, LINEAR),
    "osf": Initializer(osf, ("linear",)),
}
