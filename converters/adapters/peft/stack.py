"""The order in which PEFT's forward applies adapters that were loaded one after another.

In PEFT each module has its own wrappers. A new adapter joins the module's *outermost* wrapper if
that is of its class (LoRA and DoRA share one), otherwise it adds a wrapper outside. Wrappers are
applied from inner to outer, and the adapters of one in the order of loading. But an OFT wrapper
with R₁ … Rₖ computes ``W (R₁ ⋯ Rₖ)ᵀ``, which applies Rₖ first. So runs of consecutive OFT adapters
are reversed at every site, except at an embedding, where the wrapper computes ``E R₁ ⋯ Rₖ``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby, pairwise

from jaxmix.adapter import Adapter, Mixable
from jaxmix.errors import AdapterError, UnsupportedError, listing
from jaxmix.families import OFT, LoRA, Replace, Update, parts_of
from jaxmix.mixing import Mix, mix

__all__ = ["peft_stack"]

# The indices of adapters, in order of application.
Order = tuple[int, ...]


def peft_stack(adapters: Sequence[Adapter]) -> Mix:
    """Returns the mix that equals PEFT's forward with adapters loaded in this order.

    Adapters without OFT keep their order. Two OFT adapters that are consecutive at a site (ignoring
    adapters that do not wrap that site) are swapped there, unless it is an embedding. If sites need
    different orders, an adapter is split by its sites; its parts are named ``name (1)``,
    ``name (2)``, and keep its strength.

    Args:
        adapters: Adapters, not mixes, in the order in which PEFT loaded and activated them.

    Returns:
        The mix. At strength 1 it equals PEFT's unmerged forward.

    Raises:
        AdapterError: If it is not a list of adapters, contains a mix, or two have the same name.
        UnsupportedError: If PEFT's result is not a product of these adapters in any order.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = (Adapter({"q": OFT(jnp.zeros((1, 1)))}, 1.0, name) for name in "ab")
        >>> [part.name for part in peft_stack([a, b]).parts]
        ['b', 'a']

    Source: ``peft/tuners/mixed/model.py``, ``peft/tuners/oft/layer.py``.
    """
    if isinstance(adapters, Mixable):
        raise AdapterError(
            f"peft_stack got {adapters!r}, expected a list of adapters in the order of loading. "
            "Write peft_stack([a, b])."
        )
    adapters = list(adapters)
    for adapter in adapters:
        if not isinstance(adapter, Adapter):
            raise AdapterError(
                f"peft_stack got {adapter!r}, expected single adapters: PEFT loads no mixes. "
                "Pass their parts, in order."
            )
    plain = mix(*adapters)  # checks the names too
    orders = _site_orders(adapters)
    _check_biases(adapters, orders)
    order = _common_order(orders.values(), len(adapters))
    if order is None:
        return mix(*_split(adapters, orders))
    return plain if order == tuple(range(len(adapters))) else mix(*(adapters[i] for i in order))


def _site_orders(adapters: Sequence[Adapter]) -> dict[str, Order]:
    """For each site the indices of its adapters, in order of application."""
    touching: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for site in adapter.updates:
            touching.setdefault(site, []).append(i)
    return {
        site: _order([adapters[i].updates[site] for i in indices], indices)
        for site, indices in touching.items()
    }


def _order(updates: Sequence[Update], numbers: Sequence[int]) -> Order:
    """The indices with runs of OFT reversed; updates of a bias alone add no wrapper."""
    wraps = [number for update, number in zip(updates, numbers, strict=True) if update.has_weight]
    rotations = {n for u, n in zip(updates, numbers, strict=True) if _is_rotation(u)}
    runs = (list(run) for _, run in groupby(wraps, rotations.__contains__))
    reversed_runs = iter([n for run in runs for n in (run[::-1] if run[0] in rotations else run)])
    return tuple(next(reversed_runs) if number in wraps else number for number in numbers)


def _is_rotation(update: Update) -> bool:
    """Whether an update contains an OFT of the input."""
    return any(isinstance(part, OFT) and not part.embedding for part in parts_of(update))


def _check_biases(adapters: Sequence[Adapter], orders: Mapping[str, Order]) -> None:
    """Refuses trained biases that no order of adapters reproduces.

    PEFT keeps trained biases in the base: the last one loaded replaces the others, and LoRA's
    changes of a bias are added to it.
    """
    lost: list[str] = []
    for site, order in orders.items():
        replaces = {i: _saves_bias(adapters[i].updates[site]) for i in order}
        adds = {i: _adds_bias(adapters[i].updates[site]) for i in order}
        for first, second in combinations(order, 2):
            swapped = first > second and replaces[first] and replaces[second]
            if swapped or (adds[first] and replaces[second]):
                names = f"{adapters[first].name!r} and {adapters[second].name!r}"
                lost.append(f"{site}: {names}")
    if lost:
        raise UnsupportedError(
            "PEFT keeps a trained bias in the base, where it is applied before every adapter. No "
            f"order of these adapters does that at:{listing(lost)}\nTrain one of them with "
            "bias='none'."
        )


def _saves_bias(update: Update) -> bool:
    return any(isinstance(part, Replace) and part.bias is not None for part in parts_of(update))


def _adds_bias(update: Update) -> bool:
    return any(isinstance(part, LoRA) and part.bias is not None for part in parts_of(update))


def _common_order(orders: Iterable[Order], count: int) -> Order | None:
    """An order of all adapters that agrees with every site's, the nearest to 0, 1, 2, …."""
    before: dict[int, set[int]] = {i: set() for i in range(count)}
    for site_order in orders:
        for first, second in pairwise(site_order):
            before[second].add(first)
    order: list[int] = []
    while len(order) < count:
        placed = set(order)
        ready = [i for i in range(count) if i not in placed and before[i] <= placed]
        if not ready:
            return None
        order.append(ready[0])
    return tuple(order)


def _split(adapters: Sequence[Adapter], orders: Mapping[str, Order]) -> list[Adapter]:
    """Splits the adapters by groups of sites with a common order, one group after another."""
    groups: list[tuple[list[str], Order]] = []
    for site, site_order in orders.items():
        for k, (sites, _) in enumerate(groups):
            order = _common_order([*(orders[s] for s in sites), site_order], len(adapters))
            if order is not None:
                groups[k] = ([*sites, site], order)
                break
        else:
            groups.append(([site], site_order))
    pieces: list[tuple[int, dict[str, Update]]] = []
    for sites, order in groups:
        own = ((i, {s: u for s, u in adapters[i].updates.items() if s in sites}) for i in order)
        pieces.extend((i, updates) for i, updates in own if updates)
    counts = [i for i, _ in pieces]
    cut: list[Adapter] = []
    for k, (i, updates) in enumerate(pieces):
        number = f" ({counts[: k + 1].count(i)})" if counts.count(i) > 1 else ""
        own = adapters[i]
        cut.append(replace(own, updates=updates, name=own.name + number, source=""))
    return cut
