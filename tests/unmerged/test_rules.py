"""The rules of single operations: which keep a weight's base and map separate, and which do not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmix.affine import shift
from jaxmix.operators import LowRank
from jaxmix.unmerged.rules import RULES, Values
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


MATRIX = Weight(normal(6, 4), shift(LowRank(normal(6, 2), normal(2, 4))), (-2,), (-1,))
STACK = Weight(
    normal(1, 6, 4),
    jax.vmap(shift)(LowRank(normal(1, 6, 2), normal(1, 2, 4))),
    (-2,),
    (-1,),
    -3,
)


def ruled(fn: Callable[..., Any], *values: Any) -> Values | None:
    """Applies the rule of a function's only primitive."""
    arrays = [value.base if isinstance(value, Weight) else value for value in values]
    (eqn,) = jax.make_jaxpr(fn)(*arrays).eqns
    return RULES[eqn.primitive.name](eqn.params, list(values))


@pytest.mark.parametrize(
    ("fn", "weight"),
    [
        (lambda w: w.T, MATRIX),
        (lambda w: w.astype(jnp.bfloat16), MATRIX),
        (lambda w: w.reshape(2, 3, 4), MATRIX),
        (lambda w: lax.broadcast_in_dim(w, (1, 6, 1, 4), (1, 3)), MATRIX),
        (lambda w: lax.squeeze(w, (0,)), STACK),
        (lambda w: lax.slice(w, (0, 0, 0), (1, 6, 4)), STACK),
        (lax.stop_gradient, STACK),
    ],
    ids=["transpose", "cast", "reshape", "broadcast", "squeeze", "slice", "stop_gradient"],
)
def test_a_rules_result_is_that_of_the_dense_array(fn: Any, weight: Weight) -> None:
    with uncompiled():
        outs = ruled(fn, weight)
        assert outs is not None
        (out,) = outs
        expected = fn(weight.dense())
        assert isinstance(out, Weight) and out.dtype == expected.dtype
        np.testing.assert_allclose(out.dense(), expected, atol=2e-2 if out.dtype != "f4" else 1e-5)


@pytest.mark.parametrize(
    ("fn", "values"),
    [
        (lambda w: w.astype(jnp.int32), (MATRIX,)),
        (lambda w: lax.slice(w, (0, 0), (6, 4), (2, 1)), (MATRIX,)),
        (lambda w: lax.slice(w, (0, 0, 0), (1, 6, 4), (1, 2, 1)), (STACK,)),
        (lambda w: lax.broadcast_in_dim(w, (3, 6, 4), (1, 2)), (MATRIX,)),
        (lambda w: lax.broadcast_in_dim(w, (3, 6, 4), (0, 1, 2)), (STACK,)),
        (lambda w: w.reshape(4, 6), (MATRIX,)),
        (lambda w: w.reshape(24), (MATRIX,)),
        (lambda w, v: lax.dot_general(w, v, (((1,), (1,)), ((), ()))), (MATRIX, MATRIX)),
    ],
    ids=["integers", "rows", "steps", "copies", "layers", "across", "flat", "two weights"],
)
def test_operations_without_a_factored_form_have_no_result(fn: Any, values: Any) -> None:
    """The weight is made dense for them."""
    assert ruled(fn, *values) is None


def test_a_weight_in_the_place_of_other_inputs_has_no_result() -> None:
    """As the tokens of a convolution, as the indices of a lookup, or as a slice's start."""
    assert RULES["conv_general_dilated"]({}, [MATRIX, normal(3, 4, 2)]) is None
    assert RULES["gather"]({}, [normal(6, 4), MATRIX]) is None
    assert RULES["dynamic_slice"]({}, [normal(6, 4), MATRIX, 0]) is None
    sizes = jnp.array([1], jnp.int32)
    assert RULES["ragged_dot_general"]({}, [MATRIX, STACK, sizes]) is None


def test_names_of_rules_are_those_of_jax() -> None:
    """A misspelled name would leave a rule unused; each version of JAX has most of them."""
    fns: dict[str, Callable[..., Any]] = {
        "transpose": lambda w: w.T,
        "broadcast_in_dim": lambda w: lax.broadcast_in_dim(w, (1, 6, 4), (1, 2)),
        "convert_element_type": lambda w: w.astype(jnp.float16),
        "optimization_barrier": lax.optimization_barrier,
        "device_put": jax.device_put,
        "squeeze": lambda w: lax.squeeze(w[None], (0,)),
        "dynamic_slice": lambda w: lax.dynamic_slice(w, (jnp.int32(0), jnp.int32(0)), (2, 4)),
    }
    for name, fn in fns.items():
        names = {eqn.primitive.name for eqn in jax.make_jaxpr(fn)(MATRIX.base).eqns}
        assert name in names and name in RULES
