"""Separates the arrays of an adapter or a mix that are trained from those that are not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.adapter import Adapter, Mixable
from jaxmix.errors import AdapterError, UnsupportedError, listing
from jaxmix.families import Update
from jaxmix.pytrees import register_dataclass

__all__ = ["Whole", "labels", "trainable"]

# The path of a value: the adapter's name, "updates" or "strength", the site, the fields.
ValuePath = tuple[str, ...]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Whole:
    """The inverse of `trainable`: a function of the values that returns the adapter or mix.

    It is a pytree whose leaves are the arrays that are not trained. Pass it to a jitted function as
    an argument; otherwise these arrays become constants of the program.

    Args:
        frozen: The leaves that are not trained, in the tree's order; None for a value.
        paths: The path of each leaf's value, or None; several leaves may share a value.
        structure: The structure of the adapter or mix.

    Raises:
        AdapterError: On a call, if the values do not belong to these adapters.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), scale=1.0)})
        >>> values, whole = trainable(lora)
        >>> whole(jax.tree.map(lambda x: 2 * x, values)).updates["proj"].b.tolist()
        [[2.0], [2.0]]

    Source: ``equinox.combine``, for the idea.
    """

    frozen: tuple[Any, ...]
    paths: tuple[ValuePath | None, ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Returns the adapter or mix with these values; shared arrays are shared again."""
        given = dict(_flat(values))
        wanted = {path for path in self.paths if path is not None}
        if given.keys() != wanted:
            missing = [f"{_text(path)}: missing" for path in sorted(wanted - given.keys())]
            extra = [f"{_text(path)}: not expected" for path in sorted(given.keys() - wanted)]
            raise AdapterError(
                f"the values do not belong to these adapters:{listing(missing + extra)}\nPass the "
                "values that jaxmix.trainable returned with this function, updated or not."
            )
        pairs = zip(self.paths, self.frozen, strict=True)
        leaves = [leaf if path is None else given[path] for path, leaf in pairs]
        return jax.tree.unflatten(self.structure, leaves)


def trainable(
    mixed: Mixable, *, only: Sequence[str] | None = None, strengths: bool = False
) -> tuple[dict[str, Any], Whole]:
    """Splits an adapter or a mix into the arrays to train and a function that restores it.

    ``whole(values)`` is the adapter or mix again, so a loss is a function of the values alone:
    ``jax.grad(lambda values: loss(jaxmix.compose(params, whole(values))))(values)``.

    An array that several sites of an adapter share (VB-LoRA's bank, UniLoRA's vector) is a single
    value, stored at the first site. Its gradient is the sum over the sites, and it stays shared.
    Shared arrays are recognized by object identity. So call this function before you pass an
    adapter to a jitted function, where each site would get its own array. It also works inside a
    function that creates the adapter, for example under `jax.vmap` over several seeds.

    Args:
        mixed: An adapter or a mix.
        only: The names of the adapters to train; by default all.
        strengths: Whether to train the strengths as well.

    Returns:
        The values and the function. The values are nested dicts with the adapters' structure,
        ``{"lora": {"updates": {"proj": {"a": …}}}}``, with ``"strength"`` next to ``"updates"``.
        They are JAX arrays with the adapter's dtypes. The function is a `Whole`.

    Raises:
        AdapterError: If `mixed` is not an adapter or a mix, a name is unknown, or nothing is
            trained.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="lora")
        >>> values, whole = trainable(lora, strengths=True)
        >>> jax.tree.map(jnp.shape, values)
        {'lora': {'strength': (), 'updates': {'proj': {'a': (1, 3), 'b': (2, 1)}}}}

    Source: ``requires_grad`` of PEFT's parameters; ``equinox.partition``.
    """
    names = _names(mixed, only)
    leaves, structure = jax.tree.flatten(mixed)
    values: dict[ValuePath, Any] = {}
    frozen: list[Any] = []
    paths: list[ValuePath | None] = []
    for part in mixed.parts:
        shared: dict[Any, ValuePath] = {}
        for path, leaf, is_trained in _leaves(part):
            is_value = part.name in names and (strengths if path[1] == "strength" else is_trained)
            frozen.append(None if is_value else leaf)
            # Python numbers may be the same object by chance.
            same = id(leaf) if isinstance(leaf, jax.Array | np.ndarray) else path
            paths.append(shared.setdefault(same, path) if is_value else None)
            if is_value:
                values.setdefault(shared[same], _array(leaf))
    assert len(leaves) == len(paths)
    if not values:
        raise AdapterError(
            f"{', '.join(names) or 'the empty mix'} has no arrays to train, expected an adapter of "
            "a family with trained arrays. Pass strengths=True to train its strength."
        )
    return _nested(values), Whole(tuple(frozen), tuple(paths), structure)


def labels(
    mixed: Mixable,
    *,
    only: Sequence[str] | None = None,
    trained: Any = "trained",
    frozen: Any = "frozen",
) -> Callable[[Any], Any]:
    """Labels each leaf of an adapter or a mix as trained or frozen, for ``optax.multi_transform``.

    Use this if you train the whole adapter as a pytree. The values of `trainable` need labels only
    to distinguish adapters, by their names: ``optax.multi_transform({"slow": …, "fast": …},
    {"lora": "slow", "oft": "fast"})``.

    The result is a function and not a tree of labels. Such a tree would be an adapter, which is
    callable, and optax would call it.

    Args:
        mixed: An adapter or a mix.
        only: The names of the adapters to train; by default all.
        trained: The label of trained leaves.
        frozen: The label of all other leaves, including the strengths.

    Returns:
        A function that returns the labels, in the structure of `mixed`, for any argument. For
        ``optax.masked`` use ``trained=True, frozen=False``.

    Raises:
        AdapterError: As for `trainable`.
        UnsupportedError: If sites share a trained array, since separate leaves would diverge.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="lora")
        >>> jax.tree.leaves(labels(lora)(lora))
        ['trained', 'trained', 'frozen', 'frozen']

    Source: ``optax.multi_transform``, ``optax.masked``.
    """
    _, rebuild = trainable(mixed, only=only)
    paths = [path for path in rebuild.paths if path is not None]
    if shared := sorted({_text(path) for path in paths if paths.count(path) > 1}):
        raise UnsupportedError(
            f"arrays that several sites share can't be trained as separate leaves:{listing(shared)}"
            "\nTrain the values of jaxmix.trainable, in which each of them is a single value."
        )
    flat = [frozen if path is None else trained for path in rebuild.paths]
    return lambda _: jax.tree.unflatten(rebuild.structure, flat)


def _names(mixed: Any, only: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the adapters to train."""
    if not isinstance(mixed, Mixable):
        raise AdapterError(
            f"trainable got a {type(mixed).__name__}, expected an adapter or a mix. Load one with "
            "jaxmix.load, or make one with jaxmix.init."
        )
    names = tuple(part.name for part in mixed.parts)
    if only is None:
        return names
    only = (only,) if isinstance(only, str) else tuple(only)
    if unknown := [repr(name) for name in only if name not in names]:
        raise AdapterError(
            f"there is no adapter {', '.join(unknown)}, expected some of "
            f"{', '.join(map(repr, names)) or 'the empty mix'}."
        )
    return only


def _leaves(part: Adapter) -> Iterator[tuple[ValuePath, Any, bool]]:
    """Yields an adapter's leaves in the tree's order: path, leaf, and whether PEFT trains it."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
        # If updates are nested, the innermost one decides.
        node: Any = part
        is_trained = False
        for key in keys:
            if isinstance(node, Update):
                is_trained = key.name in node.trained
            node = _child(node, key)
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        yield (part.name, *map(_key, keys)), leaf, is_trained and is_float


def _child(node: Any, key: Any) -> Any:
    """Returns the child of a node."""
    return getattr(node, key.name) if hasattr(key, "name") else node[_index(key)]


def _index(key: Any) -> Any:
    """Returns the key of a dict entry, or the index of a tuple entry."""
    return key.key if isinstance(key, jax.tree_util.DictKey) else key.idx


def _key(key: Any) -> str:
    """Formats one step of a path."""
    return str(key.name if hasattr(key, "name") else _index(key))


def _array(leaf: Any) -> jax.Array:
    """Converts a leaf to an array without a weak type, so an optimizer step keeps its dtype."""
    return jnp.asarray(leaf, jnp.result_type(float if isinstance(leaf, float) else leaf))


def _nested(flat: Mapping[ValuePath, Any]) -> dict[str, Any]:
    """Converts a dict of paths to nested dicts."""
    nested: dict[str, Any] = {}
    for (*parents, last), value in flat.items():
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def _flat(nested: Any, path: ValuePath = ()) -> Iterator[tuple[ValuePath, Any]]:
    """Inverts `_nested`."""
    if not isinstance(nested, Mapping):
        yield path, nested
        return
    for key, inner in nested.items():
        yield from _flat(inner, (*path, key))


def _text(path: ValuePath) -> str:
    """Formats a path for messages."""
    return " / ".join(path)
