"""`mix` and `compose`: adapters in, an adapter out; an adapter and params in, params out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax

from jaxmix.adapter import Adapter, Mixable
from jaxmix.errors import AdapterError, listing
from jaxmix.families import Update
from jaxmix.placement.layout import Layout

__all__ = ["Mix", "compose", "mix", "several"]

_READ = "Read one with jaxmix.load"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Mix(Mixable):
    """Adapters in order: ``Aₙ ∘ … ∘ A₁``, a word in the free monoid of adapters.

    Args:
        parts: the adapters, the one that is applied first first.

    Raises:
        AdapterError: by `mix`, which makes them.

    Example:
        >>> mix(Adapter({}, name="a"), 0.5 * Adapter({}, name="b"))
        mix of 2 adapters, applied in this order:
          1. a: nothing at 0 sites, strength 1
          2. b: nothing at 0 sites, strength 0.5

    Source: DESIGN.md, the idea.
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
    """Adapters in order as one adapter: ``mix(a, b)`` applies a, then b: ``W ↦ B(A(W))``.

    At a site each of them is an affine map ``W ↦ L W Rᵀ + Δ``, and so is their composition. What
    reads a weight (DoRA's norm) reads the base's, so that ``mix`` is associative; the mix of
    nothing is the identity.

    Args:
        *adapters: adapters and mixes, the one to apply first first. A mix's parts join one by one.
        strength: a real scalar with which every part's strength is multiplied, or one for each of
            the arguments: a sequence, or an array (n,), traced or not.

    Returns:
        The mix: a pytree, a function of params, and an adapter for further mixes.

    Raises:
        AdapterError: if something is no adapter, two have one name, or a strength is no real
            scalar.

    Example:
        >>> a, b = Adapter({}, name="a"), Adapter({}, name="b")
        >>> [part.strength for part in mix(a, 0.5 * b, strength=2).parts]
        [2.0, 1.0]

    Source: DESIGN.md, laws 2 and 5; ``peft/mixed_model.py`` for what it stands for.
    """
    strengths = _each(strength, len(adapters))
    parts: list[Adapter] = []
    for adapter, one in zip(adapters, strengths, strict=True):
        if not isinstance(adapter, Mixable):
            raise AdapterError(
                f"mix got {_short(adapter)}, expected adapters and mixes. "
                f"{_remedy(adapter) or f'{_READ}, and write mix(a, b), not mix([a, b]).'}"
            )
        as_is = isinstance(one, float) and one == 1.0
        parts.extend(adapter.parts if as_is else (adapter * one).parts)
    twice = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if twice:
        raise AdapterError(
            f"two adapters of a mix have the name {', '.join(map(repr, twice))}. Give each its "
            "own: jaxmix.load(…, name='other') or adapter.renamed('other')."
        )
    return Mix(tuple(parts))


def compose(
    params: Any,
    adapters: Adapter | Mix | Iterable[Adapter | Mix],
    *,
    layout: Layout | str | None = None,
    donate: bool = False,
) -> Any:
    """The params with adapters in them, in order: ``W' = Aₙ(… A₁(W))`` at every site.

    Each site's maps are folded into one, ``W ↦ L W Rᵀ + Δ``, and applied in few passes; arithmetic
    is in float32 at the least, with one rounding at the end.

    Args:
        params: a pytree of weights: a flat dict with PyTorch names and (out, in), a nested dict
            with ``kernel`` (in, out), an ``nnx.Module``, an ``nnx.State``, an Equinox module, any
            other.
        adapters: one adapter or mix, or several, the one to apply first first.
        layout: where the sites lie in the tree: None to find it by the leaves' names and shapes,
            the name of a layout (``"torch"``, ``"flax"``, a model library's such as ``"tunix"``),
            or a `Layout`.
        donate: give up the buffers of the leaves that change, so that they are used again; params
            must not be used afterwards.

    Returns:
        A tree of the same structure, shapes, dtypes and shardings; of a leaf that qwix quantized,
        the dequantized array (`jaxmix.requantized`). Leaves that no adapter touches are the same
        objects; without adapters it is ``params`` itself. An object that ties its
        embedding and has a method ``untied``, as `jaxmix.models.Decoder` does, comes back untied if
        an adapter changes one of the two.

    Raises:
        LayoutError: if sites find no leaf, or more than one, several layouts fit that differ, a
            leaf is not of floats, or the tree ties what they separate.
        ShapeError: if factors do not fit their weights.
        AdapterError: if something is no adapter, or two have one name.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(a=jnp.ones((1, 3)), b=jnp.ones((2, 1)), scale=1.0)})
        >>> compose({"proj.weight": jnp.zeros((2, 3))}, [0.5 * lora])["proj.weight"].tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]

    Source: DESIGN.md, how a mix is computed; ``peft/tuners/mixed/model.py`` for the same in torch.
    """
    return several(adapters, "compose")(params, layout=layout, donate=donate)


def several(adapters: Any, who: str) -> Mix:
    """What a function was given for its adapters, as one mix.

    Args:
        adapters: an adapter, a mix, or several.
        who: the function's name.

    Returns:
        Their mix, in order.

    Raises:
        AdapterError: if it is anything else.
    """
    if isinstance(adapters, Adapter | Mix):
        return mix(adapters)
    expected = "expected an adapter, a mix, or a list of them."
    if not isinstance(adapters, Iterable) or isinstance(adapters, str | bytes | Mapping):
        raise AdapterError(
            f"{who} got {_short(adapters)} for its adapters, {expected} "
            f"{_remedy(adapters) or f'{_READ}, and write {who}(params, [a, b]).'}"
        )
    found = list(adapters)
    if wrong := [(i, one) for i, one in enumerate(found) if not isinstance(one, Mixable)]:
        remedies = dict.fromkeys(_remedy(one) for _, one in wrong)
        raise AdapterError(
            f"{who} got for its adapters:{listing(f'{i}: {_short(one)}' for i, one in wrong)}\n"
            f"{expected[0].upper()}{expected[1:]} "
            + (" ".join(filter(None, remedies)) or f"{_READ}, and write {who}(params, [a, b]).")
        )
    return mix(*found)


def _each(strength: Any, count: int) -> Sequence[Any]:
    """A strength for each argument."""
    several: Any = strength
    if not isinstance(strength, list | tuple) and getattr(strength, "ndim", 0) != 1:
        return [strength] * count
    if len(several) != count:
        raise AdapterError(
            f"mix got {len(several)} strengths for {count} adapters, expected one for each, or a "
            "single number for all."
        )
    return list(several)


def _remedy(thing: Any) -> str:
    """What makes an adapter of a thing that is none; "" if that is not known."""
    if isinstance(getattr(thing, "mix", None), Mixable):  # what `jaxmix.fit` returns
        return "Its mix is an adapter: pass result.mix."
    if isinstance(thing, str | bytes | PathLike):
        return f"{_READ}(path)."
    if isinstance(thing, Update):
        return "Name the module that it updates: jaxmix.Adapter({site: update})."
    return ""


def _short(thing: Any) -> str:
    """A thing that is no adapter, for a message."""
    text = " ".join(repr(thing).split())
    return f"{type(thing).__name__} {text if len(text) < 60 else text[:57] + '…'}"
