"""The type checker under which jaxmix is imported in tests: shapes and dtypes of every call.

Two things it lets pass. A pytree's ``__init__``, since JAX rebuilds pytrees with whatever a map
put in the place of arrays. And a method that says ``Self``, which beartype understands only where
it decorates the class, while jaxtyping's hook decorates methods one by one.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

__all__ = ["check"]

# Where a float is asked, an int will do.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its arguments and result checked."""
    if function.__name__ == "__init__":
        return function
    try:
        return _checked(function)
    except BeartypeDecorHintPep673Exception:
        return function
