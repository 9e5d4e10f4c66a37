"""`explain`: the way, the cost and the reason of each leaf."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import DenseWeightWarning, UnsupportedError
from jaxmix.families import LoRA, Replace
from jaxmix.unmerged.explaining import Explanation, Way

from .texts import dense_refusal, dense_warning


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def lora(inputs: int = 6, outputs: int = 4, **options: Any) -> LoRA:
    return LoRA(normal(2, inputs), normal(outputs, 2), 0.5, **options)


def test_explain_reports_way_cost_and_reason() -> None:
    params = {"a.weight": normal(64, 64), "a.bias": normal(64), "b.weight": normal(64, 64)}
    low_rank, replacement = lora(64, 64, bias=normal(64)), Replace(normal(64, 64))
    explanation = jaxmix.explain(
        jaxmix.attach(params, Adapter({"a": low_rank, "b": replacement})), tokens=3
    )
    ways = {way.leaf: way for way in explanation.ways}
    assert ways["a.weight"].way == "factored"
    assert ways["a.weight"].operators == "Δ LowRank r=2"
    assert ways["a.weight"].base_flops == 2 * 64 * 64 * 3
    assert ways["a.weight"].added_flops == 2 * 2 * 128 * 3 + 64 * 3
    assert ways["a.weight"].dense_flops == 2 * 2 * 64 * 64 + 2 * 64 * 64
    assert ways["a.bias"].why == "a vector, as cheap to make dense as to use"
    assert ways["b.weight"].way == "factored"
    for_many_tokens = jaxmix.explain(
        jaxmix.attach(params, Adapter({"a": low_rank, "b": replacement})), tokens=500
    )
    ways = {way.leaf: way for way in for_many_tokens.ways}
    assert ways["b.weight"].way == "dense" and "Δ has no structure" in ways["b.weight"].why
    assert "for this many tokens the dense weight costs less" in ways["a.weight"].why
    lines = str(explanation).splitlines()
    assert lines[0] == "operations for 3 tokens"
    assert lines[1].split() == "leaf way operators base added to make dense why".split()
    assert "24.6k" in lines[3] and repr(explanation) == str(explanation)


@pytest.mark.parametrize(
    ("index", "other", "reason"),
    [
        ("0:2", ":, 2:6", "its sites have different axes in the leaf"),
        ("0:6:2", "1:6:2", "its sites are not contiguous rows or columns of the leaf"),
        ("0:2, 0:2", "2:4, 2:4", "its sites are not contiguous rows or columns of the leaf"),
    ],
)
def test_explain_gives_the_reason_for_dense_sites(index: str, other: str, reason: str) -> None:
    rules = (jaxmix.Rule(r"q", "qv", None, index), jaxmix.Rule(r"v", "qv", None, other))
    layout, params = jaxmix.Layout("odd", rules), {"qv": normal(6, 6)}
    sizes = {"0:2": (2, 6), ":, 2:6": (6, 4), "0:2, 0:2": (2, 2), "2:4, 2:4": (2, 2)}
    (first_out, first_in), (second_out, second_in) = (
        sizes.get(text, (3, 6)) for text in (index, other)
    )
    if reason == "its sites have different axes in the leaf":
        params, rules = (
            {"qv": normal(8, 6)},
            (rules[0], jaxmix.Rule(r"v", "qv", "a b -> b a", "2:8")),
        )
        layout, (second_out, second_in) = jaxmix.Layout("odd", rules), (6, 6)
    mixed = Adapter({"q": lora(first_in, first_out), "v": lora(second_in, second_out)})
    leaves = jaxmix.attach(params, mixed, layout=layout)
    (way,) = jaxmix.explain(leaves).ways
    assert way.way == "dense" and reason in way.why
    x, shape = normal(3, 6), params["qv"].shape
    use = f"qv ({shape} float32): {reason}"
    with pytest.warns(DenseWeightWarning, match=dense_warning(use)):
        actual = jaxmix.factored(lambda p, x: x @ p["qv"].T)(leaves, x)
    with pytest.raises(UnsupportedError, match=dense_refusal(use)):
        jaxmix.factored(lambda p, x: x @ p["qv"].T, "factored")(leaves, x)
    expected = x @ jaxmix.compose(params, mixed, layout=layout)["qv"].T
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1k"),
        (1_049_000, "1.05M"),
        (999_499, "999k"),
        (999_500, "1M"),
        (999_999_999, "1G"),
    ],
)
def test_counts_have_three_digits(count: int, text: str) -> None:
    """A count that rounds up to a thousand has the next unit."""
    way = Way("a", ("a",), "factored", "", "", count, 0, 0)
    assert str(Explanation((way,), 1)).splitlines() == [
        "operations for 1 token",
        f"leaf  way       operators  {'base'.ljust(len(text))}  added  to make dense  why",
        f"a     factored             {text.ljust(4)}  0      0".rstrip(),
    ]
