"""A leaf that keeps its base and the updates of its sites separate."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, ExpertLoRA, LoRA, Replace
from jaxmix.unmerged.leaf import NotApart

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def lora(inputs: int = 6, outputs: int = 4, **options: Any) -> LoRA:
    return LoRA(normal(2, inputs), normal(outputs, 2), 0.5, **options)


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_sites_side_by_side_in_one_leaf(along: str) -> None:
    """Sites may be ranges of a leaf's rows, as in fused projections, or of its columns."""
    first, second = ("0:2", "3:6") if along == "rows" else (":, 0:2", ":, 3:6")
    rules = (jaxmix.Rule(r"q", "qv", None, first), jaxmix.Rule(r"v", "qv", None, second))
    layout, params = jaxmix.Layout("fused", rules), {"qv": normal(6, 6)}

    def update(size: int, **options: Any) -> LoRA:
        return lora(6, size, **options) if along == "rows" else lora(size, 6, **options)

    loras = Adapter({"q": update(2), "v": update(3)}, name="lora")
    dora_updates = {"rows": LoRA(normal(2, 6), normal(3, 2), 0.5, magnitude=1 + abs(normal(3)))}
    cases = [(loras, "factored", "")]
    if along == "rows":
        dora = Adapter({"v": dora_updates["rows"]}, name="dora")
        cases.append((jaxmix.mix(loras, dora), "factored", ""))
        rotated = Adapter({"v": OFT(normal(3, 1))}, name="oft")
        cases.append(
            (jaxmix.mix(loras, rotated), "dense", "one of them rotates an axis that they share")
        )
    with uncompiled():
        for mixed, way, reason in cases:
            leaves = jaxmix.attach(params, mixed, layout=layout)
            (report,) = jaxmix.explain(leaves).ways
            assert report.way == way and reason in report.why
            x = normal(3, 6)
            how = "factored" if way == "factored" else "dense"
            actual = jaxmix.factored(lambda p, x: x @ p["qv"].T, how)(leaves, x)
            expected = x @ jaxmix.compose(params, mixed, layout=layout)["qv"].T
            np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_leaf_of_experts_is_a_stack_only_if_all_terms_are_low_ranks() -> None:
    """Otherwise, and on request, it stays a matrix whose columns are two axes."""
    params = {"ex": normal(3, 4, 5)}
    experts = Adapter({"ex": ExpertLoRA(normal(3, 2, 5), normal(3, 4, 2), 0.5)}, name="a")
    dense = Adapter({"ex": Replace(normal(3, 4, 5))}, name="b")
    with uncompiled():
        leaf = jaxmix.attach(params, experts)["ex"]
        stack, matrix = leaf.apart(), leaf.apart(as_matrix=True)
        mixed = jaxmix.attach(params, jaxmix.mix(experts, dense))["ex"].apart()
        assert stack.axes == ((1,), (2,), 0) and matrix.axes == mixed.axes == ((0,), (1, 2), None)
        for weight in (stack, matrix):
            np.testing.assert_allclose(weight.dense(), leaf.dense(), rtol=1e-5, atol=1e-6)


def test_layers_without_an_update_stay_as_they_are() -> None:
    """Layers count from either end, and several sites may be rows of one layer."""
    rules = (
        jaxmix.Rule(r"(\d+)\.q", "w", None, r"\1, 0:2"),
        jaxmix.Rule(r"last\.v", "w", None, "-1, 3:6"),
    )
    params, layout = {"w": normal(3, 6, 5)}, jaxmix.Layout("stack", rules)
    updates = {"0.q": lora(5, 2), "2.q": lora(5, 2), "last.v": lora(5, 3)}
    leaf = jaxmix.attach(params, Adapter(updates), layout=layout)["w"]
    with uncompiled():
        weight = leaf.apart()
        assert weight.is_stacked and weight.matrix_shape == (6, 5)
        dense = weight.dense()
        np.testing.assert_allclose(dense, leaf.dense(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dense[1], params["w"][1])
    assert (np.asarray(dense != params["w"]).any(2).sum(1) == [2, 0, 5]).all()


def test_a_vector_has_no_map_and_holds_nothing() -> None:
    """A bias, a norm, and a stack of norms: a reason is given, and the dense leaf is the same."""
    params = {"a.weight": normal(4, 6), "a.bias": normal(4), "norm.weight": normal(6)}
    adapter = Adapter({"a": Replace(normal(4, 6), normal(4)), "norm": Replace(normal(6))})
    leaves = jaxmix.attach(params, adapter)
    for name in ("a.bias", "norm.weight"):
        leaf = leaves[name]
        assert leaf.apart() == NotApart("a vector, as cheap to make dense as to use", True)
        assert leaf.with_held() is leaf
