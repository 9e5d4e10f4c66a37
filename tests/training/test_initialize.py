"""`jaxmix.init`: options by site, saved modules, keys, and the errors."""

# pyright: reportAttributeAccessIssue=false

# Tests read fields that only some families have.

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.errors import JaxmixError
from jaxmix.placement.layout import LAYOUTS, libraries
from jaxmix.training import init
from jaxmix.training.initializers import KINDS

from ..messages import full_text
from .init_rows import PARAMS

_KEY = jax.random.key(0)
_LAYOUTS = ", ".join(map(repr, {**LAYOUTS, **libraries()}))


def test_patterns_and_saved_modules() -> None:
    adapter = init(
        "lora", PARAMS, _KEY, target_modules=["lin", "wide"], rank=4,
        rank_pattern={"wide": 2}, alpha_pattern={"lin": 16}, modules_to_save=["norm"],
    )  # fmt: skip
    lin, wide = adapter.updates["lin"], adapter.updates["more.wide"]
    assert (len(lin.a), lin.scale, len(wide.a), wide.scale) == (4, 4.0, 2, 4.0)
    np.testing.assert_array_equal(adapter.updates["norm"].weight, PARAMS["norm.weight"])


def test_each_site_has_its_own_key() -> None:
    first = init("lora", PARAMS, _KEY, target_modules=["lin"])
    second = init("lora", PARAMS, _KEY, target_modules=["lin", "gpt"])
    np.testing.assert_array_equal(first.updates["lin"].a, second.updates["lin"].a)
    other = init("lora", PARAMS, jax.random.key(1), target_modules=["lin"])
    assert not np.array_equal(first.updates["lin"].a, other.updates["lin"].a)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "lore",
            {},
            f"there is no kind 'lore', expected one of {', '.join(KINDS)}.",
        ),
        (
            "delta",
            {},
            "'delta' can't be initialized: it is the result of full fine-tuning or of combining "
            f"adapters; expected one of {', '.join(KINDS)}.",
        ),
        (
            "lora",
            {},
            (
                "target_modules is None, expected names, a regular expression or "
                "'all-linear'. PEFT has defaults for models that it knows, but a "
                "tree of weights does not say which model it is. Its modules "
                "are:\n"
                "  conv\n"
                "  conv1\n"
                "  emb\n"
                "  gpt\n"
                "  lin\n"
                "  more\n"
                "  more.wide\n"
                "  norm"
            ),
        ),
        (
            "lora",
            {"target_modules": ["nope"]},
            (
                "names that match no module of the params:\n"
                "  target_modules: 'nope'\n"
                "Its modules are:\n"
                "  conv\n"
                "  conv1\n"
                "  emb\n"
                "  gpt\n"
                "  lin\n"
                "  more\n"
                "  more.wide\n"
                "  norm"
            ),
        ),
        (
            "lora",
            {"target_modules": "nope"},
            (
                "target_modules 'nope' matches no module of the params. Its "
                "modules are:\n"
                "  conv\n"
                "  conv1\n"
                "  emb\n"
                "  gpt\n"
                "  lin\n"
                "  more\n"
                "  more.wide\n"
                "  norm"
            ),
        ),
        (
            "lora",
            {"target_modules": "("},
            (
                "target_modules, exclude_modules, layers_pattern or "
                "modules_to_save is not a valid regular expression: missing ), "
                "unterminated subpattern at position 0. Pass a list of names, or "
                "a string that is a regular expression for full paths."
            ),
        ),
        (
            "lora",
            {"target_modules": ["norm"]},
            (
                "lora supports only linear, conv1d, convolution, embedding, "
                "parameter modules, but the targets include:\n"
                "  norm: norm of shape (24,)\n"
                "Name others, or leave these out with exclude_modules."
            ),
        ),
        (
            "lora",
            {"target_modules": ["lin"], "rnak": 3},
            (
                "lora has no option rnak, expected some of:\n"
                "  rank=8\n"
                "  alpha=8\n"
                "  use_rslora=False\n"
                "  use_dora=False\n"
                "  lora_bias=False\n"
                "  init_lora_weights=True\n"
                "  is_transposed=False\n"
                "Each of them may also be given as a …_pattern."
            ),
        ),
        (
            "lora",
            {"target_modules": ["lin"], "rank": 0},
            ("lora can't be initialized at these sites:\n  lin: rank is 0, expected at least 1"),
        ),
        (
            "lora",
            {"target_modules": ["lin"], "layout": "x"},
            f"there is no layout 'x', expected None, one of {_LAYOUTS}, or a jaxmix.Layout with "
            "rules of your own.",
        ),
        (
            "lora",
            {"target_modules": ["lin"], "modules_to_save": ["y"]},
            "modules_to_save: no module of the params is called 'y'.",
        ),
        (
            "oft",
            {"target_modules": ["lin"], "rank": 2, "oft_block_size": 2},
            (
                "oft can't be initialized at these sites:\n"
                "  lin: rank is 2 and oft_block_size 2, expected exactly one of "
                "them to be 0"
            ),
        ),
    ],
)
def test_invalid_targets_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(JaxmixError, match=full_text(message)):
        init(kind, PARAMS, _KEY, **options)
