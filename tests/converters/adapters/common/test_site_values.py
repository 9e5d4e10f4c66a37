"""Ranks and alphas that differ by site, in the fields of PEFT's config."""

import re

import numpy as np
import pytest

from jaxmix.converters.adapters.common.site_values import as_float, common_value, ranks_and_alphas


def test_most_common_value_needs_no_pattern() -> None:
    """The patterns match their own site only, also where a name has a dot."""
    value, patterns = common_value({"a.q": 8, "a.k": 8, "b.q": 4, "axq": 2})
    assert value == 8
    assert patterns == {r"^b\.q": 4, "^axq": 2}
    assert not any(re.match(pattern, "a.q") for pattern in patterns)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2, np.float16)])
def test_numbers_become_floats(value: object) -> None:
    assert type(as_float(value)) is float and as_float(value) == 2


@pytest.mark.parametrize("rank", [1, 3, 7, 8, 48, 49, 100])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1 / 3, 1.0, 16.0, -1.5, 1e-30])
def test_alpha_over_rank_is_the_exact_scale(rank: int, alpha: float) -> None:
    """It holds for every scale that is the quotient of an alpha and the rank."""
    fields = ranks_and_alphas({"q": rank}, {"q": alpha / rank})
    assert fields["alpha"] / fields["r"] == alpha / rank
    assert (fields["rank_pattern"], fields["alpha_pattern"]) == ({}, {})


def test_integer_alpha_is_written_as_an_integer() -> None:
    """Even if the product of scale and rank is not exactly an integer: 49 · (1/49) < 1."""
    alpha = ranks_and_alphas({"q": 49}, {"q": 1 / 49})["alpha"]
    assert 49 * (1 / 49) != 1 and type(alpha) is int and alpha == 1


def test_ranks_and_alphas_have_separate_patterns() -> None:
    """A site may differ in its rank, in its alpha, or in both; the field of alpha has a name."""
    ranks = {"a": 4, "b": 4, "c": 8, "d": 2, "e": 4}
    scales = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 1.5, "e": np.float32(0.5)}
    assert ranks_and_alphas(ranks, scales, alpha="lora_alpha") == {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"^c": 8, "^d": 2},
        "alpha_pattern": {"^d": 3, "^e": 2},
    }
