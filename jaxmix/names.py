"""The dotted names of a tree's leaves."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

__all__ = ["leaf_name", "leaf_names"]


def leaf_name(path: Sequence[Any]) -> str:
    """The dotted name of a leaf, from its path in a pytree.

    The ``value`` at which the variables of an ``nnx.State`` end is left out.

    Args:
        path: the keys of `jax.tree_util.tree_flatten_with_path`.

    Returns:
        The keys joined with dots.

    Example:
        >>> path, _ = jax.tree_util.tree_flatten_with_path({"layers": [{"kernel": 1}]})[0][0]
        >>> leaf_name(path)
        'layers.0.kernel'

    Source: JAX's key paths, https://docs.jax.dev/en/latest/pytrees.html.
    """
    is_value = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")
    return ".".join(map(_key, path[:-1] if is_value else path))


def leaf_names(paths: Sequence[Sequence[Any]]) -> list[str]:
    """The dotted names of all leaves of a pytree, as `leaf_name` gives them.

    Args:
        paths: the paths of all leaves. A ``value`` with siblings is no variable's, and stays.

    Returns:
        A name for each.

    Example:
        >>> tree = {"attn": {"key": 1, "value": 2}}
        >>> leaf_names([path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]])
        ['attn.key', 'attn.value']

    Source: JAX's key paths, https://docs.jax.dev/en/latest/pytrees.html.
    """
    children = Counter(tuple(path[:-1]) for path in paths)
    return [
        leaf_name(path) if children[tuple(path[:-1])] == 1 else ".".join(map(_key, path))
        for path in paths
    ]


def _key(entry: Any) -> str:
    """The text of one key of a path, whatever its kind."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
