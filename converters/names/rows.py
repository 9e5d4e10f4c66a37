"""Converts rows of the table to transforms, with the numbers that some take from a config."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from jaxmix.placement.transforms import Transform

__all__ = ["transform_of"]


def transform_of(
    row: Sequence[Any],
    scope: str | None = None,
    prefix: str = "",
    config: Mapping[str, Any] | None = None,
    part: Mapping[str, Any] | None = None,
) -> Transform:
    """Converts a row of the table to a transform.

    Args:
        row: Its kind, sources and targets, and a conversion's operations with their settings.
        scope: As in `Transform`.
        prefix: As in `Transform`.
        config: The checkpoint's config, from which some operations take the number of heads; None
            if unknown, and then these operations can't be applied.
        part: The config of the model to which the row belongs, from which others take sizes.

    Example:
        >>> split = ["Split", {"dim": 0, "sizes": [[["n"]], [["m"]]]}]
        >>> row = ["convert", ["qk"], ["q", "k"], [split]]
        >>> transform_of(row, part={"n": 3, "m": 2}).operations
        (('Split', (('dim', 0), ('sizes', (3, 2)))),)
    """
    operations = tuple(
        (name, tuple(_settings(settings, config, part).items()))
        for name, settings in (row[3] if len(row) > 3 else ())
    )
    return Transform(row[0], tuple(row[1]), tuple(row[2]), scope, prefix, operations)


def _settings(
    settings: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    part: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """An operation's settings, with the numbers that the table defines as fields of a config."""
    filled: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "heads":
            inner = (config or {}).get(settings.get("subconfig_key") or "")
            fields = inner if isinstance(inner, Mapping) else config
            names = [name for name in value if (fields or {}).get(name) is not None]
            heads = _sum([names[:1] or value[:1]], fields, settings["defaults"])
            filled |= {} if heads is None else {key: heads}
        elif key == "sizes":
            sizes = [_sum(products, part, settings.get("defaults", {})) for products in value]
            filled |= {} if None in sizes else {key: tuple(sizes)}
        elif key != "defaults":
            filled[key] = tuple(value) if isinstance(value, list) else value
    return filled


def _sum(
    products: Sequence[Sequence[str]],
    config: Mapping[str, Any] | None,
    defaults: Mapping[str, int],
) -> int | None:
    """A sum of products of a config's fields; None if the config or a field's integer is unknown.

    The config of a part omits the fields that have their default values.
    """
    if config is None:
        return None
    stated = {name: value for name, value in config.items() if value is not None}
    fields = {**defaults, **stated}
    if not all(type(fields.get(name)) is int for product in products for name in product):
        return None
    return sum(prod(fields[name] for name in product) for product in products)
