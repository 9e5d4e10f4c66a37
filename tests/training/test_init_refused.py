"""Invalid options of a kind raise errors that name the site."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxmix.errors import AdapterError, JaxmixError, ShapeError, UnsupportedError
from jaxmix.training import init

# All sizes (out, in) are different.
PARAMS: dict[str, Any] = {
    "lin.weight": jnp.ones((24, 16)),
    "lin.bias": jnp.ones(24),
    "bare.weight": jnp.ones((24, 16)),
    "conv1.weight": jnp.ones((8, 6, 3)),
    "conv3.weight": jnp.ones((8, 6, 3, 3, 3)),
    "embed_tokens.weight": jnp.ones((10, 4)),
    "experts": jnp.ones((3, 4, 5)),
    "flat": jnp.ones((3, 4, 5, 6)),
    "zero.weight": jnp.zeros((24, 16)),
}

NUMBERS = "expected at least 1"
REFUSED: list[tuple[str, str, dict[str, Any], type[JaxmixError], str]] = [
    ("lora", "lin", {"init_lora_weights": "eva"}, UnsupportedError, "init_lora_weights is 'eva'"),
    (
        "lora",
        "lin",
        {"lora_bias": True, "use_dora": True},
        UnsupportedError,
        "lora_bias excludes DoRA",
    ),
    ("lora", "embed_tokens", {"lora_bias": True}, UnsupportedError, "excludes DoRA and embeddings"),
    (
        "lora",
        "conv1",
        {"init_lora_weights": "pissa"},
        UnsupportedError,
        "not support pissa for a convolution layer",
    ),
    (
        "lora",
        "lin",
        {"init_lora_weights": "pissa", "rank": 17},
        ShapeError,
        "expected at most 16 for pissa",
    ),
    ("lora", "lin", {"init_lora_weights": "olora", "alpha": 0}, ShapeError, "alpha is 0, expected"),
    ("dora", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("adalora", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("hira", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("loha", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("loha", "conv3", {}, UnsupportedError, "supports only convolutions of one or two axes"),
    ("lokr", "lin", {"init_weights": "x"}, UnsupportedError, "expected one of True, 'lycoris'"),
    ("delora", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("gralora", "lin", {"rank": 6, "gralora_k": 4}, ShapeError, "gralora_k is 4 and hybrid_r 0"),
    ("miss", "lin", {"rank": 17}, ShapeError, "rank is 17, expected at most 16"),
    (
        "miss",
        "lin",
        {"rank": 5, "init_weights": "bat"},
        ShapeError,
        "a divisor of both sizes of (24",
    ),
    ("miss", "lin", {"rank": 4, "init_weights": "mini", "mini_r": 5}, ShapeError, "mini_r is 5"),
    ("miss", "lin", {"init_weights": "x"}, UnsupportedError, "expected one of True, 'bat', 'mini'"),
    (
        "osf",
        "lin",
        {"effective_rank": 16},
        ShapeError,
        "effective_rank is 16, expected from 1",
    ),
    ("vera", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("vblora", "lin", {"vector_length": 5}, ShapeError, "vector_length is 5 and topk"),
    ("tinylora", "lin", {"weight_tying": 2}, UnsupportedError, "weight_tying 2, expected True"),
    (
        "shira",
        "lin",
        {"rank": 10},
        ShapeError,
        "rank is 10, which gives 400 entries, expected a rank of at least 1 and at most",
    ),
    ("fourierft", "lin", {"n_frequency": 385}, ShapeError, "n_frequency is 385, expected from 1"),
    ("waveft", "lin", {"wavelet_family": "x", "n_frequency": 3}, UnsupportedError, "family is 'x'"),
    ("c3a", "lin", {"block_size": 5}, ShapeError, "block_size is 5, expected a divisor of 24"),
    (
        "c3a",
        "lin",
        {"block_size": 8, "init_weights": "x"},
        UnsupportedError,
        "expected one of True",
    ),
    ("supertuning", "lin", {"sparsity": 1.0}, ShapeError, "leaves 0 of 384 entries"),
    ("supertuning", "lin", {"sparsity": 0.5, "rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    (
        "oft",
        "lin",
        {"rank": 2, "oft_block_size": 2},
        AdapterError,
        "expected exactly one of them to be 0",
    ),
    (
        "boft",
        "lin",
        {"boft_block_size": 0},
        AdapterError,
        "boft_block_size is 0 and boft_block_num",
    ),
    ("boft", "conv1", {}, UnsupportedError, "supports only convolutions of two axes"),
    (
        "boft",
        "lin",
        {"boft_block_size": 5},
        ShapeError,
        "16 inputs and boft_n_butterfly_factor is 1, expected a multiple of 5 inputs",
    ),
    (
        *("boft", "lin", {"boft_block_size": 8, "boft_n_butterfly_factor": 3}, ShapeError),
        "2 blocks of size 8, expected an even size and, for 3 factors, a multiple of 4 blocks",
    ),
    ("hra", "lin", {"rank": 0}, ShapeError, f"rank is 0, {NUMBERS}"),
    ("road", "lin", {"variant": "x"}, UnsupportedError, "variant is 'x', expected one of 'road_1'"),
    (
        "road",
        "lin",
        {"group_size": 5},
        ShapeError,
        "group_size is 5, expected an even divisor of 24",
    ),
    ("psoft", "lin", {"rank": 17}, ShapeError, "rank is 17, expected from 1 to 16"),
    ("psoft", "lin", {"rank": 2, "ab_svd_init": "x"}, UnsupportedError, "ab_svd_init is 'x' and"),
    (
        "frod",
        "lin",
        {"sparse_rate": 1.5},
        ShapeError,
        "sparse_rate is 1.5, expected a number from 0 to 1",
    ),
    ("frod", "zero", {}, ShapeError, "do not:\n  zero: a weight of 16 inputs\nLeave them out"),
    ("adamss", "lin", {"num_subspaces": 0}, ShapeError, f"num_subspaces is 0, {NUMBERS}"),
    (
        *("adamss", "lin", {"rank": 2, "subspace_rank": 3}, ShapeError),
        "subspace_rank is 3, expected at most 2, the rank of all groups together",
    ),
    ("beft", "bare", {}, UnsupportedError, "BEFT needs a bias, but there is none"),
    (
        "trainable_tokens",
        "embed_tokens",
        {"token_indices": [10]},
        AdapterError,
        "expected row indices from 0 to 9",
    ),
    ("trainable_tokens", "embed_tokens", {"token_indices": [1, 1]}, AdapterError, "each once"),
]


@pytest.mark.parametrize(
    ("kind", "site", "options", "error", "message"),
    REFUSED,
    ids=[f"{row[0]} {row[4][:20]}" for row in REFUSED],
)
def test_invalid_option_is_refused(
    kind: str, site: str, options: dict[str, Any], error: type[JaxmixError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as raised:
        init(kind, PARAMS, jax.random.key(0), target_modules=[site], **options)
    assert site in str(raised.value) or kind in ("vera", "tinylora", "frod")


@pytest.mark.parametrize(
    ("parameter", "options", "error", "message"),
    [
        ("experts", {"use_dora": True}, UnsupportedError, "experts support only a plain LoRA"),
        ("flat", {}, JaxmixError, "flat"),
    ],
)
def test_invalid_option_for_experts_is_refused(
    parameter: str, options: dict[str, Any], error: type[JaxmixError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        init("lora", PARAMS, jax.random.key(0), target_parameters=[parameter], **options)


def test_experts_start_at_the_base() -> None:
    """In both orientations each expert gets its own factors."""
    for is_transposed, sizes in ((False, (4, 5)), (True, (5, 4))):
        adapter = init(
            *("lora", PARAMS, jax.random.key(0)),
            target_parameters=["experts"],
            rank=2,
            is_transposed=is_transposed,
        )
        update: Any = adapter.updates["experts"]
        out, size = sizes
        assert update.b.shape == (3, out, 2) and update.a.shape == (3, 2, size)
        assert not update.b.any() and len({float(x) for x in update.a[:, 0, 0]}) == 3
