"""What differs between backends: split factors, sums in place of products, and rotated tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.operators import BlockDiagonal, Diagonal, Hadamard, LowRank, Product
from jaxmix.operators.backends import GPU, TPU, Backend, by_platform, split

from ..uncompiled import uncompiled
from .kinds import close

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float64) -> Any:
    return jnp.asarray(RNG.normal(size=shape), dtype)


def low(rank: int, dtype: Any = np.float32) -> LowRank:
    return LowRank(normal(5, rank, dtype=dtype), normal(rank, 7, dtype=dtype))


def test_split_parts_sum_to_the_number() -> None:
    """Three parts of 8 bits each hold the 24 bits of a float32, from large to small."""
    x = normal(4, 50, dtype=np.float32) * jnp.asarray(10.0 ** np.arange(-2, 2), np.float32)[:, None]
    parts = split(x, (0, 1, 2))
    assert parts.dtype == jnp.bfloat16 and parts.shape == (12, 50)
    high, middle, small = np.asarray(parts, np.float64).reshape(3, 4, 50)
    np.testing.assert_array_equal(high + middle + small, np.asarray(x, np.float64))
    assert (np.abs(middle) <= np.abs(high) / 2**7).all()
    np.testing.assert_array_equal(split(x, (2, 0)), np.concatenate([parts[8:], parts[:4]]))


@pytest.mark.parametrize("view", [None, 8])
def test_split_factors_are_as_accurate_as_float32(view: int | None) -> None:
    """Their plain product of bfloat16 numbers has six times the rank."""
    factors = low(3)
    found = TPU.prepared(factors, view=view)
    assert found.rank == 18 and found.b.dtype == found.a.dtype == jnp.bfloat16
    product = np.asarray(found.b, np.float64) @ np.asarray(found.a, np.float64)
    exact = np.asarray(factors.b, np.float64) @ np.asarray(factors.a, np.float64)
    assert np.abs(product - exact).max() < 2.0**-20


@pytest.mark.parametrize(
    ("backend", "rank", "dtype", "view"),
    [
        (GPU, 3, jnp.float32, None),
        (TPU, 0, jnp.float32, None),
        (TPU, 3, jnp.bfloat16, None),
        (TPU, 3, jnp.float64, None),
        (TPU, 64, jnp.float32, 16),
    ],
    ids=["gpu", "rank 0", "bfloat16", "float64", "large view"],
)
def test_factors_that_are_not_split(
    backend: Backend, rank: int, dtype: Any, view: int | None
) -> None:
    factors = low(rank, dtype)
    assert backend.prepared(factors, view=view) is factors


@pytest.mark.parametrize(("size", "rank", "is_split"), [(16, 63, True), (8, 64, True)])
def test_large_views_need_both_sizes(size: int, rank: int, is_split: bool) -> None:
    factors = low(rank)
    assert (TPU.prepared(factors, view=size) is not factors) is is_split


@pytest.mark.parametrize("rank", [0, 1, 8, 9, 32, 33])
def test_sums_are_the_product(rank: int) -> None:
    """Of matrices and of stacks of them; ranks need not be a multiple of a sum's length."""
    for b in (normal(5, rank), normal(2, 5, rank)):
        a = normal(rank, 7)
        with uncompiled():
            close(GPU.product(b, a, np.float64), np.asarray(b) @ np.asarray(a))


def test_sums_replace_products_up_to_a_rank() -> None:
    for rank, has_product in ((32, False), (33, True)):
        b, a = np.ones((5, rank), np.float32), np.ones((rank, 7), np.float32)
        jaxpr = jax.make_jaxpr(lambda b, a: GPU.product(b, a, np.float32))(b, a)
        assert ("dot_general" in str(jaxpr)) is has_product


def test_hadamard_products_are_low_ranks_up_to_a_rank() -> None:
    """A GPU makes none."""
    for ranks, expected in (((16, 16), True), ((16, 17), False), ((1, 256), True)):
        assert TPU.is_low_rank(Hadamard(*map(low, ranks))) is expected
    assert not GPU.is_low_rank(Hadamard(low(1), low(1)))


@pytest.mark.parametrize(("size", "copies", "is_coarse"), [(32, 1, True), (24, 1, False)])
def test_tokens_are_rotated_in_large_blocks(size: int, copies: int, is_coarse: bool) -> None:
    """Blocks that do not divide a TPU's stay as they are; factors of a product follow in order."""
    width = 8 * size
    blocks = BlockDiagonal(normal(8, size, size), copies)
    rotation = Product(Diagonal(normal(width)), blocks)
    tokens = normal(3, width)
    expected = np.asarray(tokens) @ np.asarray(rotation.first.dense()) @ np.asarray(blocks.dense())
    with uncompiled():
        close(TPU.rotated(tokens, rotation, tokens.dtype), expected)
    jaxpr = jax.make_jaxpr(lambda x: TPU.rotated(x, blocks, x.dtype))(tokens)
    assert ("128,128]" in str(jaxpr)) is is_coarse


@pytest.mark.parametrize(
    ("platform", "operation"), [("cpu", "cosine"), ("tpu", "sine"), ("cuda", "tanh")]
)
def test_program_is_chosen_when_it_is_lowered(platform: str, operation: str) -> None:
    """A program for another platform than the host's has that platform's form."""

    def run(x: Any) -> Any:
        def on_accelerator(backend: Backend, x: Any) -> Any:
            return jnp.sin(x) if backend is TPU else jnp.tanh(x)

        return by_platform(jnp.cos, on_accelerator, x)

    lowered = jax.jit(run).trace(np.ones(2)).lower(lowering_platforms=(platform,))
    found = {x for x in ("cosine", "sine", "tanh") if f"stablehlo.{x} " in lowered.as_text()}
    assert found == {operation}
