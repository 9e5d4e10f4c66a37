"""How leaves start that are trained as they are: rows, norms, and what is added to a bias."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.errors import AdapterError, UnsupportedError
from jaxmix.families import Delta, Replace, Tokens, Update
from jaxmix.training.kinds.kind import LINEAR, Kind
from jaxmix.training.modules import Target

__all__ = ["KINDS"]


def beft(key: Any, target: Target) -> Update:
    """BEFT: zeros, added to the bias."""
    del key
    if target.bias is None:
        raise UnsupportedError("it has no bias, to which BEFT adds; give the base one of zeros")
    return Delta(bias=jnp.zeros(target.outputs, target.dtype))


def ln_tuning(key: Any, target: Target) -> Update:
    """LN tuning: the module's own leaves."""
    del key
    return Replace(target.stored, None if target.bias is None else target.bias_vector)


def trainable_tokens(key: Any, target: Target, *, token_indices: Sequence[int] = ()) -> Update:
    """Trained tokens: the embedding's own rows."""
    del key
    rows = np.asarray(token_indices, np.int32)
    beyond = [int(row) for row in rows if not 0 <= row < target.outputs]
    if not rows.size or beyond or len(set(rows.tolist())) < rows.size:
        raise AdapterError(
            f"token_indices is {list(token_indices)!r}, expected numbers of rows from 0 to "
            f"{target.outputs - 1}, each once"
        )
    return Tokens(target.matrix[rows], jnp.asarray(rows))


KINDS = {
    "beft": Kind(beft, ("linear",)),
    "ln_tuning": Kind(ln_tuning, ("norm", *LINEAR, "convolution", "embedding")),
    "trainable_tokens": Kind(trainable_tokens, ("embedding",)),
}
