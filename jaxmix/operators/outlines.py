"""Static results of functions of operators, computed from shapes alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

__all__ = ["from_shapes"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    """A result without arrays, which leaves a trace as part of the structure of its outputs."""

    value: Any


def from_shapes(measure: Callable[..., Any], *trees: Any) -> Any:
    """Applies a function with a static result, such as a cost, without computing any array.

    Args:
        measure: The function. Its result is hashable and holds no arrays.
        *trees: Its arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Its result.

    Example:
        >>> from_shapes(lambda x: (2 * x).size, jax.ShapeDtypeStruct((3, 4), "float32"))
        12
    """
    return jax.eval_shape(lambda *args: _Static(measure(*args)), *trees).value
