"""Patterns of the whole messages about weights that are made dense."""

import re

from ..messages import full_text

__all__ = ["PLACE", "dense_refusal", "dense_warning"]

# An operation and its place, in tests that several versions of JAX name or trace differently.
PLACE = r"\w+ at test_\w+\.py:\d+ \(\S+\)"

_ADVICE = (
    "Multiply tokens by the whole weight, convolve with it or look up its rows, or merge the "
    "adapters of these leaves with jaxmix.compose."
)


def dense_warning(use: str, caller: str = "factored", often: str = "at each call") -> str:
    """Returns the pattern of the warning about one use; PLACE in it stays a pattern."""
    return _pattern(
        f"{caller} makes 1 weight dense {often}, where there is no factored form:\n  {use}\nThis "
        f"takes a pass over the weight and memory for a copy of it. {_ADVICE}"
    )


def dense_refusal(use: str, caller: str = "factored") -> str:
    """Returns the pattern of the error about one use; PLACE in it stays a pattern."""
    return _pattern(
        f'{caller} got how="factored", expected a factored form for each use of a weight; 1 '
        f'weight would be made dense:\n  {use}\n{_ADVICE} With how="auto" these uses take the '
        "dense weight, with a warning."
    )


def _pattern(message: str) -> str:
    return full_text(message).replace(re.escape(PLACE), PLACE)
