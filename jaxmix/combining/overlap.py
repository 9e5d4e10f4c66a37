"""Checks which sites the adapters of a combination share.

Without a base, two names of one module can't be recognized. An adapter that uses other names than
the rest would be combined with nothing.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from jaxmix.adapter import Mixable
from jaxmix.errors import AdapterError, listing, remedy

__all__ = ["check_overlap", "look_alikes", "look_alikes_text", "partial_sites", "partial_text"]

_SHOWN = 5


def partial_sites(adapters: Sequence[Mixable]) -> dict[str, tuple[str, ...]]:
    """Returns the sites that some of the adapters change and others do not.

    Args:
        adapters: Adapters and mixes.

    Returns:
        ``{site: names of the adapters that change it}``.

    Example:
        >>> from jaxmix import Adapter
        >>> from jaxmix.families import Replace
        >>> new = Replace(None, [0.0])
        >>> partial_sites([Adapter({"q": new, "k": new}, name="a"), Adapter({"q": new}, name="b")])
        {'k': ('a',)}
    """
    labels = _labels(adapters)
    site_sets = [_sites(adapter) for adapter in adapters]
    all_sites = dict.fromkeys(
        s for adapter in adapters for part in adapter.parts for s in part.sites
    )
    owners = {
        site: tuple(label for label, sites in zip(labels, site_sets, strict=True) if site in sites)
        for site in all_sites
    }
    return {site: names for site, names in owners.items() if len(names) < len(adapters)}


def partial_text(partial: Mapping[str, Sequence[str]], count: int) -> str:
    """Describes sites that only some adapters change.

    Args:
        partial: As `partial_sites` returns it.
        count: The total number of sites.

    Returns:
        A sentence with the first sites.
    """
    shown = "; ".join(f"{site} ({', '.join(partial[site])})" for site in list(partial)[:_SHOWN])
    rest = len(partial) - _SHOWN
    more = f"; and {rest} more" if rest > 0 else ""
    return (
        f"{len(partial)} of {count} sites are changed by some of the adapters only, and the others "
        f"count as no change there: {shown}{more}."
    )


def check_overlap(adapters: Sequence[Mixable]) -> None:
    """Checks that adapters that are combined without a base have the same modules.

    Args:
        adapters: Adapters and mixes.

    Raises:
        AdapterError: If one of several shares no site with the others.

    Warns:
        UserWarning: If sites that only some of them change look like one module under two names.
    """
    labels, site_sets = _labels(adapters), [_sites(adapter) for adapter in adapters]
    lonely = [
        i
        for i, sites in enumerate(site_sets)
        if sites and not any(sites & others for j, others in enumerate(site_sets) if j != i)
    ]
    if len(adapters) > 1 and lonely:
        lines = [
            f"{label}: {', '.join(sorted(sites)[:3])}{' …' if len(sites) > 3 else ''}"
            for label, sites in zip(labels, site_sets, strict=True)
        ]
        alone = "they share no site" if len(lonely) == len(site_sets) else (
            f"{', '.join(labels[i] for i in lonely)} shares no site with the others"
        )  # fmt: skip
        raise AdapterError(
            f"combine got adapters without a base, and {alone}:{listing(lines)}\nDo their "
            "files use two names for one module, such as language_model.model.layers and "
            "model.language_model.layers? Then rename the sites of one. If they are for different "
            f"modules, pass the base ({remedy('combine(adapters, params, …)', '--base BASE')}), or "
            "mix them instead."
        )
    if pairs := look_alikes(adapters):
        warnings.warn(
            f"combine without a base: {look_alikes_text(pairs)} They are combined as different "
            "modules. If they are one, rename the sites; if not, pass the base to combine without "
            "this warning.",
            stacklevel=3,
        )


def look_alikes(adapters: Sequence[Mixable]) -> list[tuple[str, str]]:
    """Finds sites of different adapters that may be one module under two names.

    Their names end alike, from the layer's number on: ``language_model.model.layers.0.mlp`` and
    ``model.language_model.layers.0.mlp``.

    Args:
        adapters: Adapters and mixes.

    Returns:
        Pairs of sites.

    Example:
        >>> from jaxmix import Adapter
        >>> from jaxmix.families import Replace
        >>> new = Replace(None, [0.0])
        >>> look_alikes([Adapter({"h.0.q": new}, name="a"), Adapter({"t.h.0.q": new}, name="b")])
        [('h.0.q', 't.h.0.q')]
    """
    partial = partial_sites(adapters)
    ends: dict[str, list[str]] = defaultdict(list)
    for site in partial:
        ends[_end(site)].append(site)
    return [
        (first, second)
        for sites in ends.values()
        for first, second in combinations(sites, 2)
        if set(partial[first]).isdisjoint(partial[second]) and _may_be_same(first, second)
    ]


def look_alikes_text(pairs: Sequence[tuple[str, str]]) -> str:
    """Describes sites that may be one module.

    Args:
        pairs: As `look_alikes` returns them.

    Returns:
        A sentence with the first pairs.
    """
    shown = "; ".join(f"{first} and {second}" for first, second in pairs[:_SHOWN])
    more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return f"different adapters change sites that may be one module under two names: {shown}{more}."


def _may_be_same(first: str, second: str) -> bool:
    """Whether two names that end alike may be one module; names without a number must be nested."""
    has_number = any(part.isdecimal() for part in first.split("."))
    return has_number or first.endswith(f".{second}") or second.endswith(f".{first}")


def _end(site: str) -> str:
    """Returns a name from the part before its first number on; without a number its last part."""
    parts = site.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[max(first - 1, 0) :])


def _sites(adapter: Mixable) -> set[str]:
    """Returns the sites that an adapter changes."""
    return {site for part in adapter.parts for site in part.sites}


def _labels(adapters: Sequence[Mixable]) -> list[str]:
    """Returns a label for each adapter, with a number if names repeat."""
    names = [" + ".join(part.name for part in adapter.parts) for adapter in adapters]
    return [
        name if names.count(name) == 1 else f"{name} (number {i})"
        for i, name in enumerate(names, 1)
    ]
