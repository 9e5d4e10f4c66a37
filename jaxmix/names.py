"""The dotted names of a tree's leaves, and what wrappers of PyTorch add to such names.

A wrapper keeps the model in an attribute, whose name then stands in every key of its state dict:
``_orig_mod.model.layers.0.mlp``, ``module.model.layers.0._checkpoint_wrapped_module.mlp``. This is
the one place that knows these names.

`_orig_mod` and its like are no names that a model gives to its own modules, so they can be removed
wherever they stand. ``module`` and ``base_model.model`` can be a model's own: `unwrapped`
removes them from names only where they wrap everything, and `bare`, which removes them everywhere,
serves to compare names with those of a tree that has the last word.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax

__all__ = ["Spellings", "bare", "leaf_name", "leaf_names", "unwrapped", "without_wrappers"]


def _part(*names: str) -> re.Pattern[str]:
    """Matches parts of a dotted name, each with one of its dots, which may be escaped."""
    one = f"(?:{'|'.join(names)})"
    return re.compile(rf"(?:(?<=[.^])|^)(?:{one}\\?\.)+|(?:\\?\.|^){one}(?:\\?\.{one})*$")


# torch.compile, FSDP (and its older name), activation checkpointing, Lightning's strategies.
_WRAPPERS = _part(
    *("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    "_forward_module",
)
# DataParallel, DistributedDataParallel and DeepSpeed.
_MODULE = _part("module")
# PEFT, which may be wrapped by itself again.
_PEFT = re.compile(r"(?:(?<=\.)|^)(?:base_model\.(?:module\.)*model\.)+")


def without_wrappers(name: str) -> str:
    """Removes the names of wrappers that no model uses for its own modules.

    Args:
        name: a dotted name, or a regular expression for such names.

    Returns:
        The name without them.

    Example:
        >>> without_wrappers("_orig_mod.model.layers.0._orig_mod.mlp.module.up")
        'model.layers.0.mlp.module.up'
    """
    # Most names have none, and this is asked for every leaf of a tree.
    return _WRAPPERS.sub("", name) if "_" in name else name


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """The names of one file without what wrappers add to them.

    An outer ``module.`` is a wrapper's if all names have it. PEFT's own ``base_model.model.`` is
    removed wherever it stands, so that it may be missing or repeated; an outer ``module.`` below it
    is a wrapper's if all names that had it go on with ``module.``.

    Args:
        names: all names of the file.

    Returns:
        ``{name: name without wrappers}``; two names may become one.

    Example:
        >>> unwrapped(["module.base_model.model.base_model.model.h.0.q", "module.h.0.module.k"])
        {'module.base_model.model.base_model.model.h.0.q': 'h.0.q', 'module.h.0.module.k': ...
    """
    found = {name: without_wrappers(name) for name in names}
    found = _without_outer(found, found)
    inner = [name for name, short in found.items() if _PEFT.search(short)]
    return _without_outer({name: _PEFT.sub("", short) for name, short in found.items()}, inner)


def _without_outer(found: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Removes an outer ``module.`` from these names as often as all of them have it."""
    found = dict(found)
    while names and all(found[name].startswith("module.") for name in names):
        found |= {name: found[name].removeprefix("module.") for name in names}
    return found


def bare(name: str) -> str:
    """A name without anything that a wrapper may have added, to compare it with others.

    Args:
        name: a dotted name.

    Returns:
        The name without it.

    Example:
        >>> bare("module.base_model.model.h.0.module.q"), bare("h.0.q")
        ('h.0.q', 'h.0.q')
    """
    return _PEFT.sub("", _MODULE.sub("", without_wrappers(name)))


class Spellings:
    """Finds names that differ from those of a tree or file only by what wrappers add.

    Args:
        names: the names of the tree or the file.

    Example:
        >>> Spellings(["_orig_mod.h.0.q", "h.1.module.q"]).of("module.h.0.q")
        ('_orig_mod.h.0.q',)
    """

    def __init__(self, names: Iterable[str]):
        self._names = names

    @cached_property
    def _by_bare(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            found[bare(name)].append(name)
        return {name: tuple(names) for name, names in found.items()}

    def of(self, name: str) -> tuple[str, ...]:
        """The names that mean the same; several if the wrappers alone tell them apart."""
        return self._by_bare.get(bare(name), ())


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
