"""Initializes whole leaves that are trained: token rows, norms, and changes of a bias."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.errors import AdapterError, UnsupportedError
from jaxmix.families import Delta, Replace, Tokens, Update
from jaxmix.training.initializers.initializer import LINEAR, Initializer
from jaxmix.training.modules import Target

__all__ = ["KINDS"]


def beft(key: Any, target: Target) -> Update:
    """BEFT: zeros, added to the bias."""
    del key
    if target.bias is None:
        raise UnsupportedError(
            "BEFT needs a bias, but there is none. Give the base a bias of zeros"
        )
    return Delta(bias=jnp.zeros(target.outputs, target.dtype))


def ln_tuning(key: Any, target: Target) -> Update:
    """LN tuning: the base's leaves."""
    del key
    return Replace(target.stored, None if target.bias is None else target.bias_vector)


def trainable_tokens(key: Any, target: Target, *, token_indices: Sequence[int] = ()) -> Update:
    """Trained tokens: the base's rows."""
    del key
    if isinstance(token_indices, np.ndarray | jax.Array):
        token_indices = token_indices.tolist()
    are_rows = all(_is_row(index, target.outputs) for index in token_indices)
    if not are_rows or not 0 < len(set(token_indices)) == len(token_indices):
        raise AdapterError(
            f"token_indices is {list(token_indices)!r}, expected row indices from 0 to "
            f"{target.outputs - 1}, each once"
        )
    rows = np.asarray(token_indices, np.int32)
    return Tokens(target.matrix[rows], jnp.asarray(rows))


def _is_row(index: Any, count: int) -> bool:
    """Whether something is the index of one of the rows."""
    is_integer = isinstance(index, int | np.integer) and not isinstance(index, bool)
    return is_integer and bool(0 <= index < count)


KINDS = {
    "beft": Initializer(beft, ("linear",)),
    "ln_tuning": Initializer(ln_tuning, ("norm", *LINEAR, "convolution", "embedding")),
    "trainable_tokens": Initializer(trainable_tokens, ("embedding",)),
}
