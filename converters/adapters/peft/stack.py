"""The order in which PEFT's forward applies adapters that were loaded one after another.

In PEFT each module has wrappers of its own. A new adapter joins the module's *outermost* wrapper if
that is of its class (LoRA and DoRA share one), else it wraps outside. Wrappers act from inner to
outer and, within one, adapters in the order of loading; but an OFT wrapper with R₁ … Rₖ computes
``W (R₁ ⋯ Rₖ)ᵀ``, which applies Rₖ first. So at every site runs of consecutive OFT are reversed; not
so at an embedding, where the wrapper computes ``E R₁ ⋯ Rₖ``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby, pairwise

from jaxmix.adapter import Adapter, Mixable
from jaxmix.errors import AdapterError, UnsupportedError, listing
from jaxmix.families import OFT, LoRA, Replace, Update, parts_of
from jaxmix.mixing import Mix, mix

__all__ = ["peft_stack"]

Word = tuple[int, ...]


def peft_stack(adapters: Sequence[Adapter]) -> Mix:
    """The mix that equals PEFT's forward, of adapters loaded in this order: ``W ↦ … A₂(A₁(W))``.

    Adapters of no OFT stay as they are. Two OFT that stand next to each other at a site (whatever
    other adapters, which do not wrap that site, were loaded between) change places there, unless it
    is an embedding. Where sites disagree about the order, an adapter is split by its sites; its
    parts are then named after it, ``name (1)``, ``name (2)``, and keep its strength.

    Args:
        adapters: adapters, not mixes, in the order in which PEFT loaded them and activated them.

    Returns:
        Their mix. At strength 1 it is PEFT's unmerged forward.

    Raises:
        AdapterError: if this is no list of adapters, one of them is a mix, or two have one name.
        UnsupportedError: if PEFT's result is no product of these adapters in any order.

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
                "Give their parts, in order."
            )
    plain = mix(*adapters)  # which also looks at the names
    words = _words(adapters)
    _check_biases(adapters, words)
    order = _one_order(words.values(), len(adapters))
    if order is None:
        return mix(*_split(adapters, words))
    return plain if order == tuple(range(len(adapters))) else mix(*(adapters[i] for i in order))


def _words(adapters: Sequence[Adapter]) -> dict[str, Word]:
    """For each site the adapters that touch it, by number, in the order in which they act."""
    touching: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for site in adapter.updates:
            touching.setdefault(site, []).append(i)
    return {
        site: _word([adapters[i].updates[site] for i in at], at) for site, at in touching.items()
    }


def _word(updates: Sequence[Update], numbers: Sequence[int]) -> Word:
    """The numbers with runs of OFT reversed; who changes a bias only neither wraps nor counts."""
    wraps = [number for update, number in zip(updates, numbers, strict=True) if update.has_weight]
    turns = {n for u, n in zip(updates, numbers, strict=True) if _is_rotation(u)}
    runs = (list(run) for _, run in groupby(wraps, turns.__contains__))
    turned = iter([n for run in runs for n in (run[::-1] if run[0] in turns else run)])
    return tuple(next(turned) if number in wraps else number for number in numbers)


def _is_rotation(update: Update) -> bool:
    """Whether an update has an OFT of the input in it, beside base-side leaves or not."""
    return any(isinstance(part, OFT) and not part.embedding for part in parts_of(update))


def _check_biases(adapters: Sequence[Adapter], words: Mapping[str, Word]) -> None:
    """Refuses what PEFT does to a bias and no order does: it keeps trained biases in the base.

    There the one loaded last wins, and what LoRA adds to a bias stays on top.
    """
    lost: list[str] = []
    for site, word in words.items():
        fixes = {i: _saves_bias(adapters[i].updates[site]) for i in word}
        adds = {i: _adds_bias(adapters[i].updates[site]) for i in word}
        for first, second in combinations(word, 2):
            swapped = first > second and fixes[first] and fixes[second]
            if swapped or (adds[first] and fixes[second]):
                names = f"{adapters[first].name!r} and {adapters[second].name!r}"
                lost.append(f"{site}: {names}")
    if lost:
        raise UnsupportedError(
            "PEFT keeps a trained bias in the base, so that it acts before every adapter. No order "
            f"of these adapters does that at:{listing(lost)}\nTrain one of them with bias='none'."
        )


def _saves_bias(update: Update) -> bool:
    return any(isinstance(part, Replace) and part.bias is not None for part in parts_of(update))


def _adds_bias(update: Update) -> bool:
    return any(isinstance(part, LoRA) and part.bias is not None for part in parts_of(update))


def _one_order(words: Iterable[Word], count: int) -> Word | None:
    """An order of all adapters of which every site's word is a part, the nearest to 0, 1, 2, …."""
    before: dict[int, set[int]] = {i: set() for i in range(count)}
    for word in words:
        for first, second in pairwise(word):
            before[second].add(first)
    order: list[int] = []
    while len(order) < count:
        done = set(order)
        ready = [i for i in range(count) if i not in done and before[i] <= done]
        if not ready:
            return None
        order.append(ready[0])
    return tuple(order)


def _split(adapters: Sequence[Adapter], words: Mapping[str, Word]) -> list[Adapter]:
    """The adapters cut into groups of sites that agree on an order, group after group."""
    groups: list[tuple[list[str], Word]] = []
    for site, word in words.items():
        for k, (sites, _) in enumerate(groups):
            order = _one_order([*(words[s] for s in sites), word], len(adapters))
            if order is not None:
                groups[k] = ([*sites, site], order)
                break
        else:
            groups.append(([site], word))
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
