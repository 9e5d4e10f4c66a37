"""Effects of adapters at each site, Δ and δ, and how PyTorch stores them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.effects import Spot, common_dtype, effects, effects_of_loras, is_plain
from jaxmix.errors import AdapterError
from jaxmix.families import OFT, LoRA, Replace
from jaxmix.operators import LowRank, Zero

from .messages import full_text
from .uncompiled import uncompiled


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Enables float64 in JAX, and compiles nothing."""
    with jax.enable_x64(True), uncompiled():
        yield


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def lora(seed: int = 0, **options: Any) -> LoRA:
    return LoRA(normal(2, 6, seed=seed), normal(4, 2, seed=seed), 0.5, **options)


PARAMS = {"a.weight": normal(4, 6), "a.bias": normal(4), "b.weight": normal(4, 6, seed=1)}
PARAMS |= {"norm.weight": normal(6)}


def test_a_spot_gives_a_matrix_the_axes_of_pytorch() -> None:
    """A convolution's kernel, a norm's vector, and a Conv1D, whose weight is (in, out)."""
    matrix = jnp.asarray(normal(4, 12))
    conv = Spot("c", kernel=(3, 2)).tensor(matrix)
    np.testing.assert_array_equal(conv, matrix.reshape(4, 2, 3, 2))
    np.testing.assert_array_equal(Spot("n", is_vector=True).tensor(matrix[:, :1]), matrix[:, 0])
    for transposed, name in ((True, "x"), (None, "h.0.attn.c_attn"), (None, "x"), (False, "x")):
        tensor = Spot(name, transposed=transposed).tensor(matrix)
        is_turned = transposed or "c_attn" in name
        np.testing.assert_array_equal(tensor, matrix.T if is_turned else matrix)


def test_a_square_matrix_of_unknown_orientation_is_refused() -> None:
    message = (
        "h.0.attn.c_proj: the file that the adapter was read from does not record whether PyTorch "
        "stores this weight (4, 4) as (out, in) or as (in, out), on which a dense update depends. "
        "Pass the base: params=…."
    )
    with pytest.raises(AdapterError, match=full_text(message)):
        Spot("h.0.attn.c_proj", transposed=None).tensor(jnp.zeros((4, 4)))


def test_each_effect_is_the_difference_on_the_base_alone() -> None:
    """An adapter that does not touch a site has Δ = 0 there; the order is that of the groups."""
    turn = Adapter({"a": OFT(normal(3, 1))}, name="turn")
    both = jaxmix.mix(turn, Adapter({"a": lora(bias=normal(4)), "norm": Replace(normal(6))}))
    groups = [both, Adapter({"b": lora(1)}, 0.5, "half")]
    found = {spot.name: (spot, pair) for spot, pair in effects(groups, PARAMS)}
    assert found.keys() == {"a", "b", "norm"}
    composed = jaxmix.compose(PARAMS, both)
    spot, (first, second) = found["a"]
    assert first.weight is not None and first.bias is not None
    delta = composed["a.weight"] - PARAMS["a.weight"]
    np.testing.assert_allclose(first.weight.dense(), delta, atol=1e-12)
    np.testing.assert_allclose(first.bias, composed["a.bias"] - PARAMS["a.bias"], atol=1e-12)
    np.testing.assert_array_equal(spot.bias, PARAMS["a.bias"])
    # A rotation is computed as a difference, which may round; a sum of factors is not.
    assert 0 < float(first.noise) < 1e-13
    assert isinstance(second.weight, Zero) and second.bias is None and second.noise == 0
    _, (unchanged, half) = found["b"]
    assert isinstance(unchanged.weight, Zero) and isinstance(half.weight, LowRank)
    np.testing.assert_allclose(half.weight.dense(), 0.25 * lora(1).b @ lora(1).a, rtol=1e-12)
    spot, (norm, _) = found["norm"]
    assert spot.is_vector and norm.weight is not None
    np.testing.assert_array_equal(spot.weight, PARAMS["norm.weight"])
    moved = spot.tensor(norm.weight.dense())
    np.testing.assert_allclose(moved, composed["norm.weight"] - PARAMS["norm.weight"], atol=1e-12)


def test_loras_have_the_same_effects_without_a_base() -> None:
    """The bias too, of the adapters that change it; sites come in the adapters' order."""
    groups = [
        Adapter({"b": lora(), "a": lora(1, bias=normal(4))}, 0.5, "one"),
        jaxmix.mix(Adapter({"a": lora(2)}, name="x"), Adapter({"a": lora(3)}, name="y")),
    ]
    without = list(effects_of_loras(groups))
    assert [spot.name for spot, _ in without] == ["b", "a"]
    within = {spot.name: pair for spot, pair in effects(groups, PARAMS)}
    for spot, pair in without:
        for own, other in zip(pair, within[spot.name], strict=True):
            assert own.weight is not None and other.weight is not None
            np.testing.assert_allclose(own.weight.dense(), other.weight.dense(), atol=1e-12)
            assert (own.bias is None) == (other.bias is None)
            if own.bias is not None and other.bias is not None:
                np.testing.assert_allclose(own.bias, other.bias, atol=1e-12)


def test_a_plain_lora_reads_no_base() -> None:
    assert is_plain(lora()) and is_plain(lora(bias=normal(4)))
    assert not is_plain(lora(magnitude=normal(4))) and not is_plain(OFT(normal(3, 1)))


def test_arithmetic_is_at_least_float32() -> None:
    half = LoRA(jnp.ones((1, 2), jnp.bfloat16), jnp.ones((3, 1), jnp.bfloat16), 1.0)
    assert common_dtype([half]) == jnp.float32
    assert common_dtype([half, lora()]) == jnp.float64
    with jax.enable_x64(False):
        assert common_dtype([lora()]) == jnp.float32
