"""The dotted names of a tree's leaves, and what PyTorch wrappers add to such names.

A wrapper stores the model in an attribute, whose name is then part of every key of its state dict:
``_orig_mod.model.layers.0.mlp``, ``module.model.layers.0._checkpoint_wrapped_module.mlp``. Only
this module knows these names.

Models do not use names such as ``_orig_mod`` for their own modules, so these are always removed.
``module`` and ``base_model.model`` may be a model's own names: `unwrapped` removes them only if
they wrap everything. `bare` always removes them, and serves only to compare names.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax

__all__ = ["bare", "leaf_name", "leaf_names", "unwrapped", "without_wrappers"]


def _part(*names: str) -> re.Pattern[str]:
    """Returns a pattern of parts of a dotted name, each with one adjacent dot, possibly escaped."""
    alternatives = f"(?:{'|'.join(names)})"
    return re.compile(
        rf"(?:(?<=[.^])|^)(?:{alternatives}\\?\.)+|(?:\\?\.|^){alternatives}(?:\\?\.{alternatives})*$"
    )


# torch.compile, FSDP (and its older name), activation checkpointing, Lightning's strategies.
_NAMES = (
    *("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    "_forward_module",
)
_WRAPPERS = _part(*_NAMES)
# The same in kohya's names, which have underscores instead of dots.
_UNDERSCORED = re.compile(rf"(?:(?<=_)|^)(?:{'|'.join(_NAMES)})_")
# DataParallel, DistributedDataParallel and DeepSpeed.
_MODULE = _part("module")
# PEFT, which may wrap itself.
_PEFT = re.compile(r"(?:(?<=\.)|^)(?:base_model\.(?:module\.)*model\.)+")


def without_wrappers(name: str, *, is_underscored: bool = False) -> str:
    """Removes wrappers' names that models do not use for their own modules.

    Args:
        name: A dotted name, or a regular expression for such names.
        is_underscored: Whether the name has underscores instead of dots, as in kohya's files.

    Returns:
        The name without them.

    Example:
        >>> without_wrappers("_orig_mod.model.layers.0._orig_mod.mlp.module.up")
        'model.layers.0.mlp.module.up'
        >>> without_wrappers("_orig_mod_mid_attn", is_underscored=True)
        'mid_attn'
    """
    if is_underscored:
        return _UNDERSCORED.sub("", name)
    # Most names have none, and this runs for every leaf of a tree.
    return _WRAPPERS.sub("", name) if "_" in name else name


def unwrapped(names: Collection[str], *, is_peft: bool = False) -> dict[str, str]:
    """Removes what wrappers add to the names of one file.

    An outer ``module.`` belongs to a wrapper if all names have it. PEFT's ``base_model.model.`` may
    be absent, repeated, or below other names; an outer ``module.`` below it belongs to a wrapper if
    all names with PEFT's prefix continue with it.

    Args:
        names: All names of the file.
        is_peft: Whether to remove PEFT's prefix too.

    Returns:
        ``{name: name without wrappers}``; several names may become equal.

    Example:
        >>> unwrapped(["module.h.0.q", "module.h.0.module.k"])
        {'module.h.0.q': 'h.0.q', 'module.h.0.module.k': 'h.0.module.k'}
        >>> unwrapped(["base_model.model.base_model.model.h.0.q"], is_peft=True)
        {'base_model.model.base_model.model.h.0.q': 'h.0.q'}
    """
    found = {name: without_wrappers(name) for name in names}
    found = _without_outer(found, found)
    if not is_peft:
        return found
    inner = [name for name, short in found.items() if _PEFT.search(short)]
    return _without_outer({name: _PEFT.sub("", short) for name, short in found.items()}, inner)


def _without_outer(found: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Removes outer ``module.`` from these names as long as all of them have it."""
    found = dict(found)
    while names and all(found[name].startswith("module.") for name in names):
        found |= {name: found[name].removeprefix("module.") for name in names}
    return found


# Called for every leaf whenever a site is not found under its own name.
@lru_cache(maxsize=1 << 16)
def bare(name: str) -> str:
    """Removes everything that a wrapper may have added, to compare names.

    Args:
        name: A dotted name.

    Returns:
        The name without it.

    Example:
        >>> bare("module.base_model.model.h.0.module.q"), bare("h.0.q")
        ('h.0.q', 'h.0.q')
    """
    return _PEFT.sub("", _MODULE.sub("", without_wrappers(name)))


def leaf_name(path: Sequence[Any]) -> str:
    """Returns the dotted name of a leaf from its path in a pytree.

    The final ``value`` of the variables in an ``nnx.State`` is omitted.

    Args:
        path: The keys of `jax.tree_util.tree_flatten_with_path`.

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
    """Returns the dotted names of all leaves of a pytree, as `leaf_name` does.

    Args:
        paths: The paths of all leaves. A ``value`` with siblings is kept: it is not a variable's.

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
    """One key of a path as a string."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
