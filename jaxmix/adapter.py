"""Adapters: a name, a strength and ``{site: update}``; a pytree, and a function of params."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxmix.apply import dense
from jaxmix.errors import AdapterError, listing
from jaxmix.factors import checked_factors
from jaxmix.families import Update
from jaxmix.metadata import Metadata, checked_metadata
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import Names, OnTree, on_tree

__all__ = ["Adapter", "Mixable", "chains_by_site"]

Strength = float | Float[Array, ""]


class Mixable(ABC):
    """The base class of adapters and mixes: adapters in order, and a function of params.

    Attributes:
        parts: The adapters that it consists of, in order of application.
    """

    parts: "tuple[Adapter, ...]"
    __array_ufunc__ = None  # a NumPy scalar on the left defers `*` to this class

    def __call__(
        self,
        params: Any,
        *,
        layout: Layout | str | None = None,
        names: Names = None,
        donate: bool = False,
    ) -> Any:
        """Returns the params with the adapter merged in, like `jaxmix.compose`."""

        def apply(tree: OnTree[Adapter]) -> Any:
            return dense.apply(
                params, chains_by_site(tree.parts), layout=tree.layout, donate=donate
            )

        return on_tree(apply, self.parts, params, layout, names, joins=True)

    @abstractmethod
    def __mul__(self, strength: Any) -> Self:
        """Returns the same adapters with each strength multiplied."""

    def __rmul__(self, strength: Any) -> Self:
        return self * strength

    def __neg__(self) -> Self:
        return self * -1.0


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class Adapter(Mixable):
    """An adapter: ``W ↦ L W Rᵀ + Δ`` at each of its sites.

    It is a pytree whose leaves are the updates' arrays and the strength. The name, source and
    metadata are not part of the structure, so adapters of equal shapes share a compiled program.
    Therefore a function under `jax.jit` that *returns* an adapter returns it with the name that it
    had when the function was traced; use `renamed` to change it.

    Args:
        updates: ``{site: update}``, with PyTorch module names as sites.
        strength: The strength with which it enters a mix: 0 is the identity, 1 the trained adapter.
        name: Its name in messages and in mixes.
        source: Where it was read from, for messages.
        metadata: What its file records besides the numbers, such as PEFT's ``task_type`` and
            ``base_model_name_or_path``; kept when it is written again.

    Raises:
        AdapterError: If the strength is not a real scalar (also for ``*``), an update is not of a
            family, the name or source is not a string, or the metadata can't be stored as JSON.

    Example:
        >>> from jaxmix.families import LoRA
        >>> update = LoRA(a=jnp.ones((1, 3)), b=jnp.ones((2, 1)), scale=1.0)
        >>> 0.5 * Adapter({"model.proj": update}, name="style")
        style: LoRA rank 1 at 1 site, strength 0.5 (model.proj)

    Source: docs/design.md.
    """

    updates: Mapping[str, Update]
    strength: Strength = 1.0
    name: str = "adapter"
    source: str = ""
    metadata: Metadata = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A copy: callers may modify their own dict later.
        object.__setattr__(self, "updates", checked_updates(self.updates))
        object.__setattr__(self, "strength", checked_strength(self.strength))
        if not isinstance(self.name, str):
            raise AdapterError(f"an adapter's name is {self.name!r}, expected a string.")
        if not isinstance(self.source, str):
            raise AdapterError(f"an adapter's source is {self.source!r}, expected a string.")
        object.__setattr__(self, "metadata", checked_metadata(self.metadata))

    @property
    def parts(self) -> "tuple[Adapter, ...]":  # pyright: ignore[reportIncompatibleVariableOverride]
        """The adapter itself, as a tuple."""
        return (self,)

    @property
    def sites(self) -> tuple[str, ...]:
        """The PyTorch names of the modules that it changes."""
        return tuple(self.updates)

    def renamed(self, name: str) -> "Adapter":
        """Returns the same adapter with another name."""
        return replace(self, name=name)

    def __mul__(self, strength: Any) -> "Adapter":
        return replace(self, strength=_times(checked_strength(strength), self.strength))

    def __repr__(self) -> str:
        return f"{self.name}: {self.summary()}"

    def summary(self) -> str:
        """Returns kinds, sizes, sites and strength in one line."""
        sizes = Counter(map(_size, self.updates.values()))
        shown = ", ".join(size for size, _ in sizes.most_common(2))
        shown += " …" if len(sizes) > 2 else ""
        sites = self.sites[:1] + (("…",) if len(self.sites) > 1 else ())
        count = f"{len(self.sites)} site{'' if len(self.sites) == 1 else 's'}"
        shown_sites = f" ({', '.join(sites)})" if sites else ""
        return f"{shown or 'nothing'} at {count}, strength {_text(self.strength)}{shown_sites}"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], "_Ignored"]:
        """Returns the children, and static data that is ignored when structures are compared."""
        key = jax.tree_util.GetAttrKey
        children = ((key("updates"), self.updates), (key("strength"), self.strength))
        return children, _Ignored(self.name, self.source, self.metadata)

    @classmethod
    def tree_unflatten(cls, ignored: "_Ignored", children: Any) -> "Adapter":
        """Inverts `tree_flatten_with_keys`; JAX may pass any objects instead of arrays."""
        new = object.__new__(cls)
        names = ("updates", "strength", "name", "source", "metadata")
        values = (*children, ignored.name, ignored.source, ignored.metadata)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(new, name, value)
        return new


@dataclass(frozen=True)
class _Ignored:
    """Static data that is ignored in comparisons, so it does not affect jit's cache."""

    name: str = field(compare=False)
    source: str = field(compare=False)
    metadata: Metadata = field(compare=False)


def chains_by_site(parts: "Sequence[Adapter]") -> dict[str, dense.Chain]:
    """Collects strengths and updates by site, in order of application.

    Args:
        parts: The adapters, in order of application.

    Returns:
        ``{site: ((strength, update), …)}``.
    """
    by_site: dict[str, list[tuple[Any, Update]]] = {}
    for part in parts:
        for site, update in part.updates.items():
            by_site.setdefault(site, []).append((part.strength, update))
    return {site: tuple(chain) for site, chain in by_site.items()}


def checked_updates(updates: Mapping[str, Update]) -> dict[str, Update]:
    """Checks updates by site, and converts their factors to arrays that JAX accepts.

    Args:
        updates: ``{site: update}``.

    Returns:
        A new dict of updates.

    Raises:
        AdapterError: If it is not a mapping of updates, or factors are not arrays.
    """
    if not isinstance(updates, Mapping):
        raise AdapterError(
            f"an adapter's updates are a {type(updates).__name__}, expected {{site: update}}, with "
            "PyTorch module names as sites."
        )
    wrong = [
        f"{site}: {type(update).__name__}"
        for site, update in updates.items()
        if not isinstance(update, Update) or not isinstance(site, str)
    ]
    if wrong:
        raise AdapterError(
            "an adapter has values that are not updates of a family (jaxmix.families), or keys "
            f"that are not names of sites:{listing(wrong)}"
        )
    return checked_factors(updates)


def checked_strength(strength: Any) -> Strength:
    """Checks a strength and returns it as a float or an array of floats.

    Args:
        strength: A real scalar: a number, or an array without axes, traced or not.

    Returns:
        A float, or the array.

    Raises:
        AdapterError: If it is anything else, or NaN or infinite.
    """
    is_array = isinstance(strength, jax.Array)
    try:
        array: Any = strength if is_array else np.asarray(strength)
    except ValueError:  # a list of lists of several lengths
        array = np.asarray(None)
    if isinstance(strength, str | np.ma.MaskedArray):
        array = np.asarray(None)
    is_real = any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not is_real or array.shape:
        found = f"an array of shape {array.shape}" if array.shape else repr(strength)
        raise AdapterError(
            f"a strength is {found}, expected a real number or an array without axes. For one "
            "strength per adapter write mix(a, b, strength=[…])."
        )
    if not isinstance(strength, Tracer) and not np.isfinite(np.asarray(array, np.float64)):
        raise AdapterError(f"a strength is {strength!r}, expected a finite number.")
    if not is_array:
        return float(strength)
    # Integers can't be multiplied with floats under strict promotion.
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _times(a: Strength, b: Strength) -> Strength:
    """``a · b`` for floats and arrays of any float dtypes."""
    if isinstance(a, jax.Array) and isinstance(b, jax.Array):
        dtype = np.promote_types(a.dtype, b.dtype)
        return a.astype(dtype) * b.astype(dtype)
    return a * b


def _size(update: Update) -> str:
    """An update's family and size for messages, even if its arrays are placeholders."""
    try:
        return f"{update.family} {update.size()}"
    except (AttributeError, IndexError, TypeError):
        return str(getattr(update, "family", type(update).__name__))


def _text(strength: Any) -> str:
    """A strength for messages."""
    if isinstance(strength, Tracer):
        return "traced"
    if shape := getattr(strength, "shape", ()):
        return f"one of an array {shape}"
    return f"{float(strength):.4g}" if isinstance(strength, float | jax.Array) else repr(strength)
