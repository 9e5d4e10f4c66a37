"""Random numbers with the distributions of PyTorch's initializers, from JAX keys."""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["kaiming", "normal", "site_key", "uniform"]

Key = Any


def kaiming(key: Key, shape: tuple[int, ...], dtype: Any, slope: float = math.sqrt(5)) -> jax.Array:
    """Draws uniform numbers like ``torch.nn.init.kaiming_uniform_``.

    Args:
        key: A JAX key.
        shape: The shape, with at least two axes; the first one is the outputs.
        dtype: The dtype of the numbers.
        slope: PyTorch's ``a``. With √5, which PEFT uses, the bound is 1/√inputs.

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
    """Draws uniform numbers between -bound and bound."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def normal(key: Key, shape: tuple[int, ...], dtype: Any, stddev: float = 1.0) -> jax.Array:
    """Draws normal numbers with mean 0."""
    return jnp.asarray(stddev, dtype) * jax.random.normal(key, shape, dtype)


def site_key(key: Key, site: str) -> Key:
    """Derives the key of a site from its name; it does not depend on other sites."""
    # Python's hash of a string differs between processes.
    return jax.random.fold_in(key, zlib.crc32(site.encode()))
