"""qwix's bases stay quantized in factored leaves, and composed weights can be requantized."""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import DenseWeightWarning
from jaxmix.families import OFT, LoRA

from .texts import PLACE, dense_warning

qwix: Any = pytest.importorskip("qwix", reason="qwix is not installed")


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


QUANTIZATIONS = {
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


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_factored_and_composed_match_for_quantized_bases(quantization: str) -> None:
    """After requantization the weights differ by the reported error."""
    kernel = qwix.quantize(normal(16, 24), **QUANTIZATIONS[quantization])
    params, x = {"a": {"kernel": kernel, "bias": normal(24)}}, normal(5, 16)
    leaves = jaxmix.attach(params, MIXED)
    assert leaves["a"]["kernel"].base is kernel and leaves["a"]["kernel"].shape == (16, 24)
    composed = jaxmix.compose(params, MIXED)
    expected = run(composed, x)
    actual = jax.jit(jaxmix.factored(run, "factored"))(leaves, x)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert jaxmix.detach(leaves)[0]["a"]["kernel"] is kernel
    requantized, errors = jaxmix.requantized(composed, params)
    requantized_kernel = requantized["a"]["kernel"]
    assert jax.tree.structure(requantized_kernel) == jax.tree.structure(kernel)
    assert (
        requantized_kernel.qvalue.dtype == kernel.qvalue.dtype
        and requantized_kernel.scale.shape == kernel.scale.shape
    )
    composed_kernel = composed["a"]["kernel"]
    error = float(
        jnp.linalg.norm(qwix.dequantize(requantized_kernel) - composed_kernel)
        / jnp.linalg.norm(composed_kernel)
    )
    assert errors == {"a.kernel": pytest.approx(error)} and 1e-3 < error < 0.2
    assert requantized["a"]["bias"] is composed["a"]["bias"]


def scanned(params: Any, x: Any) -> Any:
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["w"])[0]


def looped(params: Any, x: Any) -> Any:
    return jax.lax.fori_loop(0, 4, lambda i, c: jnp.tanh(c @ params["w"][i]), x)


def unrolled(params: Any, x: Any) -> Any:
    for i in range(4):
        x = jnp.tanh(x @ params["w"][i])
    return x


SCALES = {
    "of each layer": dict(channelwise_axes=[0, 2]),
    "of all layers": dict(channelwise_axes=[2]),
    "of two layers each": dict(channelwise_axes=[2], tiled_axes={0: 2}),
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("run", [scanned, looped, unrolled])
def test_layers_stay_quantized(run: Any, scales: str) -> None:
    """Each layer is dequantized inside the loop, not before it."""
    params = {"w": qwix.quantize(normal(4, 16, 16), jnp.int8, **SCALES[scales])}
    layout = Layout("stack", (Rule(r"l\.(\d+)", "w", "i o -> o i", r"\1"),))
    mixed = Adapter({f"l.{i}": LoRA(normal(3, 16), normal(16, 3), 0.1) for i in range(4)})

    leaves, x = jaxmix.attach(params, mixed, layout=layout), normal(5, 16)
    expected = run(jaxmix.compose(params, mixed, layout=layout), x)
    factored_run = jax.jit(jaxmix.factored(run, "factored"))
    np.testing.assert_allclose(factored_run(leaves, x), expected, atol=2e-5)
    assert "f32[4,16,16]" not in str(jax.make_jaxpr(factored_run)(leaves, x))


def heads(params: Any, x: Any) -> Any:
    return jnp.einsum("bi,ihd->bhd", x, params["a"]["kernel"].reshape(16, 4, 6))


def test_heads_stay_quantized() -> None:
    """Scales per channel can be split into heads; scales of tiles across heads can't."""
    kernel = normal(16, 24)
    channels = qwix.quantize(kernel, jnp.int8, channelwise_axes=[1])
    tiles = qwix.quantize(kernel, jnp.int8, tiled_axes={1: 8})
    for base in (channels, tiles):
        params, x = {"a": {"kernel": base}}, normal(5, 16)
        leaves, expected = jaxmix.attach(params, MIXED), heads(jaxmix.compose(params, MIXED), x)
        how = "factored" if base is channels else "auto"
        run = jax.jit(jaxmix.factored(heads, how))
        message = dense_warning(f"a.kernel ((16, 24) float32, dequantized): {PLACE}")
        with (
            nullcontext() if how == "factored" else pytest.warns(DenseWeightWarning, match=message)
        ):
            np.testing.assert_allclose(run(leaves, x), expected, atol=2e-5)
