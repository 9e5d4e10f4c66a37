"""A leaf that keeps its base and the updates of its sites separate."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, LoRA


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
    for mixed, way, reason in cases:
        leaves = jaxmix.attach(params, mixed, layout=layout)
        (report,) = jaxmix.explain(leaves).ways
        assert report.way == way and reason in report.why
        x = normal(3, 6)
        how = "factored" if way == "factored" else "dense"
        actual = jaxmix.factored(lambda p, x: x @ p["qv"].T, how)(leaves, x)
        expected = x @ jaxmix.compose(params, mixed, layout=layout)["qv"].T
        np.testing.assert_allclose(actual, expected, atol=1e-5)
