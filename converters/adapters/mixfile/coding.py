"""Converts updates of any family to plain data and back, by the fields of their dataclasses.

A field with its default is left out, so older files stay readable, with the same hash, when a
family gains a field. For that reason defaults never change: that would need a new version of the
format.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.mixfile.kinds import field_types, misfit
from jaxmix.converters.adapters.mixfile.tensors import DTYPES
from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.families import FAMILIES, Update

__all__ = [
    "EncodeArray",
    "decode_strength",
    "decode_updates",
    "encode_strength",
    "encode_updates",
    "short_repr",
]

# Returns the data for an array, given the array and the path of its field. Raises a ValueError if
# the array is invalid.
EncodeArray = Callable[[Any, str], Any]


def encode_updates(adapter: Adapter, leaf: Callable[[str], EncodeArray]) -> dict[str, Any]:
    """Converts the updates of an adapter to data for JSON.

    Args:
        adapter: The adapter.
        leaf: Returns the encoder of a site's arrays.

    Returns:
        ``{site: {"family": …, field: …}}``.

    Raises:
        AdapterError: If updates can't be written; all are listed.
    """
    wrong: list[str] = []
    data: dict[str, Any] = {}
    for site, update in adapter.updates.items():
        try:
            data[site] = _encode(update, leaf(site), "")
        except _CodingError as error:
            wrong.append(f"{site}: {error}")
    if wrong:
        raise AdapterError(
            f"{adapter.name}: updates that can't be written:{listing(wrong)}\nExpected updates of "
            "the families in jaxmix.families, with finite numbers; save outside of jax.jit."
        )
    return data


def encode_strength(strength: Any, leaf: EncodeArray) -> Any:
    """Converts a strength to data: a number, or the data for an array without axes.

    Args:
        strength: A part's strength.
        leaf: The encoder of an array ().

    Returns:
        The data.

    Raises:
        AdapterError: If it is traced, or an array with axes.
    """
    if getattr(strength, "shape", ()) or isinstance(strength, Tracer):
        raise AdapterError(
            f"a strength is {short_repr(strength)}, expected a number. Save outside of jax.jit and "
            "jax.vmap."
        )
    return strength if isinstance(strength, float) else leaf(strength, "strength")


def decode_strength(
    data: Any, tensors: Mapping[str, np.ndarray], used: set[str], where: str
) -> float | jax.Array:
    """The inverse of `encode_strength`.

    Args:
        data: The data in the file, which `parse` has checked.
        tensors: The arrays by key.
        used: The keys that were used; extended.
        where: File and part, for messages.

    Returns:
        A float, or a JAX array () of the file's dtype.

    Raises:
        CheckpointError: If its tensor is missing or not a real number.
    """
    if not isinstance(data, dict):
        return float(data)
    used.add(data["tensor"])
    array = tensors.get(data["tensor"])
    if array is None or misfit(array, Float[np.ndarray, ""]):
        problem = "missing" if array is None else f"{array.shape} of {array.dtype}"
        raise CheckpointError(
            f"{where}: the tensor {data['tensor']!r} is {problem}, expected a strength () of "
            "floats. Save the mix again, or put a number in its place."
        )
    with jax.enable_x64(True):  # keeps float64
        return jnp.asarray(array)


class _CodingError(Exception):
    """The problem with one value; the caller adds the site."""


def _encode(value: Any, leaf: EncodeArray, path: str) -> Any:
    """Converts a value of an update's field, or an update, to data."""
    if isinstance(value, Update):
        return _encode_update(value, leaf, path)
    if isinstance(value, Tracer):
        raise _CodingError(f"{path} is traced")
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, leaf, path)
    if isinstance(value, tuple):
        return [_encode(item, leaf, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, float) and not np.isfinite(value):
        raise _CodingError(f"{path} is {value}")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise _CodingError(f"{path} is a {type(value).__name__}")


def _encode_array(array: Any, leaf: EncodeArray, path: str) -> Any:
    if array.dtype not in DTYPES:
        raise _CodingError(f"{path} is an array of {array.dtype}")
    try:
        return leaf(array, path)
    except RuntimeError as error:  # deleted, donated, or on devices of another process
        raise _CodingError(f"{path} can't be read: {error}") from error
    except ValueError as error:
        raise _CodingError(f"{path} {error}") from error


def _encode_update(update: Update, leaf: EncodeArray, path: str) -> dict[str, Any]:
    family = type(update)
    if FAMILIES.get(update.family) is not family:
        raise _CodingError(
            f"{path or 'it'} is a {family.__name__}, which is not a family of jaxmix"
        )
    inner = f"{path}." if path else ""
    data: dict[str, Any] = {"family": update.family}
    defaults = _defaults(family)
    for name, kind in field_types(family).items():
        value = getattr(update, name)
        if problem := misfit(value, kind) if not isinstance(value, Tracer) else None:
            raise _CodingError(f"{inner}{name} is {problem}")
        if name in defaults and _is_same(value, defaults[name]):
            continue
        data[name] = _encode(value, leaf, inner + name)
    return data


def _defaults(family: type[Update]) -> dict[str, Any]:
    """The fields that may be left out, with their defaults."""
    items = fields(family)  # pyright: ignore[reportArgumentType]
    return {item.name: item.default for item in items if item.default is not MISSING}


def _is_same(value: Any, default: Any) -> bool:
    """Whether a value is exactly the default: 0.0 is neither 0 nor -0.0."""
    return type(value) is type(default) and repr(value) == repr(default)


# ------------------------------------------------------------------------------------- decoding


def decode_updates(
    data: Any, tensors: Mapping[str, np.ndarray], used: set[str], where: str
) -> dict[str, Update]:
    """The inverse of `encode_updates`. Families come only from the table; nothing is evaluated.

    Args:
        data: The data in the file.
        tensors: The arrays by key.
        used: The keys that were used; extended.
        where: File and part, for messages.

    Returns:
        ``{site: update}``.

    Raises:
        CheckpointError: If a family or a field is unknown, a field is missing or of another type,
            or a tensor is missing; all are listed.
    """
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{where}: updates are {short_repr(data)}, expected {{site: update}}."
        )
    wrong: list[str] = []
    updates: dict[str, Update] = {}
    for site, item in data.items():
        try:
            update = _decode(item, tensors, used, "")
            if not isinstance(update, Update):
                raise _CodingError(f"{short_repr(item)} is not an update")
            updates[site] = update
        except _CodingError as error:
            wrong.append(f"{site}: {error}")
    if wrong:
        raise CheckpointError(
            f"{where}: invalid updates:{listing(wrong)}\nWas it edited, or written by another "
            "version? Save the mix again, or update jaxmix."
        )
    return updates


def _decode(data: Any, tensors: Mapping[str, np.ndarray], used: set[str], path: str) -> Any:
    """Decodes a value."""
    if isinstance(data, list):
        items = enumerate(data)
        return tuple(_decode(item, tensors, used, f"{path}.{i}") for i, item in items)
    if not isinstance(data, dict):
        return data
    if set(data) == {"tensor"} and isinstance(data["tensor"], str):
        used.add(data["tensor"])
        if data["tensor"] not in tensors:
            raise _CodingError(f"{path} is the tensor {data['tensor']!r}, which is missing")
        return tensors[data["tensor"]]
    return _decode_update(data, tensors, used, path)


def _decode_update(
    data: dict[str, Any], tensors: Mapping[str, np.ndarray], used: set[str], path: str
) -> Update:
    name = data.get("family")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise _CodingError(f"the family {short_repr(name)} is unknown")
    kinds, defaults = field_types(family), _defaults(family)
    inner = f"{path}." if path else ""
    if unknown := [key for key in data if key not in kinds and key != "family"]:
        raise _CodingError(f"{family.family} has no field {', '.join(map(short_repr, unknown))}")
    if missing := [key for key in kinds if key not in data and key not in defaults]:
        raise _CodingError(f"{family.family} needs {', '.join(inner + key for key in missing)}")
    values: dict[str, Any] = {}
    for key, kind in kinds.items():
        if key in data:
            values[key] = _decode(data[key], tensors, used, inner + key)
            if problem := misfit(values[key], kind):
                raise _CodingError(f"{inner}{key} is {problem}")
    try:
        return family(**values)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # a family's own check
        raise _CodingError(f"{path or family.family}: {error}") from error


def short_repr(value: Any) -> str:
    """Formats a value for a message, truncated to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
