"""The type checker that checks shapes and dtypes of jaxmix's calls during tests.

It leaves three things unchecked:

- a pytree's ``__init__``, because JAX rebuilds pytrees with arbitrary objects in place of arrays;
- a method annotated with ``Self``, because beartype supports ``Self`` only when it decorates the
  class, while jaxtyping's hook decorates single methods;
- functions within functions, because each call of the outer one would make a new checker, which
  takes half a millisecond.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

__all__ = ["check"]

# An int is accepted as a float.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with its arguments and result checked."""
    if function.__name__ == "__init__" or "<locals>" in function.__qualname__:
        return function
    try:
        return _checked(function)
    except BeartypeDecorHintPep673Exception:
        return function
