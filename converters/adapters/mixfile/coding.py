"""Updates as plain data and back: by the fields of their dataclasses, whatever their family.

A field that holds its default is left out, so that a family which gains a field reads older files,
and their hashes stay. For that reason a default is never changed: this would be a new version.
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
from jaxmix.converters.adapters.mixfile.kinds import field_kinds, misfit
from jaxmix.converters.adapters.mixfile.tensors import DTYPES
from jaxmix.errors import AdapterError, CheckpointError, listing
from jaxmix.families import FAMILIES, Update

__all__ = [
    "Leaf",
    "decode_strength",
    "decode_updates",
    "encode_strength",
    "encode_updates",
    "shown",
]

# What stands in the data for an array, given the array and the path of the field that holds it. A
# ValueError says what is wrong with it.
Leaf = Callable[[Any, str], Any]


def encode_updates(adapter: Adapter, leaf: Callable[[str], Leaf]) -> dict[str, Any]:
    """The updates of an adapter as data that JSON can hold.

    Args:
        adapter: the adapter.
        leaf: from a site to what stands there for its arrays.

    Returns:
        ``{site: {"family": …, field: …}}``.

    Raises:
        AdapterError: if something in an update can't be written, all such listed together.
    """
    wrong: list[str] = []
    data: dict[str, Any] = {}
    for site, update in adapter.updates.items():
        try:
            data[site] = _encode(update, leaf(site), "")
        except _WrongError as error:
            wrong.append(f"{site}: {error}")
    if wrong:
        raise AdapterError(
            f"{adapter.name}: can't be written:{listing(wrong)}\nExpected updates of the families "
            "in jaxmix.families, with finite numbers; save outside of jax.jit."
        )
    return data


def encode_strength(strength: Any, leaf: Leaf) -> Any:
    """A strength as data: a number, or what stands for an array without axes.

    Args:
        strength: a part's.
        leaf: what stands there for an array ().

    Returns:
        The data.

    Raises:
        AdapterError: if it is traced, or an array with axes.
    """
    if getattr(strength, "shape", ()) or isinstance(strength, Tracer):
        raise AdapterError(
            f"a strength is {shown(strength)}, expected a number. Save outside of jax.jit and "
            "jax.vmap."
        )
    return strength if isinstance(strength, float) else leaf(strength, "strength")


def decode_strength(
    data: Any, tensors: Mapping[str, np.ndarray], used: set[str], where: str
) -> float | jax.Array:
    """The inverse of `encode_strength`.

    Args:
        data: what stands in the file; `parse` has looked.
        tensors: the arrays by key.
        used: the keys that were asked for; added to.
        where: file and part, for messages.

    Returns:
        A float, or a JAX array () of the file's dtype.

    Raises:
        CheckpointError: if its tensor is missing, or no real number.
    """
    if not isinstance(data, dict):
        return float(data)
    used.add(data["tensor"])
    array = tensors.get(data["tensor"])
    if array is None or misfit(array, Float[np.ndarray, ""]):
        found = "missing" if array is None else f"{array.shape} of {array.dtype}"
        raise CheckpointError(
            f"{where}: the tensor {data['tensor']!r} is {found}, expected a strength () of floats. "
            "Save the mix again, or put a number in its place."
        )
    with jax.enable_x64(True):  # a float64 is one still where float32 is the default
        return jnp.asarray(array)


class _WrongError(Exception):
    """What is wrong with one value; the site is told by whoever catches it."""


def _encode(value: Any, leaf: Leaf, path: str) -> Any:
    """A value of an update's field, or an update, as data."""
    if isinstance(value, Update):
        return _encode_update(value, leaf, path)
    if isinstance(value, Tracer):
        raise _WrongError(f"{path} is traced")
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, leaf, path)
    if isinstance(value, tuple):
        return [_encode(item, leaf, f"{path}.{i}") for i, item in enumerate(value)]
    if isinstance(value, float) and not np.isfinite(value):
        raise _WrongError(f"{path} is {value}")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise _WrongError(f"{path} is a {type(value).__name__}")


def _encode_array(array: Any, leaf: Leaf, path: str) -> Any:
    if array.dtype not in DTYPES:
        raise _WrongError(f"{path} is an array of {array.dtype}")
    try:
        return leaf(array, path)
    except RuntimeError as error:  # deleted, donated, or on devices of another process
        raise _WrongError(f"{path} can't be read: {error}") from error
    except ValueError as error:
        raise _WrongError(f"{path} {error}") from error


def _encode_update(update: Update, leaf: Leaf, path: str) -> dict[str, Any]:
    family = type(update)
    if FAMILIES.get(update.family) is not family:
        raise _WrongError(f"{path or 'it'} is a {family.__name__}, which is no family of jaxmix")
    inner = f"{path}." if path else ""
    data: dict[str, Any] = {"family": update.family}
    defaults = _defaults(family)
    for name, kind in field_kinds(family).items():
        value = getattr(update, name)
        if said := misfit(value, kind) if not isinstance(value, Tracer) else None:
            raise _WrongError(f"{inner}{name} is {said}")
        if name in defaults and _is_same(value, defaults[name]):
            continue
        data[name] = _encode(value, leaf, inner + name)
    return data


def _defaults(family: type[Update]) -> dict[str, Any]:
    """The fields that may be left out."""
    found = fields(family)  # pyright: ignore[reportArgumentType]
    return {one.name: one.default for one in found if one.default is not MISSING}


def _is_same(value: Any, default: Any) -> bool:
    """Whether a value is the default to the last bit: 0.0 is neither 0 nor -0.0."""
    return type(value) is type(default) and repr(value) == repr(default)


# ------------------------------------------------------------------------------------- back


def decode_updates(
    data: Any, tensors: Mapping[str, np.ndarray], used: set[str], where: str
) -> dict[str, Update]:
    """The inverse of `encode_updates`. Families come from the table only; nothing is evaluated.

    Args:
        data: what stands in the file.
        tensors: the arrays by key.
        used: the keys that were asked for; added to.
        where: file and part, for messages.

    Returns:
        ``{site: update}``.

    Raises:
        CheckpointError: if a family or a field is not known, a field is missing or of another kind,
            or a tensor is missing; all such listed together.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: updates are {shown(data)}, expected {{site: update}}.")
    wrong: list[str] = []
    updates: dict[str, Update] = {}
    for site, one in data.items():
        try:
            update = _decode(one, tensors, used, "")
            if not isinstance(update, Update):
                raise _WrongError(f"{shown(one)} is no update")
            updates[site] = update
        except _WrongError as error:
            wrong.append(f"{site}: {error}")
    if wrong:
        raise CheckpointError(
            f"{where}: what makes no update:{listing(wrong)}\nWas it edited, or written by another "
            "version? Save the mix again, or update jaxmix."
        )
    return updates


def _decode(data: Any, tensors: Mapping[str, np.ndarray], used: set[str], path: str) -> Any:
    """A value from what stands for it."""
    if isinstance(data, list):
        items = enumerate(data)
        return tuple(_decode(item, tensors, used, f"{path}.{i}") for i, item in items)
    if not isinstance(data, dict):
        return data
    if set(data) == {"tensor"} and isinstance(data["tensor"], str):
        used.add(data["tensor"])
        if data["tensor"] not in tensors:
            raise _WrongError(f"{path} is the tensor {data['tensor']!r}, which is missing")
        return tensors[data["tensor"]]
    return _decode_update(data, tensors, used, path)


def _decode_update(
    data: dict[str, Any], tensors: Mapping[str, np.ndarray], used: set[str], path: str
) -> Update:
    name = data.get("family")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise _WrongError(f"the family {shown(name)} is not known")
    kinds, defaults = field_kinds(family), _defaults(family)
    inner = f"{path}." if path else ""
    if unknown := [key for key in data if key not in kinds and key != "family"]:
        raise _WrongError(f"{family.family} has no field {', '.join(map(shown, unknown))}")
    if lost := [key for key in kinds if key not in data and key not in defaults]:
        raise _WrongError(f"{family.family} needs {', '.join(inner + key for key in lost)}")
    values: dict[str, Any] = {}
    for key, kind in kinds.items():
        if key in data:
            values[key] = _decode(data[key], tensors, used, inner + key)
            if said := misfit(values[key], kind):
                raise _WrongError(f"{inner}{key} is {said}")
    try:
        return family(**values)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:  # a family's own look
        raise _WrongError(f"{path or family.family}: {error}") from error


def shown(value: Any) -> str:
    """A value of the file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
