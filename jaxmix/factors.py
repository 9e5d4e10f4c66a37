"""Converts factors that users pass to arrays that JAX can compute with."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxmix.errors import AdapterError, listing
from jaxmix.families import Update

__all__ = ["checked_factors"]


@dataclass(frozen=True)
class _Field:
    """The type of a family's field, according to its annotation."""

    name: str
    may_be_none: bool
    is_float: bool
    is_scalar: bool
    is_tuple: bool
    is_static: bool = False


class _Unusable(Exception):
    """A value that can't be a factor, with a message."""


def checked_factors(updates: Mapping[str, Update]) -> dict[str, Update]:
    """Converts the factors of updates to arrays and numbers that JAX accepts.

    NumPy arrays get native byte order. Lists of numbers and PyTorch tensors become NumPy arrays,
    and integers become floats where a family has floats. JAX arrays and placeholders are unchanged.

    Args:
        updates: ``{site: update}``.

    Returns:
        The updates, as the same objects where nothing had to change.

    Raises:
        AdapterError: If factors can't be converted; all of them are listed.

    Example:
        >>> from jaxmix.families import LoRA
        >>> update = LoRA([[1, 2, 3]], np.ones((2, 1), ">f4"), 1.0)
        >>> checked = checked_factors({"proj": update})["proj"]
        >>> checked.a.dtype.name, checked.b.dtype.isnative
        ('float64', True)
    """
    checked: dict[str, Update] = {}
    wrong: list[str] = []
    for site, update in updates.items():
        checked[site] = _update(update, f"{site}: ", wrong)
    if wrong:
        raise AdapterError(
            f"factors that are not arrays of numbers:{listing(wrong)}\nExpected NumPy or JAX "
            "arrays of floats, and a finite number or an array without axes as scale."
        )
    return checked


def _update(update: Any, where: str, wrong: list[str]) -> Any:
    """An update with converted factors; messages about invalid ones are added to a list."""
    changed: dict[str, Any] = {}
    for spec in _fields(type(update)):
        old = getattr(update, spec.name)
        if (new := _value(old, spec, where, wrong)) is not old:
            changed[spec.name] = new
    return replace(update, **changed) if changed else update


def _value(value: Any, spec: _Field, where: str, wrong: list[str]) -> Any:
    """A field's converted value; for tuples, each of their items."""
    if spec.is_static:  # such as a rank that was computed with NumPy
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Update):
        return _update(value, where, wrong)
    if spec.is_tuple and isinstance(value, tuple | list):
        items = tuple(_value(item, replace(spec, is_tuple=False), where, wrong) for item in value)
        is_same = all(a is b for a, b in zip(items, value, strict=True))
        return value if is_same and isinstance(value, tuple) else items
    try:
        return _array(value, spec)
    except _Unusable as problem:
        wrong.append(f"{where}{spec.name} {problem}")
        return value


def _array(value: Any, spec: _Field) -> Any:
    """An array or a number that JAX accepts."""
    if spec.is_tuple and hasattr(value, "shape"):
        raise _Unusable(f"is one array {np.shape(value)}, expected a tuple of arrays")
    if isinstance(value, jax.Array):
        return value
    if value is None:
        if spec.may_be_none:
            return value
        raise _Unusable(f"is None, expected {'a number' if spec.is_scalar else 'an array'}")
    if isinstance(value, np.ma.MaskedArray):
        raise _Unusable("is a masked array; fill it: np.ma.filled(array, 0)")
    if isinstance(value, int | float):
        # Not `isfinite`, which overflows for an integer beyond all floats.
        if not abs(value) <= sys.float_info.max:
            text = value if isinstance(value, float) else "an integer beyond all floats"
            raise _Unusable(f"is {text}, expected a finite number")
        # JAX accepts only integers of 32 bits.
        return float(value) if spec.is_float and abs(value) >= 2**31 else value
    if isinstance(value, str | bytes | complex | Mapping | set | frozenset):
        raise _Unusable(f"is a {type(value).__name__}, expected an array")
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        value = _of_torch(value)
    elif isinstance(value, list | tuple | range | memoryview):
        value = _of_numbers(value)
    if not isinstance(value, np.ndarray | np.generic):
        return value  # a placeholder of a pytree transformation
    return _native(value, spec)


def _of_torch(tensor: Any) -> np.ndarray:
    """A PyTorch tensor as a new array; bfloat16, which NumPy lacks, is taken from ml_dtypes."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return np.array(tensor.float().numpy(), ml_dtypes.bfloat16)
    try:
        return np.array(tensor.numpy())
    except (RuntimeError, TypeError) as error:
        raise _Unusable(f"is a PyTorch tensor that NumPy can't hold ({error})") from None


def _of_numbers(value: Any) -> Any:
    """A list of numbers, nested lists or arrays as an array."""
    if isinstance(value, list | tuple) and any(isinstance(item, jax.Array) for item in value):
        return jnp.asarray(value)
    try:
        return np.asarray(value)
    except ValueError:
        raise _Unusable("is a list whose rows have several lengths, expected an array") from None


def _native(array: Any, spec: _Field) -> Any:
    """An array of numbers in native byte order, of floats where the family has floats."""
    dtype = array.dtype
    is_number = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if not is_number or dtype in (np.dtype(np.longdouble), np.dtype(object)):
        raise _Unusable(f"has dtype {dtype}, expected float64, float32, float16 or bfloat16")
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    if spec.is_float and not jnp.issubdtype(dtype, jnp.floating):
        array = array.astype(np.promote_types(array.dtype, np.float32))
    if not array.ndim and not np.isfinite(array):
        raise _Unusable(f"is {array}, expected a finite number")
    return array


@lru_cache(maxsize=256)
def _fields(family: type) -> tuple[_Field, ...]:
    """The fields of a family."""
    return tuple(map(_described, fields(family)))


def _described(field: Any) -> _Field:
    """Describes a field by its jaxtyping annotation, which names the dtype and the shape."""
    text = str(field.type)
    return _Field(
        field.name,
        "None" in text or "Array" not in text,
        "Float[" in text,
        "| float" in text,
        "tuple" in text,
        bool(field.metadata.get("static")),
    )
