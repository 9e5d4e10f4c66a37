"""Checks whether a value has the type of a family's field, by the field's annotation."""

import types
import typing
from dataclasses import fields
from functools import cache
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jaxtyping import AbstractArray

from jaxmix.families import Update

__all__ = ["field_types", "misfit"]


@cache
def field_types(family: type[Update]) -> dict[str, Any]:
    """Returns the fields of a family and their annotations.

    Args:
        family: The dataclass.

    Returns:
        ``{field: annotation}``, in order.
    """
    hints = typing.get_type_hints(family)
    return {item.name: hints[item.name] for item in fields(family)}  # pyright: ignore[reportArgumentType]


def misfit(value: Any, kind: Any) -> str | None:
    """Describes a value and the expected type if the value does not have this type.

    Args:
        value: A field's value; arrays are NumPy's or JAX's.
        kind: The field's annotation: jaxtyping's arrays by dtype and number of axes, numbers,
            strings, None, updates, tuples and unions of these.

    Returns:
        One line, or None if it fits.

    Example:
        >>> misfit(np.ones(3), field_types(Update.__subclasses__()[0])["kernel"])
        'an array (3,) of float64, expected a tuple of integers'
    """
    return (
        None if _fits(value, kind) else f"{_describe_value(value)}, expected {_describe_type(kind)}"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _fits(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and _fit_all(value, args)
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        return _is_array(value) and _fits_array(value, kind)
    if kind is jax.Array:
        return _is_array(value)
    if kind is None or kind is type(None):
        return value is None
    if kind is Any or isinstance(kind, TypeVar) or not isinstance(kind, type):
        return True  # an annotation that can't be checked
    if kind in (int, float):
        allowed = (int,) if kind is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool | np.generic)
    return isinstance(value, kind)


def _fit_all(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether each item of a tuple fits."""
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return all(_fits(value, kinds[0]) for value in values)
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _fits_array(array: Any, kind: Any) -> bool:
    """Whether an array has the dtype and the number of axes; sizes are for `Update.misfit`."""
    if isinstance(kind.dtypes, list | tuple) and str(array.dtype) not in kind.dtypes:
        return False
    axes = kind.dim_str.split()
    free = [axis for axis in axes if axis == "..." or axis.startswith("*")]
    count = len(axes) - len(free)
    return len(array.shape) >= count if free else len(array.shape) == count


def _describe_value(value: Any) -> str:
    """Describes a value for a message."""
    if _is_array(value):
        return f"an array {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Update):
        return f"an update {value.family}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _describe_type(kind: Any) -> str:
    """Describes a type for a message."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe_type, args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a tuple of {_NAMES.get(args[0], (_describe_type(args[0]),))[-1]}"
        return f"a tuple ({', '.join(map(_describe_type, args))})"
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        dtype = kind.__name__.split("[")[0]  # Float, Int
        return f"an array ({', '.join(kind.dim_str.split())}) of {dtype}"
    return _NAMES.get(kind, (getattr(kind, "__name__", str(kind)),))[0]


_NAMES: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true and false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    jax.Array: ("an array", "arrays"),
    type(None): ("nothing", "nothing"),
    Update: ("an update", "updates"),
}
