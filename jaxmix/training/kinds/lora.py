"""How LoRA and what is like it starts: one factor random, the other zero."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmix.errors import ShapeError, UnsupportedError
from jaxmix.families import AdaLoRA, ExpertLoRA, HiRA, KaSA, LoRA, Rebase, Together, Update
from jaxmix.training.draws import kaiming, normal
from jaxmix.training.kinds.checks import one_of, positive, scale_of
from jaxmix.training.kinds.kind import LINEAR, Kind
from jaxmix.training.modules import Target

__all__ = ["KINDS"]

# "orthogonal" is not here: with it PEFT does not start at the base's own function.
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
    """LoRA and DoRA: A uniform and B zero; PiSSA and OLoRA out of the base, which loses as much."""
    scale = scale_of(rank, alpha, use_rslora)
    one_of("init_lora_weights", init_lora_weights, _STARTS)
    if target.layer == "parameter":
        if use_dora or lora_bias or init_lora_weights is not True:
            raise UnsupportedError("experts take a plain LoRA alone, as in PEFT")
        return _experts(key, target, rank, scale, is_transposed)
    if lora_bias and (use_dora or target.layer == "embedding"):
        raise UnsupportedError("lora_bias goes neither with DoRA nor with an embedding, as in PEFT")
    a, b, base = _factors(key, target, rank, scale, init_lora_weights)
    update = LoRA(
        a,
        b,
        scale,
        bias=jnp.zeros(target.outputs, target.dtype) if lora_bias else None,
        magnitude=_norms(target, a, b, scale, base) if use_dora else None,
        kernel=target.kernel,
        embedding=target.layer == "embedding",
        transposed=target.is_turned,
    )
    return update if base is None else Together((Rebase(_as_stored(target, base)), update))


def _factors(
    key: Any, target: Target, rank: int, scale: float, how: bool | str
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """A (r, in), B (out, r), and the weight that the base is to have, None for its own."""
    sizes, dtype = (target.outputs, target.inputs), target.dtype
    if how in ("pissa", "olora"):
        return _out_of_base(target, rank, scale, str(how))
    zeros = jnp.zeros((sizes[0], rank), dtype)
    if target.layer == "embedding":  # (V, D): PEFT's lora_embedding_B is what is drawn
        return normal(key, (rank, sizes[1]), dtype), zeros, None
    if how == "gaussian":
        return normal(key, (rank, sizes[1]), dtype, 1 / rank), zeros, None
    return kaiming(key, (rank, sizes[1]), dtype), zeros, None


def _out_of_base(
    target: Target, rank: int, scale: float, how: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PiSSA's largest singular parts, or OLoRA's first columns of Q; and what is left of W."""
    if target.layer not in LINEAR or (how == "olora" and target.is_turned):
        raise UnsupportedError(f"PEFT has no {how} of a layer that is {target.layer}")
    if rank > min(target.shape):
        raise ShapeError(f"rank is {rank}, expected {min(target.shape)} at the most from {how}")
    if not scale:
        raise ShapeError(f"alpha is 0, expected another for {how}, which divides by it")
    w = target.matrix
    if how == "pissa":
        u, values, v = jnp.linalg.svd(w, full_matrices=False)
        roots = jnp.sqrt(values[:rank] / scale)
        b, a = u[:, :rank] * roots[None], roots[:, None] * v[:rank]
    else:
        q, r = jnp.linalg.qr(w)
        b, a = q[:, :rank], r[:rank]
    with jax.default_matmul_precision("highest"):
        return a, b, w - scale * (b @ a)


def _as_stored(target: Target, matrix: jax.Array) -> jax.Array:
    """A weight for `Rebase`, which has it as a matrix (out, in) whatever the tree's is."""
    assert target.layer in LINEAR
    return matrix


def _norms(
    target: Target, a: jax.Array, b: jax.Array, scale: float, base: jax.Array | None
) -> jax.Array:
    """DoRA's magnitude: the norms of what the weight is, so that it stays."""
    whole = target.matrix if base is None else base + scale * (b @ a)
    return jnp.linalg.norm(whole, axis=0 if target.layer == "embedding" else 1)


def _experts(key: Any, target: Target, rank: int, scale: float, in_first: bool) -> Update:
    """LoRA of a leaf of experts (e, out, in), or with ``is_transposed`` (e, in, out)."""
    if len(target.shape) != 3:
        raise ShapeError(f"the parameter has shape {target.shape}, expected (experts, out, in)")
    experts, out, size = target.shape
    out, size = (size, out) if in_first else (out, size)
    a = kaiming(key, (experts * rank, size), target.dtype).reshape(experts, rank, size)
    return ExpertLoRA(a, jnp.zeros((experts, out, rank), target.dtype), scale, in_first=in_first)


def adalora(key: Any, target: Target, *, rank: int = 12, alpha: float = 8) -> Update:
    """AdaLoRA: both factors normal and the singular values zero; ``rank`` is ``init_r``."""
    positive(rank=rank)
    one, two = jax.random.split(key)
    # PEFT divides α by the rank that it counts, 1e-5 above it, and takes an α below 1 for the rank.
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    return AdaLoRA(
        normal(one, (rank, target.inputs), target.dtype, 0.02),
        normal(two, (target.outputs, rank), target.dtype, 0.02),
        jnp.zeros(rank, target.dtype),
        scale,
        transposed=target.is_turned,
    )


def kasa(
    key: Any, target: Target, *, rank: int = 8, alpha: float = 8, use_rslora: bool = False
) -> Update:
    """KaSA: A uniform, B zero, the diagonal normal; the base's smallest parts are gone at once."""
    scale = scale_of(rank, alpha, use_rslora)
    one, two = jax.random.split(key)
    return KaSA(
        kaiming(one, (rank, target.inputs), target.dtype),
        jnp.zeros((target.outputs, rank), target.dtype),
        normal(two, (rank,), target.dtype),
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
    positive(rank=rank)
    a, b, _ = _factors(key, target, rank, 1.0, init_weights)
    return HiRA(
        a,
        b,
        kernel=target.kernel,
        embedding=target.layer == "embedding",
        transposed=target.is_turned,
    )


_ALL = (*LINEAR, "convolution", "embedding")

KINDS = {
    "lora": Kind(lora, (*_ALL, "parameter")),
    "dora": Kind(lora, _ALL, fixed={"use_dora": True}),
    "adalora": Kind(adalora, (*LINEAR, "convolution")),
    "kasa": Kind(kasa, ("linear",)),
    "hira": Kind(hira, _ALL),
}
