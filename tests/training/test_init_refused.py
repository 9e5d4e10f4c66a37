"""Invalid options of a kind raise errors that name the site."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxmix.errors import AdapterError, JaxmixError, ShapeError, UnsupportedError
from jaxmix.training import init

from ..messages import full_text

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

# The problem that the error states at the site.
REFUSED: list[tuple[str, str, dict[str, Any], type[JaxmixError], str]] = [
    (
        "lora",
        "lin",
        {"init_lora_weights": "eva"},
        UnsupportedError,
        ("init_lora_weights is 'eva', expected one of True, 'gaussian', 'pissa', 'olora'"),
    ),
    (
        "lora",
        "lin",
        {"lora_bias": True, "use_dora": True},
        UnsupportedError,
        "lora_bias excludes DoRA and embeddings, as in PEFT",
    ),
    (
        "lora",
        "embed_tokens",
        {"lora_bias": True},
        UnsupportedError,
        "lora_bias excludes DoRA and embeddings, as in PEFT",
    ),
    (
        "lora",
        "conv1",
        {"init_lora_weights": "pissa"},
        UnsupportedError,
        "PEFT does not support pissa for a convolution layer",
    ),
    (
        "lora",
        "lin",
        {"init_lora_weights": "pissa", "rank": 17},
        ShapeError,
        "rank is 17, expected at most 16 for pissa",
    ),
    (
        "lora",
        "lin",
        {"init_lora_weights": "olora", "alpha": 0},
        ShapeError,
        "alpha is 0, expected another value for olora, which divides by it",
    ),
    ("dora", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    ("adalora", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    ("hira", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    ("loha", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    ("loha", "conv3", {}, UnsupportedError, "PEFT supports only convolutions of one or two axes"),
    (
        "lokr",
        "lin",
        {"init_weights": "x"},
        UnsupportedError,
        "init_weights is 'x', expected one of True, 'lycoris'",
    ),
    ("delora", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    (
        "gralora",
        "lin",
        {"rank": 6, "gralora_k": 4},
        ShapeError,
        (
            "gralora_k is 4 and hybrid_r 0, expected a gralora_k that divides "
            "the rank 6 and both sizes of (24, 16), and a hybrid_r of at least 0"
        ),
    ),
    ("miss", "lin", {"rank": 17}, ShapeError, "rank is 17, expected at most 16"),
    (
        "miss",
        "lin",
        {"rank": 5, "init_weights": "bat"},
        ShapeError,
        "rank is 5, expected a divisor of both sizes of (24, 16)",
    ),
    (
        "miss",
        "lin",
        {"rank": 4, "init_weights": "mini", "mini_r": 5},
        ShapeError,
        "mini_r is 5, expected a divisor of 24",
    ),
    (
        "miss",
        "lin",
        {"init_weights": "x"},
        UnsupportedError,
        "init_weights is 'x', expected one of True, 'bat', 'mini'",
    ),
    (
        "osf",
        "lin",
        {"effective_rank": 16},
        ShapeError,
        "effective_rank is 16, expected from 1 to 15",
    ),
    (
        "shira",
        "lin",
        {"rank": 10},
        ShapeError,
        (
            "rank is 10, which gives 400 entries, expected a rank of at least 1 "
            "and at most 384 entries"
        ),
    ),
    (
        "fourierft",
        "lin",
        {"n_frequency": 385},
        ShapeError,
        "n_frequency is 385, expected from 1 to 384",
    ),
    (
        "waveft",
        "lin",
        {"wavelet_family": "x", "n_frequency": 3},
        UnsupportedError,
        (
            "wavelet_family is 'x', expected one of 'haar', 'db1', 'db2', 'db3', "
            "'db4', 'db5', 'db6', 'db7', 'db8', 'db9', 'db10', 'sym2', 'sym3', "
            "'sym4', 'sym5', 'sym6', 'sym7', 'sym8', 'sym9', 'sym10', 'coif1', "
            "'coif2', 'coif3'"
        ),
    ),
    (
        "c3a",
        "lin",
        {"block_size": 5},
        ShapeError,
        "block_size is 5, expected a divisor of 24 and 16",
    ),
    (
        "c3a",
        "lin",
        {"block_size": 8, "init_weights": "x"},
        UnsupportedError,
        (
            "init_weights is 'x', expected one of True, 'gaussian', "
            "'xavier_uniform', 'kaiming_uniform'"
        ),
    ),
    (
        "supertuning",
        "lin",
        {"sparsity": 1.0},
        ShapeError,
        "sparsity is 1.0, which leaves 0 of 384 entries, expected at least 1",
    ),
    (
        "supertuning",
        "lin",
        {"sparsity": 0.5, "rank": 0},
        ShapeError,
        "rank is 0, expected at least 1",
    ),
    (
        "oft",
        "lin",
        {"rank": 2, "oft_block_size": 2},
        AdapterError,
        "rank is 2 and oft_block_size 2, expected exactly one of them to be 0",
    ),
    (
        "boft",
        "lin",
        {"boft_block_size": 0},
        AdapterError,
        ("boft_block_size is 0 and boft_block_num 0, expected exactly one of them to be 0"),
    ),
    ("boft", "conv1", {}, UnsupportedError, "PEFT supports only convolutions of two axes"),
    (
        "boft",
        "lin",
        {"boft_block_size": 5},
        ShapeError,
        (
            "the weight has 16 inputs and boft_n_butterfly_factor is 1, expected "
            "a multiple of 5 inputs and at least 1 factor"
        ),
    ),
    (
        "boft",
        "lin",
        {"boft_block_size": 8, "boft_n_butterfly_factor": 3},
        ShapeError,
        (
            "there are 2 blocks of size 8, expected an even size and, for 3 "
            "factors, a multiple of 4 blocks"
        ),
    ),
    ("hra", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    (
        "road",
        "lin",
        {"variant": "x"},
        UnsupportedError,
        "variant is 'x', expected one of 'road_1', 'road_2', 'road_4'",
    ),
    (
        "road",
        "lin",
        {"group_size": 5},
        ShapeError,
        "group_size is 5, expected an even divisor of 24",
    ),
    ("psoft", "lin", {"rank": 17}, ShapeError, "rank is 17, expected from 1 to 16"),
    (
        "psoft",
        "lin",
        {"rank": 2, "ab_svd_init": "x"},
        UnsupportedError,
        (
            "ab_svd_init is 'x' and alpha 32, expected 'psoft_init' or "
            "'pissa_init', and an alpha other than 0"
        ),
    ),
    ("adamss", "lin", {"num_subspaces": 0}, ShapeError, "num_subspaces is 0, expected at least 1"),
    (
        "adamss",
        "lin",
        {"rank": 2, "subspace_rank": 3},
        ShapeError,
        (
            "subspace_rank is 3, expected at most 2, the rank of all groups "
            "together, from weight (24, 16)"
        ),
    ),
    (
        "beft",
        "bare",
        {},
        UnsupportedError,
        "BEFT needs a bias, but there is none. Give the base a bias of zeros",
    ),
    (
        "trainable_tokens",
        "embed_tokens",
        {"token_indices": [10]},
        AdapterError,
        "token_indices is [10], expected row indices from 0 to 9, each once",
    ),
    (
        "trainable_tokens",
        "embed_tokens",
        {"token_indices": [1, 1]},
        AdapterError,
        "token_indices is [1, 1], expected row indices from 0 to 9, each once",
    ),
]

# The whole message, where the problem is not that of one site.
REFUSED_AT_ALL_SITES: list[tuple[str, str, dict[str, Any], type[JaxmixError], str]] = [
    ("vera", "lin", {"rank": 0}, ShapeError, "rank is 0, expected at least 1"),
    (
        "vblora",
        "lin",
        {"vector_length": 5},
        ShapeError,
        (
            "vector_length is 5 and topk 2, expected a vector_length that "
            "divides all sizes and a topk of at most 256, the number of "
            "vectors:\n"
            "  lin: (24, 16)"
        ),
    ),
    (
        "tinylora",
        "lin",
        {"weight_tying": 2},
        UnsupportedError,
        (
            "init_weights is True and weight_tying 2, expected True or "
            "'uniform', and a number from 0 to 1"
        ),
    ),
    (
        "frod",
        "lin",
        {"sparse_rate": 1.5},
        ShapeError,
        "sparse_rate is 1.5, expected a number from 0 to 1",
    ),
    (
        "frod",
        "zero",
        {},
        ShapeError,
        (
            "FRoD needs weights whose rows together span all inputs, but these, "
            "with the others of their category, do not:\n"
            "  zero: a weight of 16 inputs\n"
            "Leave them out with exclude_modules."
        ),
    ),
]


@pytest.mark.parametrize(
    ("kind", "site", "options", "error", "problem"),
    REFUSED,
    ids=[f"{row[0]} {row[4][:20]}" for row in REFUSED],
)
def test_invalid_option_is_refused_at_its_site(
    kind: str, site: str, options: dict[str, Any], error: type[JaxmixError], problem: str
) -> None:
    message = f"{kind} can't be initialized at these sites:\n  {site}: {problem}"
    with pytest.raises(error, match=full_text(message)):
        init(kind, PARAMS, jax.random.key(0), target_modules=[site], **options)


@pytest.mark.parametrize(
    ("kind", "site", "options", "error", "message"),
    REFUSED_AT_ALL_SITES,
    ids=[f"{row[0]} {row[4][:20]}" for row in REFUSED_AT_ALL_SITES],
)
def test_invalid_option_is_refused_at_all_sites(
    kind: str, site: str, options: dict[str, Any], error: type[JaxmixError], message: str
) -> None:
    with pytest.raises(error, match=full_text(message)):
        init(kind, PARAMS, jax.random.key(0), target_modules=[site], **options)


@pytest.mark.parametrize(
    ("parameter", "options", "error", "problem"),
    [
        (
            "experts",
            {"use_dora": True},
            UnsupportedError,
            "experts support only a plain LoRA, as in PEFT",
        ),
        (
            "flat",
            {},
            JaxmixError,
            "the parameter has shape (3, 4, 5, 6), expected (experts, out, in)",
        ),
    ],
)
def test_invalid_option_for_experts_is_refused(
    parameter: str, options: dict[str, Any], error: type[JaxmixError], problem: str
) -> None:
    message = f"lora can't be initialized at these sites:\n  {parameter}: {problem}"
    with pytest.raises(error, match=full_text(message)):
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
