"""LoHa and LoKr: the sizes of their factors, and which of them is zero."""

from typing import Any

import jax
import pytest

from jaxmix.training.initializers.products import KINDS, factorization

from .modules import drawn, linear, only

pytestmark = pytest.mark.usefixtures("no_compiling")

_KEY = jax.random.key(0)


def test_factors_are_as_close_as_the_limit_allows() -> None:
    """The product is the size; the smaller factor is the largest divisor up to limit and root."""
    for size in range(1, 80):
        for factor in (-1, *range(1, 20)):
            pair = factorization(size, factor)
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            if factor > 0 and size % factor == 0:
                assert pair == (factor, size // factor)
                continue
            limit = size if factor == -1 else factor
            low = max(d for d in divisors if d <= limit and d * d <= size)
            assert pair == (low, size // low)


@pytest.mark.parametrize("start", [True, "lycoris"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("rank", [1, 9])
def test_one_factor_of_lokr_is_zero(start: Any, both: bool, rank: int) -> None:
    """With one zero the product is zero; with a second one neither would be trained."""
    options = {"rank": rank, "decompose_both": both, "init_weights": start}
    update: Any = KINDS["lokr"].make(_KEY, linear(36, 30), options)
    zeros = [not array.any() for array in (*update.x, *update.y)]
    assert sum(zeros) == 1 and any(zeros[: len(update.x)]) is (start is True)


@pytest.mark.parametrize(
    ("kernel", "core"), [((3, 2), (4, 4, 3, 2)), ((3,), (4, 4, 3, 1)), ((1, 1), None)]
)
def test_cores_of_convolutions(kernel: tuple[int, ...], core: tuple[int, ...] | None) -> None:
    """Kernels of one point have no core; those of one axis get another of size 1."""
    target = only({"conv.weight": drawn(24, 20, *kernel)}, "conv")
    options = {"rank": 4, "use_effective_conv2d": True}
    loha: Any = KINDS["loha"].make(_KEY, target, options)
    lokr: Any = KINDS["lokr"].make(_KEY, target, options | {"decompose_factor": 2})
    assert (loha.t1 is None) is (lokr.t2 is None) is (core is None)
    if core is not None:
        assert loha.t1.shape == loha.t2.shape == lokr.t2.shape == core
        assert loha.a1.shape == (4, 20) and not loha.a2.any()
