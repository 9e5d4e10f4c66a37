"""Numbers drawn as PyTorch's initialisers draw them, from JAX's keys."""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["kaiming", "normal", "site_key", "uniform"]

Key = Any


def kaiming(key: Key, shape: tuple[int, ...], dtype: Any, slope: float = math.sqrt(5)) -> jax.Array:
    """Uniform numbers as ``torch.nn.init.kaiming_uniform_`` draws them.

    Args:
        key: A JAX key.
        shape: Of two axes at the least; the first one is that of outputs.
        dtype: What float they are to be.
        slope: PyTorch's ``a``. With √5, which PEFT takes, they lie within 1/√inputs.

    Returns:
        The numbers.

    Example:
        >>> bool(jnp.abs(kaiming(jax.random.key(0), (9, 4), jnp.float32)).max() <= 1 / 2)
        True

    Source: ``torch.nn.init``; https://arxiv.org/abs/1502.01852.
    """
    inputs = math.prod(shape[1:])
    return uniform(key, shape, dtype, math.sqrt(6 / ((1 + slope * slope) * max(inputs, 1))))


def uniform(key: Key, shape: tuple[int, ...], dtype: Any, bound: float) -> jax.Array:
    """Uniform numbers within a bound on both sides of 0."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def normal(key: Key, shape: tuple[int, ...], dtype: Any, stddev: float = 1.0) -> jax.Array:
    """Normal numbers about 0."""
    return jnp.asarray(stddev, dtype) * jax.random.normal(key, shape, dtype)


def site_key(key: Key, site: str) -> Key:
    """The key of a site, or of what all share: the same whatever other sites there are."""
    # Python's own hash of a text differs by process.
    return jax.random.fold_in(key, zlib.crc32(site.encode()))
