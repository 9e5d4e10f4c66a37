"""Strengths learned by gradient: few numbers, found on text that the mix is to be good at."""

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxmix.adapter import Mixable
from jaxmix.errors import AdapterError
from jaxmix.mixing import Mix, mix
from jaxmix.placement.layout import Layout
from jaxmix.unmerged import attach, factored

__all__ = ["Fit", "by_site", "fit"]

Per = Literal["mix", "adapter", "site"]
Loss = Callable[[Any, Any], Float[Array, ""]]


@dataclass(frozen=True)
class Fit:
    """What `fit` found.

    Args:
        mix: the mix with the strengths that it found, as floats.
        losses: the loss of each step's batch, before the step.

    Raises:
        AdapterError: by `fit`, which makes them.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> Fit(mix(0.5 * Adapter({}, name="a")), (2.0, 1.5)).strengths
        {'a': 0.5}

    Source: DESIGN.md, strength.
    """

    mix: Mix
    losses: tuple[float, ...]

    @property
    def strengths(self) -> dict[str, float]:
        """The strengths by the adapters' names."""
        return {part.name: float(part.strength) for part in self.mix.parts}


def fit(
    mixed: Mixable,
    params: Any,
    loss_fn: Loss,
    batches: Iterable[Any],
    *,
    per: Per = "adapter",
    optimizer: Any = None,
    steps: int | None = None,
    layout: Layout | str | None = None,
    progress: bool = True,
) -> Fit:
    """Learns the strengths of a mix by gradient; the adapters and the params stay as they are.

    ``s ← s − η ∂/∂s loss(params with the mix at strengths s in them, batch)``, for one factor that
    all strengths share, one strength an adapter, or one for each of its sites. It begins from the
    strengths that the mix has.

    Args:
        mixed: the adapter or the mix.
        params: a pytree of weights, as for `jaxmix.compose`.
        loss_fn: the loss of params and a batch, a scalar; it is compiled.
        batches: what the loss is taken of, one a step: arrays or trees of them, of equal shapes.
        per: whether all have one factor ("mix"), each adapter its strength ("adapter"), or each
            adapter one at each site ("site"): then the mix that comes back is made of adapters of
            one site each, called ``name@site``.
        optimizer: an ``optax.GradientTransformation`` over an array of the strengths; by default
            Adam with a rate of 0.1 that falls to nothing along a cosine if the number of steps is
            known.
        steps: at most how many; all batches by default.
        layout: where the sites lie in the tree, as for `jaxmix.compose`.
        progress: whether a bar is shown.

    Returns:
        The mix with the strengths found, and the losses.

    Raises:
        AdapterError: if there is nothing to fit, no batch, ``per`` is none of the three, or the
            loss is not finite.
        LayoutError: as `jaxmix.compose`.
        ShapeError: as `jaxmix.compose`.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import LoRA
        >>> one = LoRA(jnp.ones((1, 1)), jnp.ones((1, 1)), 1.0)
        >>> lora = Adapter({"proj": one}, name="lora")
        >>> def loss(params, wanted):
        ...     return jnp.sum((params["proj.weight"] - wanted) ** 2)
        >>> params = {"proj.weight": jnp.zeros((1, 1))}
        >>> found = fit(lora, params, loss, [jnp.full((1, 1), 0.5)] * 99, progress=False)
        >>> f"{found.strengths['lora']:.2f}"
        '0.50'

    Source: the gradient of law 5; https://arxiv.org/abs/2307.13269 (LoraHub) for the aim.
    """
    import optax  # flax brings it

    if per not in ("mix", "adapter", "site"):
        raise AdapterError(f"fit got per={per!r}, expected 'mix', 'adapter' or 'site'.")
    whole = by_site(mixed) if per == "site" else mix(*mixed.parts)
    if not any(part.sites for part in whole.parts):
        raise AdapterError(f"fit got {mixed!r}, expected adapters whose strengths can be learned.")
    count = len(batches) if isinstance(batches, Sized) else None
    total = steps if count is None else min(count, count if steps is None else steps)
    if optimizer is None:
        rate = 0.1 if not total else optax.cosine_decay_schedule(0.1, total)
        optimizer = optax.adam(rate)

    def loss(numbers: Array, whole: Mix, params: Any, batch: Any) -> Array:
        leaves = attach(params, _with(whole, numbers, per), layout=layout)
        return factored(loss_fn)(leaves, batch)

    @jax.jit
    def step(
        numbers: Array, state: Any, whole: Mix, params: Any, batch: Any
    ) -> tuple[Array, Any, Array]:
        value, slope = jax.value_and_grad(loss)(numbers, whole, params, batch)
        # optax mixes whole numbers with floats, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(slope, state, numbers)
            moved: Any = optax.apply_updates(numbers, change)
            return moved, state, value

    numbers = _numbers(whole, per)
    state, losses = optimizer.init(numbers), []
    with _bar(progress, total) as shown:
        for batch in islice(batches, steps):
            numbers, state, value = step(numbers, state, whole, params, batch)
            losses.append(float(value))
            if not math.isfinite(losses[-1]):
                raise AdapterError(
                    f"the loss of step {len(losses)} is {losses[-1]}, expected a finite number. "
                    "Give an optimizer with a smaller rate, and look at loss_fn of the mix itself."
                )
            shown(losses[-1])
    if not losses:
        raise AdapterError("fit got no batches, expected one for each step.")
    return Fit(_settled(_with(whole, numbers, per)), tuple(losses))


def by_site(mixed: Mixable) -> Mix:
    """The same mix, made of adapters of one site each: a strength for each adapter and site.

    Args:
        mixed: the adapter or the mix.

    Returns:
        The mix of ``name@site``, in the adapters' order: at each site what acted there acts in the
        order in which it did.

    Raises:
        AdapterError: if two of the names are one.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import Replace
        >>> two = Adapter({"x": Replace(jnp.ones(1)), "y": Replace(jnp.ones(1))}, name="norms")
        >>> [part.name for part in by_site(two).parts]
        ['norms@x', 'norms@y']

    Source: DESIGN.md, the idea: sites are apart.
    """
    return mix(
        *(
            replace(part, updates={site: update}, name=f"{part.name}@{site}")
            for part in mixed.parts
            for site, update in part.updates.items()
        )
    )


def _numbers(whole: Mix, per: Per) -> Array:
    """What is learned: one factor, or the strengths."""
    if per == "mix":
        return jnp.ones(1)
    return jnp.stack([jnp.asarray(part.strength, float) for part in whole.parts])


def _with(whole: Mix, numbers: Array, per: Per) -> Mix:
    """The mix with what is learned in it."""
    if per == "mix":
        return whole * numbers[0]
    return Mix(tuple(replace(part, strength=numbers[i]) for i, part in enumerate(whole.parts)))


def _settled(whole: Mix) -> Mix:
    """The mix with its strengths as floats, as a file has them."""
    return Mix(tuple(replace(part, strength=float(part.strength)) for part in whole.parts))


@contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[float], None]]:
    """A bar with the loss beside it: what is called with the loss of each step."""
    if not shown:
        yield lambda loss: None
        return
    columns = (TextColumn("strengths"), BarColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(), transient=True) as progress:
        task = progress.add_task("strengths", total=total, loss="")
        yield lambda loss: progress.update(task, advance=1, loss=f"loss {loss:.4f}", refresh=True)
