"""qwix's quantized bases stay so in factored leaves; composed weights may be made so again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError
from jaxmix.families import OFT, LoRA

qwix: Any = pytest.importorskip("qwix", reason="qwix is not installed")


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


WAYS = {
    "int8 by channel": dict(qtype=jnp.int8, channelwise_axes=[1]),
    "int4 in tiles": dict(qtype=jnp.int4, channelwise_axes=[1], tiled_axes={0: 4}),
    "nf4": dict(qtype="nf4", tiled_axes={0: 8}),
    "int8 with zero points": dict(
        qtype=jnp.int8, channelwise_axes=[0], calibration_method="minmax"
    ),
}
MIXED = jaxmix.mix(
    Adapter({"a": LoRA(normal(3, 16), normal(24, 3), 0.5)}, name="lora"),
    Adapter({"a": OFT(0.2 * normal(4, 6))}, name="oft"),
)


def run(params: Any, x: Any) -> Any:
    return x @ params["a"]["kernel"]


@pytest.mark.parametrize("way", WAYS)
def test_quantized(way: str) -> None:
    """Factored and composed are one model; quantized again, it is off by what is said."""
    kernel = qwix.quantize(normal(16, 24), **WAYS[way])
    params, x = {"a": {"kernel": kernel, "bias": normal(24)}}, normal(5, 16)
    leaves = jaxmix.attach(params, MIXED)
    assert leaves["a"]["kernel"].base is kernel and leaves["a"]["kernel"].shape == (16, 24)
    composed = jaxmix.compose(params, MIXED)
    want = run(composed, x)
    got = jax.jit(jaxmix.factored(run, "factored"))(leaves, x)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert jaxmix.detach(leaves)[0]["a"]["kernel"] is kernel
    again, errors = jaxmix.requantized(composed, params)
    new = again["a"]["kernel"]
    assert jax.tree.structure(new) == jax.tree.structure(kernel)
    assert new.qvalue.dtype == kernel.qvalue.dtype and new.scale.shape == kernel.scale.shape
    w = composed["a"]["kernel"]
    off = float(jnp.linalg.norm(qwix.dequantize(new) - w) / jnp.linalg.norm(w))
    assert errors == {"a.kernel": pytest.approx(off)} and 1e-3 < off < 0.2
    assert again["a"]["bias"] is composed["a"]["bias"]


def test_scanned_layers_stay_of_few_bits() -> None:
    """Each layer is dequantized in the loop's body, and no sooner."""
    params = {"w": qwix.quantize(normal(4, 16, 16), jnp.int8, channelwise_axes=[0, 2])}
    layout = Layout("stack", (Rule(r"l\.(\d+)", "w", "i o -> o i", r"\1"),))
    mixed = Adapter({f"l.{i}": LoRA(normal(3, 16), normal(16, 3), 0.1) for i in range(4)})

    def scanned(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["w"])[0]

    leaves, x = jaxmix.attach(params, mixed, layout=layout), normal(5, 16)
    want = scanned(jaxmix.compose(params, mixed, layout=layout), x)
    np.testing.assert_allclose(jaxmix.factored(scanned)(leaves, x), want, atol=2e-5)
    assert "f32[4,16,16]" not in str(jax.make_jaxpr(jaxmix.factored(scanned))(leaves, x))


def test_trees_that_differ_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"leaves that only one of the two trees has:\n.*b"):
        jaxmix.requantized({"a": normal(2, 2)}, {"a": normal(2, 2), "b": normal(2, 2)})
