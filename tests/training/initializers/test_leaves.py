"""Whole leaves that are trained start with the base's values."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.errors import AdapterError
from jaxmix.training.initializers.leaves import KINDS

from ...messages import full_text
from .modules import drawn, only

_KEY = jax.random.key(0)
_ROWS = only({"embed_tokens.weight": drawn(9, 4)}, "embed_tokens")


@pytest.mark.parametrize("array", [tuple, np.asarray, jax.numpy.asarray])
def test_tokens_are_rows_in_the_given_order(array: Any) -> None:
    indices = array((8, 0, 3))
    update: Any = KINDS["trainable_tokens"].make(_KEY, _ROWS, {"token_indices": indices})
    np.testing.assert_array_equal(update.values, drawn(9, 4)[[8, 0, 3]])
    np.testing.assert_array_equal(update.rows, [8, 0, 3])


@pytest.mark.parametrize("indices", [[], [-1], [2, 9], [3, 3], [1.5], [True], ["1"], [2**40]])
def test_invalid_tokens_are_refused(indices: Sequence[Any]) -> None:
    """No index is rounded, converted or counted from the end."""
    message = f"token_indices is {indices!r}, expected row indices from 0 to 8, each once"
    with pytest.raises(AdapterError, match=full_text(message)):
        KINDS["trainable_tokens"].make(_KEY, _ROWS, {"token_indices": indices})


def test_norms_start_with_their_own_biases() -> None:
    """A norm without a bias gets none."""
    params = {"a.weight": drawn(5), "a.bias": drawn(5, seed=1), "b.weight": drawn(5)}
    both, bare = (KINDS["ln_tuning"].make(_KEY, only(params, site), {}) for site in "ab")
    np.testing.assert_array_equal(both.weight, params["a.weight"])  # pyright: ignore
    np.testing.assert_array_equal(both.bias, params["a.bias"])  # pyright: ignore
    assert bare.bias is None  # pyright: ignore
