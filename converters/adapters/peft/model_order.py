"""Whether names come in the order in which a PyTorch model has its modules.

PyTorch registers modules in the order in which a model's code makes them, and its ``state_dict``
has that order. A safetensors file, a dict that has been through jax, and much else that looks the
same is sorted instead. No order proves itself; but one that is sorted gives itself away.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["modules_of", "order_problem"]


def modules_of(leaves: Iterable[str]) -> list[str]:
    """The modules that leaves lie in, in order, each before what is in it.

    Example:
        >>> modules_of(["layers.0.q.weight", "layers.0.q.bias", "head.weight"])
        ['layers', 'layers.0', 'layers.0.q', 'head']
    """
    return list(dict.fromkeys(module for leaf in leaves for module in _around(leaf)))


def order_problem(leaves: Sequence[str], modules: Sequence[str]) -> str:
    """What speaks against an order's being the model's own, as far as some modules need it.

    Args:
        leaves: the names of all of a model's leaves.
        modules: some of its modules, in the order of their leaves.

    Returns:
        A sentence's end for a message; empty if nothing speaks against it.

    Example:
        >>> order_problem(["a.q.weight", "a.k.weight"], ["a.q", "a.k"])
        ''
        >>> order_problem(["a.k.weight", "a.q.weight"], ["a.k", "a.q"])
        'whose names in a are sorted'
    """
    if len(modules) < 2:
        return ""
    if torn := _torn(leaves):
        return f"whose leaves of {torn} are not together"
    seen: set[tuple[str, ...]] = set()
    for one, two in pairwise(modules):
        shared, first, second = _parting(one, two)
        if first.isdecimal() and second.isdecimal():
            if int(first) > int(second):
                return f"in which {one} is before {two}"
            continue  # a list's, which has them by number
        block = _block(shared)
        if block not in seen and _is_sorted(leaves, block):
            return f"whose names in {'.'.join(block) or 'all of it'} are sorted"
        seen.add(block)
    return ""


def _around(leaf: str) -> list[str]:
    """The modules around a leaf, the outermost one first."""
    parts = leaf.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _torn(leaves: Iterable[str]) -> str | None:
    """A module whose leaves lie apart: PyTorch goes through a module before the next one."""
    done: set[str] = set()
    inside: list[str] = []
    for leaf in leaves:
        now = _around(leaf)
        done.update(set(inside) - set(now))
        if torn := next((module for module in now if module in done), None):
            return torn
        inside = now
    return None


def _parting(one: str, two: str) -> tuple[tuple[str, ...], str, str]:
    """The path that two modules share, and how each goes on."""
    a, b = one.split("."), two.split(".")
    n = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return tuple(a[:n]), ".".join(a[n : n + 1]), ".".join(b[n : n + 1])


def _block(path: tuple[str, ...]) -> tuple[str, ...]:
    """The layer of a model in which a path lies; the path itself, if it lies in none."""
    layer = next((n for n, part in enumerate(path) if part.isdecimal()), len(path))
    return path[: layer + 1]


def _is_sorted(leaves: Iterable[str], block: tuple[str, ...]) -> bool:
    """Whether a block's leaves are sorted in one of the ways of sorting paths."""
    paths = [path for leaf in leaves if (path := tuple(leaf.split(".")))[: len(block)] == block]
    return any(paths == sorted(paths, key=key) for key in (".".join, tuple, _by_number))


def _by_number(path: tuple[str, ...]) -> list[Any]:
    """A key that sorts numbers as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path]
