"""What PEFT trains of an adapter or a mix, apart from what stays: what an optimizer is given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.adapter import Adapter, Mixable
from jaxmix.errors import AdapterError, UnsupportedError, listing
from jaxmix.families import Update

__all__ = ["Whole", "labels", "trainable"]

# Where a value stands: the adapter's name, "updates" or "strength", the site, the fields.
Path = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Whole:
    """The inverse of `trainable`: puts values back among what was not trained.

    A pytree, whose leaves are the arrays that are not trained: give it to a function under
    `jax.jit` as an argument, and they are no constants of the program.

    Args:
        rest: The leaves that stay, in the tree's order; None where a value goes.
        paths: For each leaf the path of its value, or None; one value may go to several places.
        structure: The tree's.

    Raises:
        AdapterError: On a call, if the values are not those of the adapters that it is for.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), scale=1.0)})
        >>> values, whole = trainable(lora)
        >>> whole(jax.tree.map(lambda x: 2 * x, values)).updates["proj"].b.tolist()
        [[2.0], [2.0]]

    Source: ``equinox.combine``, for the idea.
    """

    rest: tuple[Any, ...]
    paths: tuple[Path | None, ...] = field(metadata={"static": True})
    structure: Any = field(metadata={"static": True})

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The adapter or mix with these values in it: sites that shared an array share it again."""
        found = dict(_flat(values))
        wanted = {path for path in self.paths if path is not None}
        if found.keys() != wanted:
            lost = [f"{_text(path)}: missing" for path in sorted(wanted - found.keys())]
            extra = [f"{_text(path)}: not expected" for path in sorted(found.keys() - wanted)]
            raise AdapterError(
                f"values that are not those of these adapters:{listing(lost + extra)}\nGive what "
                "jaxmix.trainable gave with this function, with other numbers in it."
            )
        pairs = zip(self.paths, self.rest, strict=True)
        leaves = [kept if path is None else found[path] for path, kept in pairs]
        return jax.tree.unflatten(self.structure, leaves)


def trainable(
    mixed: Mixable, *, only: Sequence[str] | None = None, strengths: bool = False
) -> tuple[dict[str, Any], Whole]:
    """What is trained of an adapter or a mix, and the function that puts it back.

    ``whole(values)`` is the mix again, so that a loss is a function of the values, and the rest is
    left alone: ``jax.grad(lambda values: loss(jaxmix.compose(params, whole(values))))(values)``.

    An array that several sites of an adapter share (VB-LoRA's bank, UniLoRA's vector) is one value,
    at the first of them: its gradient is the sum, and it stays shared. They are told by being one
    object, so take an adapter apart before it goes into `jax.jit`, as an argument of which each
    site has an array of its own; inside a function that makes the adapter it works too, under
    `jax.vmap` for several seeds at once.

    Args:
        mixed: The adapter or the mix.
        only: The names of the adapters to train; all by default.
        strengths: Whether their strengths are trained too.

    Returns:
        The values, dicts by name with the adapters' structure: ``{"lora": {"updates": {"proj":
        {"a": …}}}}``, with ``"strength"`` beside ``"updates"``. They are JAX arrays of the dtypes
        that the adapter has. And `Whole`, the way back.

    Raises:
        AdapterError: If it is no adapter, a name is not in it, or nothing in it is trained.

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
    values: dict[Path, Any] = {}
    rest: list[Any] = []
    paths: list[Path | None] = []
    for part in mixed.parts:
        shared: dict[Any, Path] = {}
        for path, leaf, is_trained in _leaves(part):
            is_value = part.name in names and (strengths if path[1] == "strength" else is_trained)
            rest.append(None if is_value else leaf)
            # Numbers that are no arrays may be one object by chance.
            same = id(leaf) if isinstance(leaf, jax.Array | np.ndarray) else path
            paths.append(shared.setdefault(same, path) if is_value else None)
            if is_value:
                values.setdefault(shared[same], _array(leaf))
    assert len(leaves) == len(paths)
    if not values:
        raise AdapterError(
            f"nothing is trained of {', '.join(names) or 'a mix of nothing'}. Expected an adapter "
            "of a family with trained arrays; with strengths=True its strength is trained."
        )
    return _nested(values), Whole(tuple(rest), tuple(paths), structure)


def labels(
    mixed: Mixable,
    *,
    only: Sequence[str] | None = None,
    trained: Any = "trained",
    frozen: Any = "frozen",
) -> Callable[[Any], Any]:
    """A label for each leaf of an adapter or a mix, as ``optax.multi_transform`` takes them.

    For the values of `trainable` no labels are needed but those that tell adapters apart, and there
    the names are enough: ``optax.multi_transform({"slow": …, "fast": …}, {"lora": "slow", "oft":
    "fast"})``. This is for who keeps the whole adapter as the tree that is trained. It is a
    function, since a tree of labels would be an adapter, and so a function itself: optax calls it.

    Args:
        mixed: The adapter or the mix.
        only: The names of the adapters to train; all by default.
        trained: The label of what is trained.
        frozen: The label of the rest, and of the strengths.

    Returns:
        A function that gives the labels, in the structure of `mixed`, whatever it is called with.
        For ``optax.masked`` make it with ``trained=True, frozen=False``.

    Raises:
        AdapterError: As `trainable`.
        UnsupportedError: If sites share an array that is trained: as leaves of their own they
            would not stay equal.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="lora")
        >>> jax.tree.leaves(labels(lora)(lora))
        ['trained', 'trained', 'frozen', 'frozen']

    Source: ``optax.multi_transform``, ``optax.masked``.
    """
    _, whole = trainable(mixed, only=only)
    told = [path for path in whole.paths if path is not None]
    if twice := sorted({_text(path) for path in told if told.count(path) > 1}):
        raise UnsupportedError(
            f"arrays that sites share can't be trained as leaves of their own:{listing(twice)}\n"
            "Train the values of jaxmix.trainable, where each of them is one value."
        )
    made = [frozen if path is None else trained for path in whole.paths]
    return lambda _: jax.tree.unflatten(whole.structure, made)


def _names(mixed: Any, only: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the adapters to train."""
    if not isinstance(mixed, Mixable):
        raise AdapterError(
            f"trainable got a {type(mixed).__name__}, expected an adapter or a mix. Read one with "
            "jaxmix.load, or make one with jaxmix.init."
        )
    names = tuple(part.name for part in mixed.parts)
    if only is None:
        return names
    only = (only,) if isinstance(only, str) else tuple(only)
    if unknown := [repr(name) for name in only if name not in names]:
        raise AdapterError(
            f"no adapter is called {', '.join(unknown)}, expected names of "
            f"{', '.join(map(repr, names)) or 'a mix of nothing'}."
        )
    return only


def _leaves(part: Adapter) -> Iterator[tuple[Path, Any, bool]]:
    """An adapter's leaves in the tree's order: the path, the leaf, whether PEFT trains it."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
        # Of several updates on the way to a leaf the innermost one knows.
        at: Any = part
        is_trained = False
        for key in keys:
            if isinstance(at, Update):
                is_trained = key.name in at.trained
            at = _inner(at, key)
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        yield (part.name, *map(_key, keys)), leaf, is_trained and is_float


def _inner(at: Any, key: Any) -> Any:
    """What is a step down."""
    return getattr(at, key.name) if hasattr(key, "name") else at[_index(key)]


def _index(key: Any) -> Any:
    """The place in a dict, or in a tuple."""
    return key.key if isinstance(key, jax.tree_util.DictKey) else key.idx


def _key(key: Any) -> str:
    """A step of a path as text."""
    return str(key.name if hasattr(key, "name") else _index(key))


def _array(leaf: Any) -> jax.Array:
    """A leaf as an array whose dtype is no weak one, so that it is the same after a step."""
    return jnp.asarray(leaf, jnp.result_type(float if isinstance(leaf, float) else leaf))


def _nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """Dicts in dicts."""
    nested: dict[str, Any] = {}
    for (*way, last), value in flat.items():
        at = nested
        for step in way:
            at = at.setdefault(step, {})
        at[last] = value
    return nested


def _flat(nested: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The inverse of `_nested`."""
    if not isinstance(nested, Mapping):
        yield path, nested
        return
    for key, inner in nested.items():
        yield from _flat(inner, (*path, key))


def _text(path: Path) -> str:
    """A path for people."""
    return " / ".join(path)
