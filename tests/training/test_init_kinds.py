"""Every kind that `jaxmix.init` makes starts at the base, and can be traced."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.training import init
from jaxmix.training.initializers import KINDS

from .init_rows import PARAMS, ROWS, Row

_KEY = jax.random.key(7)
# The shapes of AdaMSS depend on the base's values, through torch and scikit-learn.
_NEEDS_VALUES = [row for row in ROWS if row.kind == "adamss"]
_HAS_SKLEARN = all(find_spec(name) is not None for name in ("torch", "sklearn"))
_RUNNABLE = [row for row in ROWS if _HAS_SKLEARN or row not in _NEEDS_VALUES]


def _init(row: Row, params: Any = PARAMS, key: Any = _KEY) -> Any:
    return init(row.kind, params, key, target_modules=list(row.targets), **row.options)


@cache
def _initialized(name: str) -> Any:
    """Returns a row's adapter, made once for all tests."""
    return _init(next(row for row in ROWS if str(row) == name))


def test_every_kind_has_a_row() -> None:
    assert {row.kind for row in ROWS} == set(KINDS)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.one_of(3)
@pytest.mark.parametrize("row", _RUNNABLE, ids=str)
def test_kind_starts_at_the_base(row: Row) -> None:
    adapter = _initialized(str(row))
    assert set(adapter.sites) == set(row.targets) and adapter.name == row.kind
    for leaf in jax.tree.leaves(adapter.updates):
        dtype = jnp.result_type(leaf)
        assert dtype in (np.float32, np.int32) or not hasattr(leaf, "dtype"), dtype
    composed = jaxmix.compose(PARAMS, adapter)
    names = [f"{site}.{leaf}" for site in row.targets for leaf in ("weight", "bias")]
    difference = max(_difference(composed[name], PARAMS[name]) for name in names if name in PARAMS)
    assert (difference > 1e-4) if row.changes_base else (difference < 5e-6), difference


def _difference(actual: Any, base: Any) -> float:
    return float(np.abs(np.asarray(actual) - base).max() / np.abs(base).max())


@pytest.mark.parametrize("row", [row for row in ROWS if row not in _NEEDS_VALUES], ids=str)
def test_kind_can_be_traced(row: Row) -> None:
    """Traced params and keys give the same shapes and structure."""
    traced = jax.eval_shape(lambda params, key: _init(row, params, key), PARAMS, _KEY)
    eager = _initialized(str(row))
    assert jax.tree.structure(traced) == jax.tree.structure(eager)
    assert _shapes(eager) == _shapes(traced)


def _shapes(adapter: Any) -> list[Any]:
    return [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(adapter)]
