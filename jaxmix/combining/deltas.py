"""Combines the effects of several adapters at one site."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.combining.formulas import Options, linear
from jaxmix.combining.methods import Method
from jaxmix.effects import Effect
from jaxmix.operators import Dense, LowRank, Operator, Zero, add
from jaxmix.singular import low_rank_of, rounding, singular

__all__ = ["combined_effect"]


@jax.default_matmul_precision("highest")
def combined_effect(
    effects: Sequence[Effect],
    weights: Sequence[Any],
    method: Method,
    options: Options,
    key: Array | None,
) -> Effect:
    """Combines several effects at a site: applies the method's formula to the Δᵢ and the δᵢ.

    Args:
        effects: The effects. Adapters that do not touch the weight or the bias count as 0 there.
        weights: A weight for each effect.
        method: The method.
        options: The options of the method.
        key: The key of a random method.

    Returns:
        Δ (out, in), as a `LowRank` if the method preserves low rank, and δ (out,).
    """
    keys: Any = (None, None) if key is None else jax.random.split(key)
    deltas = [effect.weight for effect in effects if effect.weight is not None]
    delta = bias = None
    noise: Any = 0.0
    if deltas:
        shape = deltas[0].shape
        per_group = [Zero(*shape) if effect.weight is None else effect.weight for effect in effects]
        noise = sum((abs(w) * e.noise for w, e in zip(weights, effects, strict=True)), 0.0)
        delta = _combined(per_group, weights, method, options, keys[0], noise)
    biases = [effect.bias for effect in effects if effect.bias is not None]
    if biases:
        zeros = jnp.zeros_like(biases[0])
        columns = [zeros if effect.bias is None else effect.bias for effect in effects]
        per_group = [Dense(column[:, None]) for column in columns]
        bias = _combined(per_group, weights, method, options, keys[1], 0.0).dense()[:, 0]
    return Effect(delta, bias, noise)


def _combined(
    deltas: Sequence[Operator],
    weights: Sequence[Any],
    method: Method,
    options: Options,
    key: Array | None,
    noise: Any,
) -> Operator:
    """Combines several matrices."""
    dtype = next((x.dtype for x in jax.tree.leaves(list(deltas))), jnp.float32)
    scales = jnp.stack([jnp.asarray(weight, dtype) for weight in weights])
    thin = [low_rank_of(_typed(delta, dtype)) for delta in deltas]
    if method.formula is linear and all(x is not None for x in thin):
        scaled = (x.scaled(w) for x, w in zip(thin, scales, strict=True) if x is not None)
        return reduce(add, scaled)
    signs = jnp.where(scales < 0, -1, 1).astype(dtype)
    signed = [_typed(d, dtype).scaled(s) for d, s in zip(deltas, signs, strict=True)]
    if method.name == "knots":
        return _knots(signed, jnp.abs(scales), method, options, noise)
    stack = jnp.stack([delta.dense() for delta in signed])
    return Dense(method.formula(stack, jnp.abs(scales), options, key))


def _typed(delta: Operator, dtype: Any) -> Operator:
    """Returns the matrix with a dtype of its own, which `Zero` does not have."""
    if not isinstance(delta, Zero):
        return delta
    rows, cols = delta.shape
    return LowRank(jnp.zeros((rows, 1), dtype), jnp.zeros((1, cols), dtype))


def _knots(
    deltas: Sequence[Operator], weights: Array, method: Method, options: Options, noise: Any
) -> LowRank:
    """KnOTS: ``[Δ₁ … Δₙ] = U Σ [V₁ᵀ … Vₙᵀ]``, and the result is ``U Σ`` times TIES of the Vᵢᵀ.

    Entries of V that differ from zero only by rounding are set to zero, or they would vote in TIES.
    """
    joined = _concatenated(deltas)
    u, s, vt = singular(joined, noise)
    vt = jnp.where(s[:, None] * jnp.abs(vt) > rounding(s, noise, joined.shape), vt, 0)
    parts = vt.reshape(s.size, len(deltas), -1).swapaxes(0, 1)
    return LowRank(u * s[None, :], method.formula(parts, weights, options, None))


def _concatenated(deltas: Sequence[Operator]) -> Operator:
    """Returns ``[Δ₁ … Δₙ]`` (out, n·in)."""
    thin = [low_rank_of(delta) for delta in deltas]
    low_ranks = [x for x in thin if x is not None]
    if len(low_ranks) == len(thin):
        a = jax.scipy.linalg.block_diag(*(x.a for x in low_ranks))
        return LowRank(jnp.concatenate([x.b for x in low_ranks], 1), a)
    return Dense(jnp.concatenate([delta.dense() for delta in deltas], 1))
