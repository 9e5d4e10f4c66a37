"""Values that PEFT's config stores once for all sites of an adapter."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from jaxmix.errors import UnsupportedError, listing

__all__ = ["equal_value", "fan_in_fan_out", "refuse_unless"]


def equal_value(updates: Mapping[str, Any], field: str, of: Callable[[Any], Any]) -> Any:
    """Returns the value of a field of the config, which must be equal at all sites.

    Args:
        updates: ``{site: update}``.
        field: The field, for the message.
        of: Returns the field's value for an update.

    Returns:
        The value.

    Raises:
        UnsupportedError: If sites differ; they are listed by value.

    Example:
        >>> equal_value({"a": 1.5, "b": 1.5}, "alpha", lambda update: update)
        1.5
    """
    sites: dict[Any, list[str]] = defaultdict(list)
    for site, update in updates.items():
        sites[of(update)].append(site)
    if len(sites) == 1:
        return next(iter(sites))
    lines = [f"{value!r}: {', '.join(names)}" for value, names in sites.items()]
    raise UnsupportedError(
        f"PEFT's config has one {field} for all sites, and these differ:{listing(lines)}\n"
        "Export them as separate adapters."
    )


def fan_in_fan_out(updates: Mapping[str, Any]) -> bool:
    """Returns ``fan_in_fan_out``: whether the weight of some site may be stored as (in, out).

    PEFT corrects it for each layer by the layer's class, so sites need not agree.

    Args:
        updates: ``{site: update}``.

    Returns:
        The flag.

    Example:
        >>> from jaxmix.families import Delta
        >>> fan_in_fan_out({"a": Delta()})
        False
    """
    return any(update.transposed is not False for update in updates.values())


def refuse_unless(updates: Mapping[str, Any], fits: Callable[[Any], bool], problem: str) -> None:
    """Refuses updates of a form that PEFT's type does not have.

    Args:
        updates: ``{site: update}``.
        fits: Whether PEFT has the form of an update.
        problem: The problem with the others, and the remedy.

    Raises:
        UnsupportedError: If some do not fit; their sites are listed.

    Example:
        >>> refuse_unless({"a": 1}, lambda update: update > 0, "a number that is not positive")
    """
    if sites := [site for site, update in updates.items() if not fits(update)]:
        raise UnsupportedError(f"{problem}:{listing(sites)}")
