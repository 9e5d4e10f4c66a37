"""Checks of options: each wrong option is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxmix.errors import JaxmixError, ShapeError, UnsupportedError
from jaxmix.training.initializers.checks import check_choice, check_positive, scale_of

from ...messages import full_text


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        (
            lambda: check_positive(rank=0, u=3, topk=-1),
            ShapeError,
            "rank is 0, topk is -1, expected at least 1",
        ),
        (
            lambda: check_positive(rank=True),
            ShapeError,
            "rank is True, expected a positive integer",
        ),
        (lambda: check_positive(rank=2.0), ShapeError, "rank is 2.0, expected a positive integer"),
        (
            lambda: check_choice("start", "x", (True, "bat")),
            UnsupportedError,
            "start is 'x', expected one of True, 'bat'",
        ),
        # Python takes 1 for True, and a list has no hash.
        (
            lambda: check_choice("start", 1, (True, "bat")),
            UnsupportedError,
            "start is 1, expected one of True, 'bat'",
        ),
        (
            lambda: check_choice("variant", ["a"], {"a": 1}),
            UnsupportedError,
            "variant is ['a'], expected one of 'a'",
        ),
        (lambda: scale_of(0, 8), ShapeError, "rank is 0, expected at least 1"),
    ],
)
def test_wrong_options_are_named(
    check: Callable[[], Any], kind: type[JaxmixError], message: str
) -> None:
    with pytest.raises(kind, match=full_text(message)):
        check()


def test_valid_options_pass() -> None:
    """NumPy's integers are integers, and an option may be the first or the last of its choices."""
    check_positive(rank=1, u=np.int64(7))
    for choice in (True, "bat"):
        check_choice("start", choice, (True, "bat"))


def test_scale_is_alpha_by_rank_or_by_its_root() -> None:
    assert scale_of(4, 6) == 1.5
    assert scale_of(4, 6, use_rslora=True) == 3.0
