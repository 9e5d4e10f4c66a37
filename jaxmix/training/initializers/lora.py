"""Initializes LoRA and its relatives: one factor random, the other zero."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmix.errors import ShapeError, UnsupportedError
from jaxmix.families import AdaLoRA, ExpertLoRA, HiRA, KaSA, LoRA, Rebase, Together, Update
from jaxmix.training.draws import kaiming, normal
from jaxmix.training.initializers.checks import check_choice, check_positive, scale_of
from jaxmix.training.initializers.initializer import LINEAR, Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

# Without "orthogonal", with which PEFT's adapter does not start as the identity.
_STARTS = (True, "gaussian", "pissa", "olora")


def lora(
    key: Any,
    target: Target,
    *,
    rank: int = 8,
    alpha: float = 8,
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_bias: bool = False,
    init_lora_weights: bool | str = True,
    is_transposed: bool = False,
) -> Update:
    """LoRA and DoRA: A uniform, B zero. PiSSA and OLoRA move a part of the base to the factors."""
    scale = scale_of(rank, alpha, use_rslora)
    check_choice("init_lora_weights", init_lora_weights, _STARTS)
    if target.layer == "parameter":
        if use_dora or lora_bias or init_lora_weights is not True:
            raise UnsupportedError("experts support only a plain LoRA, as in PEFT")
        return _experts(key, target, rank, scale, is_transposed)
    if lora_bias and (use_dora or target.layer == "embedding"):
        raise UnsupportedError("lora_bias excludes DoRA and embeddings, as in PEFT")
    a, b, base = _factors(key, target, rank, scale, init_lora_weights)
    update = LoRA(
        a,
        b,
        scale,
        bias=jnp.zeros(target.outputs, target.dtype) if lora_bias else None,
        magnitude=_norms(target, a, b, scale, base) if use_dora else None,
        kernel=target.kernel,
        embedding=target.layer == "embedding",
        transposed=target.is_transposed,
    )
    return update if base is None else Together((Rebase(_as_stored(target, base)), update))


def _factors(
    key: Any, target: Target, rank: int, scale: float, start: bool | str
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns A (r, in), B (out, r), and the base's new weight, None if it does not change."""
    sizes, dtype = (target.outputs, target.inputs), target.dtype
    if start in ("pissa", "olora"):
        return _factors_from_base(target, rank, scale, str(start))
    zeros = jnp.zeros((sizes[0], rank), dtype)
    if target.layer == "embedding":  # (V, D): PEFT draws lora_embedding_B
        return normal(key, (rank, sizes[1]), dtype), zeros, None
    if start == "gaussian":
        return normal(key, (rank, sizes[1]), dtype, 1 / rank), zeros, None
    return kaiming(key, (rank, sizes[1]), dtype), zeros, None


def _factors_from_base(
    target: Target, rank: int, scale: float, start: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns factors from PiSSA's SVD or OLoRA's QR of W, and the remaining weight."""
    if target.layer not in LINEAR or (start == "olora" and target.is_transposed):
        raise UnsupportedError(f"PEFT does not support {start} for a {target.layer} layer")
    if rank > min(target.shape):
        raise ShapeError(f"rank is {rank}, expected at most {min(target.shape)} for {start}")
    if not scale:
        raise ShapeError(f"alpha is 0, expected another value for {start}, which divides by it")
    w = target.matrix
    if start == "pissa":
        u, values, v = jnp.linalg.svd(w, full_matrices=False)
        roots = jnp.sqrt(values[:rank] / scale)
        b, a = u[:, :rank] * roots[None], roots[:, None] * v[:rank]
    else:
        q, r = jnp.linalg.qr(w)
        b, a = q[:, :rank], r[:rank]
    with jax.default_matmul_precision("highest"):
        return a, b, w - scale * (b @ a)


def _as_stored(target: Target, matrix: jax.Array) -> jax.Array:
    """Returns a weight for `Rebase`, which holds it as a matrix (out, in)."""
    assert target.layer in LINEAR
    return matrix


def _norms(
    target: Target, a: jax.Array, b: jax.Array, scale: float, base: jax.Array | None
) -> jax.Array:
    """Returns DoRA's magnitude: the norms of the current weight, which leave it unchanged."""
    weight = target.matrix if base is None else base + scale * (b @ a)
    return jnp.linalg.norm(weight, axis=0 if target.layer == "embedding" else 1)


def _experts(key: Any, target: Target, rank: int, scale: float, in_first: bool) -> Update:
    """Returns a LoRA of a leaf of experts (e, out, in), or (e, in, out) with ``is_transposed``."""
    if len(target.shape) != 3:
        raise ShapeError(f"the parameter has shape {target.shape}, expected (experts, out, in)")
    experts, out, size = target.shape
    out, size = (size, out) if in_first else (out, size)
    a = kaiming(key, (experts * rank, size), target.dtype).reshape(experts, rank, size)
    return ExpertLoRA(a, jnp.zeros((experts, out, rank), target.dtype), scale, in_first=in_first)


def adalora(key: Any, target: Target, *, rank: int = 12, alpha: float = 8) -> Update:
    """AdaLoRA: both factors normal, the singular values zero; ``rank`` is PEFT's ``init_r``."""
    check_positive(rank=rank)
    a_key, b_key = jax.random.split(key)
    # As in PEFT, which adds 1e-5 to the rank and replaces an alpha of 0 or less by the rank.
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    return AdaLoRA(
        normal(a_key, (rank, target.inputs), target.dtype, 0.02),
        normal(b_key, (target.outputs, rank), target.dtype, 0.02),
        jnp.zeros(rank, target.dtype),
        scale,
        transposed=target.is_transposed,
    )


def kasa(
    key: Any, target: Target, *, rank: int = 8, alpha: float = 8, use_rslora: bool = False
) -> Update:
    """KaSA: A uniform, B zero, the diagonal normal. It removes the smallest singular values."""
    scale = scale_of(rank, alpha, use_rslora)
    a_key, d_key = jax.random.split(key)
    return KaSA(
        kaiming(a_key, (rank, target.inputs), target.dtype),
        jnp.zeros((target.outputs, rank), target.dtype),
        normal(d_key, (rank,), target.dtype),
        scale,
    )


def hira(
    key: Any,
    target: Target,
    *,
    rank: int = 32,
    init_weights: Literal[True, "gaussian"] = True,
) -> Update:
    """HiRA: as LoRA, without a scale."""
    check_positive(rank=rank)
    a, b, _ = _factors(key, target, rank, 1.0, init_weights)
    return HiRA(
        a,
        b,
        kernel=target.kernel,
        embedding=target.layer == "embedding",
        transposed=target.is_transposed,
    )


_ALL = (*LINEAR, "convolution", "embedding")

KINDS = {
    "lora": Initializer(lora, (*_ALL, "parameter")),
    "dora": Initializer(lora, _ALL, fixed={"use_dora": True}),
    "adalora": Initializer(adalora, (*LINEAR, "convolution")),
    "kasa": Initializer(kasa, ("linear",)),
    "hira": Initializer(hira, _ALL),
}
