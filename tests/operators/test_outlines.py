"""`from_shapes` gives static results from shapes alone."""

from typing import Any

import jax

from jaxmix.operators import LowRank
from jaxmix.operators.outlines import from_shapes


def test_results_are_static_and_nothing_is_computed() -> None:
    """Costs are known for operators whose arrays are only shapes, or traced."""
    b, a = jax.ShapeDtypeStruct((6, 2), "float32"), jax.ShapeDtypeStruct((2, 5), "float32")
    measures: Any = lambda op: (op.shape, op.matmul_flops(3), type(op.a).__name__)  # noqa: E731
    shape, flops, kind = from_shapes(measures, LowRank(b, a))
    assert (shape, flops) == ((6, 5), 2 * 3 * (5 * 2 + 2 * 6))
    assert kind != "ArrayImpl"
    traced = jax.eval_shape(lambda op: jax.numpy.ones(from_shapes(measures, op)[0]), LowRank(b, a))
    assert traced.shape == (6, 5)
