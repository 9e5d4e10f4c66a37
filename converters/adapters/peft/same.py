"""What PEFT's config says once for all of an adapter's sites."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from jaxmix.errors import UnsupportedError, listing

__all__ = ["fan_in_fan_out", "same", "unless"]


def same(updates: Mapping[str, Any], field: str, of: Callable[[Any], Any]) -> Any:
    """The value of one of the config's fields, which every site's update must agree on.

    Args:
        updates: ``{site: update}``.
        field: the field, for the message.
        of: from an update to the field's value.

    Returns:
        The value.

    Raises:
        UnsupportedError: if sites differ; it lists them by value.

    Example:
        >>> same({"a": 1.5, "b": 1.5}, "alpha", lambda update: update)
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
        "Export them as adapters of their own."
    )


def fan_in_fan_out(updates: Mapping[str, Any]) -> bool:
    """The config's ``fan_in_fan_out``: whether some site's weight may be stored as (in, out).

    PEFT corrects it for each layer by the layer's class, so that sites need not agree.

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


def unless(updates: Mapping[str, Any], fits: Callable[[Any], bool], said: str) -> None:
    """Refuses to write updates of a form that PEFT's type does not have.

    Args:
        updates: ``{site: update}``.
        fits: whether PEFT has an update's form.
        said: what is the matter with those that do not fit, and what to do.

    Raises:
        UnsupportedError: if some do not; it lists their sites.

    Example:
        >>> unless({"a": 1}, lambda update: update > 0, "a number that is not positive")
    """
    if sites := [site for site, update in updates.items() if not fits(update)]:
        raise UnsupportedError(f"{said}:{listing(sites)}")
