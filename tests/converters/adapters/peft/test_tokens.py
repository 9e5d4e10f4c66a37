"""Trained tokens, and heads that are tied to a trained embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.tokens import (
    token_rows,
    with_copies_marked,
    with_tied_heads_saved,
)
from jaxmix.errors import ShapeError
from jaxmix.families import IA3, Tokens

from ....messages import full_text

ROWS = np.arange(6.0).reshape(2, 3)


def rows(field: Any, site: str, values: np.ndarray = ROWS) -> list[int]:
    """Returns the rows that a site's tokens are in."""
    config = Config(Path("style/adapter_config.json"), "LORA", {"trainable_token_indices": field})
    return np.asarray(token_rows(config, site, {"trainable_tokens_delta": values}).rows).tolist()


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ([5, 1], [5, 1]),  # in the order of the tensor's rows
        ({"embed_tokens": [5, 1]}, [5, 1]),
        # PEFT takes the whole name before the ends of names.
        ({"tokens": [0, 9], "model.embed_tokens": [5, 1]}, [5, 1]),
        ({"head": [0, 9], "tokens": [5, 1]}, [5, 1]),
    ],
)
def test_rows_are_those_of_the_module(field: Any, expected: list[int]) -> None:
    """A list is for the input embedding."""
    assert rows(field, "model.embed_tokens") == expected


@pytest.mark.parametrize(
    ("field", "values", "found"),
    [
        ([5], ROWS, "(2, 3), expected (1, D)"),
        ({"head": [5, 1]}, ROWS, "(2, 3), expected (?, D)"),
        ([0, 1, 2], ROWS[0], "(3,), expected (3, D)"),
    ],
)
def test_other_numbers_of_rows_are_refused(field: Any, values: np.ndarray, found: str) -> None:
    """A site without indices, and a tensor that is no matrix, are too."""
    message = f"style: wte has trainable_tokens_delta {found} by trainable_token_indices"
    with pytest.raises(ShapeError, match=full_text(message)):
        rows(field, "wte", values)


def test_only_equal_rows_of_a_head_are_a_copy() -> None:
    """The embedding itself is none, nor a head with other rows or numbers."""

    def tokens(values: np.ndarray, places: list[int]) -> Any:
        return Tokens(values, np.array(places, np.int32))  # pyright: ignore[reportArgumentType]

    embedding = tokens(ROWS, [5, 1])
    scale: Any = IA3(np.ones(3))
    for head, is_copy in (
        (tokens(ROWS.copy(), [5, 1]), True),
        (tokens(ROWS, [1, 5]), False),
        (tokens(ROWS + 1, [5, 1]), False),
    ):
        updates = {"embed_tokens": embedding, "lm_head": head, "q_proj": scale}
        marked: Any = with_copies_marked(updates)
        assert (marked["lm_head"].is_copy, marked["embed_tokens"].is_copy) == (is_copy, False)
        assert marked["q_proj"] is scale and not head.is_copy
    alone: Any = with_copies_marked({"lm_head": embedding})
    assert not alone["lm_head"].is_copy


def test_tied_partner_of_a_saved_module_is_saved_too() -> None:
    """Only under a name of an embedding or a head, and with equal numbers; its bias stays."""
    saved: dict[str, Any] = {"model.embed_tokens": {"weight": ROWS}, "lm_head": {"bias": ROWS[0]}}
    base: dict[str, Any] = {
        "lm_head": {"weight": ROWS.copy()},
        "model.shared": {"weight": ROWS + 1},
        "model.q_proj": {"weight": ROWS},
    }
    with_tied_heads_saved(saved, base)
    assert set(base) == {"model.shared", "model.q_proj"}
    assert set(saved) == {"model.embed_tokens", "lm_head"}
    np.testing.assert_array_equal(saved["lm_head"]["weight"], ROWS)
    np.testing.assert_array_equal(saved["lm_head"]["bias"], ROWS[0])
