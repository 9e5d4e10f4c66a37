"""`mix` combines adapters into one; `compose` merges adapters into params."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from jaxmix.adapter import Adapter, Mixable
from jaxmix.errors import AdapterError, listing
from jaxmix.families import Update
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import Names
from jaxmix.pytrees import register_dataclass

__all__ = ["Mix", "compose", "mix", "several"]

_READ = "Read one with jaxmix.load"


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Mix(Mixable):
    """Adapters in order of application: ``Aₙ ∘ … ∘ A₁``.

    Args:
        parts: The adapters, in order of application.

    Raises:
        AdapterError: Raised by `mix`, which creates mixes.

    Example:
        >>> mix(Adapter({}, name="a"), 0.5 * Adapter({}, name="b"))
        mix of 2 adapters, applied in this order:
          1. a: nothing at 0 sites, strength 1
          2. b: nothing at 0 sites, strength 0.5

    Source: docs/design.md.
    """

    parts: tuple[Adapter, ...]  # pyright: ignore[reportIncompatibleMethodOverride]

    def __mul__(self, strength: Any) -> "Mix":
        return Mix(tuple(part * strength for part in self.parts))

    def __repr__(self) -> str:
        if not self.parts:
            return "mix of nothing: the identity"
        lines = (f"\n  {i}. {part!r}" for i, part in enumerate(self.parts, 1))
        count = f"{len(self.parts)} adapter{'' if len(self.parts) == 1 else 's'}"
        return f"mix of {count}, applied in this order:{''.join(lines)}"


def mix(*adapters: Adapter | Mix, strength: Any = 1.0) -> Mix:
    """Combines adapters, in order, into one: ``mix(a, b)`` applies a, then b: ``W ↦ B(A(W))``.

    At each site an adapter is an affine map ``W ↦ L W Rᵀ + Δ``, and so is their composition. Maps
    that read a weight (DoRA's norm) read the base's, which makes ``mix`` associative. A mix of no
    adapters is the identity.

    Args:
        *adapters: Adapters and mixes, in order of application. A mix's parts are inserted in order.
        strength: A scalar that multiplies every part's strength, or one scalar per argument: a
            sequence or an array (n,), traced or not.

    Returns:
        The mix: a pytree, a function of params, and an adapter for further mixes.

    Raises:
        AdapterError: If an argument is not an adapter, two adapters have the same name, or a
            strength is not a real scalar.

    Example:
        >>> a, b = Adapter({}, name="a"), Adapter({}, name="b")
        >>> [part.strength for part in mix(a, 0.5 * b, strength=2).parts]
        [2.0, 1.0]

    Source: docs/design.md, laws 2 and 5; ``peft/mixed_model.py`` for the same in torch.
    """
    strengths = _strengths(strength, len(adapters))
    parts: list[Adapter] = []
    for adapter, factor in zip(adapters, strengths, strict=True):
        if not isinstance(adapter, Mixable):
            raise AdapterError(
                f"mix got {_short(adapter)}, expected adapters and mixes. "
                f"{_remedy(adapter) or f'{_READ}, and write mix(a, b), not mix([a, b]).'}"
            )
        as_is = isinstance(factor, float) and factor == 1.0
        parts.extend(adapter.parts if as_is else (adapter * factor).parts)
    repeated = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if repeated:
        raise AdapterError(
            f"two adapters of a mix have the name {', '.join(map(repr, repeated))}. Give each its "
            "own: jaxmix.load(…, name='other') or adapter.renamed('other')."
        )
    return Mix(tuple(parts))


def compose(
    params: Any,
    adapters: Adapter | Mix | Iterable[Adapter | Mix],
    *,
    layout: Layout | str | None = None,
    names: Names = None,
    donate: bool = False,
) -> Any:
    """Merges each site's updates into the params, in order: ``W' = Aₙ(… A₁(W))``.

    Each site's maps are folded into one, ``W ↦ L W Rᵀ + Δ``, and applied in few passes. Arithmetic
    is in float32 or wider, with one rounding at the end.

    Args:
        params: A pytree of weights: a flat dict with PyTorch names and (out, in), a nested dict
            with ``kernel`` (in, out), an ``nnx.Module``, an ``nnx.State``, an Equinox module, or
            any other.
        adapters: An adapter, a mix, or several of them in order of application.
        layout: Where the sites are in the tree: None to infer it from the leaves' names and shapes,
            the name of a layout (``"torch"``, ``"flax"``, or a model library's such as
            ``"tunix"``), or a `Layout`.
        names: How transformers renames the model's tensors when it loads a checkpoint, if the
            adapters have the names in memory and the tree those on disk, or the reverse: a model
            type such as ``"mixtral"``, the model's config, ``""`` for no such map, or None to infer
            it from the names.
        donate: Reuse the buffers of the changed leaves for the result. ``params`` must not be used
            afterwards.

    Returns:
        A tree of the same structure, shapes, dtypes and shardings. Leaves that no adapter touches
        are the same objects; without adapters the result is ``params`` itself. A changed leaf that
        qwix quantized is dequantized (see `jaxmix.requantized`). A model with a tied embedding and
        a method ``untied``, such as `jaxmix.models.Decoder`, is returned untied if an adapter
        changes only one of the two sides.

    Raises:
        LayoutError: If sites match no leaf, or more than one, several layouts fit and differ, a
            leaf is not of floats, or the tree ties weights that the adapters change differently.
        ShapeError: If factors do not fit their weights.
        AdapterError: If an argument is not an adapter, or two adapters have the same name.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(a=jnp.ones((1, 3)), b=jnp.ones((2, 1)), scale=1.0)})
        >>> compose({"proj.weight": jnp.zeros((2, 3))}, [0.5 * lora])["proj.weight"].tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]

    Source: docs/design.md; ``peft/tuners/mixed/model.py`` for the same in torch.
    """
    return several(adapters, "compose")(params, layout=layout, names=names, donate=donate)


def several(adapters: Any, caller: str) -> Mix:
    """Converts a function's ``adapters`` argument to one mix.

    Args:
        adapters: An adapter, a mix, or several of them.
        caller: The function's name, for messages.

    Returns:
        Their mix, in order.

    Raises:
        AdapterError: If it is anything else.
    """
    if isinstance(adapters, Adapter | Mix):
        return mix(adapters)
    expected = "expected an adapter, a mix, or a list of them."
    if not isinstance(adapters, Iterable) or isinstance(adapters, str | bytes | Mapping):
        raise AdapterError(
            f"{caller} got {_short(adapters)} for its adapters, {expected} "
            f"{_remedy(adapters) or f'{_READ}, and write {caller}(params, [a, b]).'}"
        )
    items = list(adapters)
    if wrong := [(i, item) for i, item in enumerate(items) if not isinstance(item, Mixable)]:
        remedies = dict.fromkeys(_remedy(item) for _, item in wrong)
        listed = listing(f"{i}: {_short(item)}" for i, item in wrong)
        raise AdapterError(
            f"{caller} got for its adapters:{listed}\n"
            f"{expected[0].upper()}{expected[1:]} "
            + (" ".join(filter(None, remedies)) or f"{_READ}, and write {caller}(params, [a, b]).")
        )
    return mix(*items)


def _strengths(strength: Any, count: int) -> Sequence[Any]:
    """Returns one strength per adapter."""
    strengths: Any = strength
    if not isinstance(strength, list | tuple) and getattr(strength, "ndim", 0) != 1:
        return [strength] * count
    if len(strengths) != count:
        raise AdapterError(
            f"mix got a list of strengths of length {len(strengths)}, expected {count}, one for "
            "each adapter, or a single number for all."
        )
    return list(strengths)


def _remedy(value: Any) -> str:
    """Explains how to turn a value into an adapter; "" if unknown."""
    if isinstance(getattr(value, "mix", None), Mixable):  # what `jaxmix.fit` returns
        return "Its mix is an adapter: pass result.mix."
    if isinstance(value, str | bytes | PathLike):
        return f"{_READ}(path)."
    if isinstance(value, Update):
        return "Name the module that it updates: jaxmix.Adapter({site: update})."
    return ""


def _short(value: Any) -> str:
    """Describes a value that is not an adapter, for messages."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '…'}"
