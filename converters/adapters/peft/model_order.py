"""Checks whether names can be in the order of a PyTorch model's modules.

PyTorch registers modules in the order in which a model's code creates them, and its ``state_dict``
has that order. A safetensors file and a dict that went through jax are sorted instead. No check can
prove that an order is the model's, but a sorted order is recognizable.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["modules_of", "order_problem"]


def modules_of(leaves: Iterable[str]) -> list[str]:
    """Returns the modules that contain the leaves, in order, each before its inner modules.

    Example:
        >>> modules_of(["layers.0.q.weight", "layers.0.q.bias", "head.weight"])
        ['layers', 'layers.0', 'layers.0.q', 'head']
    """
    return list(dict.fromkeys(module for leaf in leaves for module in _around(leaf)))


def order_problem(leaves: Sequence[str], modules: Sequence[str]) -> str:
    """Describes why an order can't be the model's own, for the given modules.

    Args:
        leaves: The names of all leaves of a model.
        modules: Some of its modules, in the order of their leaves.

    Returns:
        The end of a sentence; empty if there is no such reason.

    Example:
        >>> order_problem(["a.q.weight", "a.k.weight"], ["a.q", "a.k"])
        ''
        >>> order_problem(["a.k.weight", "a.q.weight"], ["a.k", "a.q"])
        'whose names in a are sorted'
    """
    if len(modules) < 2:
        return ""
    if scattered := _scattered(leaves):
        return f"whose leaves of {scattered} are not adjacent"
    checked: set[tuple[str, ...]] = set()
    for before, after in pairwise(modules):
        shared, first, second = _split_common(before, after)
        if first.isdecimal() and second.isdecimal():
            if int(first) > int(second):
                return f"in which {before} is before {after}"
            continue  # items of a list, which are in order
        block = _block(shared)
        if block not in checked and _is_sorted(leaves, block):
            return f"whose names in {'.'.join(block) or 'the whole model'} are sorted"
        checked.add(block)
    return ""


def _around(leaf: str) -> list[str]:
    """The modules that contain a leaf, from the outermost one."""
    parts = leaf.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _scattered(leaves: Iterable[str]) -> str | None:
    """A module whose leaves are not adjacent; PyTorch lists each module completely."""
    complete: set[str] = set()
    inside: list[str] = []
    for leaf in leaves:
        around = _around(leaf)
        complete.update(set(inside) - set(around))
        if scattered := next((module for module in around if module in complete), None):
            return scattered
        inside = around
    return None


def _split_common(first: str, second: str) -> tuple[tuple[str, ...], str, str]:
    """The path that two modules share, and the next part of each."""
    a, b = first.split("."), second.split(".")
    n = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return tuple(a[:n]), ".".join(a[n : n + 1]), ".".join(b[n : n + 1])


def _block(path: tuple[str, ...]) -> tuple[str, ...]:
    """The layer of a model that contains a path; the path itself if there is none."""
    layer = next((n for n, part in enumerate(path) if part.isdecimal()), len(path))
    return path[: layer + 1]


def _is_sorted(leaves: Iterable[str], block: tuple[str, ...]) -> bool:
    """Whether a block's leaves are sorted by any of the usual keys."""
    paths = [path for leaf in leaves if (path := tuple(leaf.split(".")))[: len(block)] == block]
    return any(paths == sorted(paths, key=key) for key in (".".join, tuple, _by_number))


def _by_number(path: tuple[str, ...]) -> list[Any]:
    """A key for sorting by the values of numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path]
