"""Random numbers have PyTorch's bounds, and differ by site."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.training.draws import kaiming, normal, site_key

pytestmark = pytest.mark.usefixtures("no_compiling")

_KEY = jax.random.key(0)


def test_bound_depends_on_all_inputs() -> None:
    """The inputs are all axes but the first; a slope of 0 gives a larger bound."""
    for shape, inputs in (((30, 4), 4), ((30, 2, 3, 2), 12)):
        for slope, bound in ((5**0.5, inputs**-0.5), (0.0, (6 / inputs) ** 0.5)):
            numbers = np.abs(kaiming(_KEY, shape, jnp.float32, slope))
            assert 0.9 * bound < numbers.max() <= np.float32(bound)
    assert kaiming(_KEY, (3, 0), jnp.float32).shape == (3, 0)


def test_normal_keeps_the_dtype() -> None:
    """The standard deviation scales the same numbers."""
    one, half = (normal(_KEY, (4, 3), jnp.float32, stddev) for stddev in (1.0, 0.5))
    np.testing.assert_array_equal(half, 0.5 * np.asarray(one))
    assert normal(_KEY, (2,), jnp.bfloat16, 0.1).dtype == jnp.bfloat16


def test_key_of_a_site_is_that_of_any_process() -> None:
    """It depends on the site's name alone, which has a fixed hash."""
    expected = jax.random.fold_in(_KEY, zlib.crc32("läyers.0.q".encode()))
    assert site_key(_KEY, "läyers.0.q") == expected != site_key(_KEY, "läyers.1.q")
