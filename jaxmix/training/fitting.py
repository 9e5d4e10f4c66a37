"""`fit` learns the strengths of a mix by gradient descent."""

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
from jaxmix.unmerged.weight import How

__all__ = ["Fit", "by_site", "fit"]

Per = Literal["mix", "adapter", "site"]
Loss = Callable[[Any, Any], Float[Array, ""]]


@dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    Args:
        mix: The mix with the learned strengths, as floats.
        losses: The loss of each step's batch, before the step.

    Raises:
        AdapterError: Raised by `fit`.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> Fit(mix(0.5 * Adapter({}, name="a")), (2.0, 1.5)).strengths
        {'a': 0.5}

    Source: ``docs/training.md``, "Strengths by gradient".
    """

    mix: Mix
    losses: tuple[float, ...]

    @property
    def strengths(self) -> dict[str, float]:
        """The learned strengths by the adapters' names."""
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
    how: How = "auto",
    progress: bool = True,
) -> Fit:
    """Learns the strengths of a mix by gradient descent; adapters and params do not change.

    Each step is ``s ← s − η ∂/∂s loss(params with the mix at strengths s, batch)``. It learns one
    factor for all strengths, one strength per adapter, or one per adapter and site, and starts from
    the strengths of the mix.

    Args:
        mixed: An adapter or a mix.
        params: The base, a pytree of weights, as for `jaxmix.compose`.
        loss_fn: The loss of params and a batch, ``(params, batch) -> scalar``; it is jitted.
        batches: The batches, one per step: pytrees of arrays with equal shapes.
        per: What to learn: one factor for all ("mix"), a strength for each adapter ("adapter"),
            or a strength for each adapter and site ("site"). With "site" the returned mix consists
            of adapters with one site each, named ``name@site``.
        optimizer: An ``optax.GradientTransformation`` for an array of strengths. By default Adam
            with a learning rate of 0.1, with cosine decay to 0 if the number of steps is known.
        steps: The maximal number of steps; by default all batches.
        layout: Where the sites are in the tree, as for `jaxmix.compose`.
        how: How the loss runs on factored leaves, as for `jaxmix.factored`: with "auto" a single
            `jaxmix.errors.DenseWeightWarning` lists the weights that it makes dense for lack of a
            factored form, "factored" refuses them, and "dense" makes every weight dense.
        progress: Whether to show a progress bar.

    Returns:
        The mix with the learned strengths, and the losses.

    Raises:
        AdapterError: If there is nothing to fit, there are no batches, ``per`` or ``how`` is
            invalid, or the loss is not finite.
        LayoutError: As for `jaxmix.compose`.
        ShapeError: As for `jaxmix.compose`.
        UnsupportedError: With ``how="factored"``, if a use of a weight has no factored form.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import LoRA
        >>> update = LoRA(jnp.ones((1, 1)), jnp.ones((1, 1)), 1.0)
        >>> lora = Adapter({"proj": update}, name="lora")
        >>> def loss(params, wanted):
        ...     return jnp.sum((jnp.ones((1, 1)) @ params["proj.weight"].T - wanted) ** 2)
        >>> params = {"proj.weight": jnp.zeros((1, 1))}
        >>> result = fit(lora, params, loss, [jnp.full((1, 1), 0.5)] * 99, progress=False)
        >>> f"{result.strengths['lora']:.2f}"
        '0.50'

    Source: https://arxiv.org/abs/2307.13269 (LoraHub) for the aim.
    """
    import optax  # a dependency of flax

    if per not in ("mix", "adapter", "site"):
        raise AdapterError(f"fit got per={per!r}, expected 'mix', 'adapter' or 'site'.")
    start = by_site(mixed) if per == "site" else mix(*mixed.parts)
    if not any(part.sites for part in start.parts):
        raise AdapterError(f"fit got {mixed!r}, expected at least one adapter with sites.")
    count = len(batches) if isinstance(batches, Sized) else None
    total = steps if count is None else min(count, count if steps is None else steps)
    if optimizer is None:
        rate = 0.1 if not total else optax.cosine_decay_schedule(0.1, total)
        optimizer = optax.adam(rate)

    run = factored(loss_fn, how)

    def loss(numbers: Array, start: Mix, params: Any, batch: Any) -> Array:
        leaves = attach(params, _with(start, numbers, per), layout=layout)
        return run(leaves, batch)

    @jax.jit
    def step(
        numbers: Array, state: Any, start: Mix, params: Any, batch: Any
    ) -> tuple[Array, Any, Array]:
        value, slope = jax.value_and_grad(loss)(numbers, start, params, batch)
        # optax mixes integers with floats, which strict dtype promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(slope, state, numbers)
            moved: Any = optax.apply_updates(numbers, change)
            return moved, state, value

    numbers = _numbers(start, per)
    state, losses = optimizer.init(numbers), []
    with _bar(progress, total) as shown:
        for batch in islice(batches, steps):
            numbers, state, value = step(numbers, state, start, params, batch)
            losses.append(float(value))
            if not math.isfinite(losses[-1]):
                raise AdapterError(
                    f"the loss of step {len(losses)} is {losses[-1]}, expected a finite number. "
                    "Use a smaller learning rate, and check loss_fn on the mix itself."
                )
            shown(losses[-1])
    if not losses:
        raise AdapterError("fit got no batches, expected one for each step.")
    return Fit(_with_floats(_with(start, numbers, per)), tuple(losses))


def by_site(mixed: Mixable) -> Mix:
    """Splits a mix into adapters with one site each, so that each site has its own strength.

    Args:
        mixed: An adapter or a mix.

    Returns:
        A mix of adapters named ``name@site``. At each site the order of application is unchanged.

    Raises:
        AdapterError: If two of the new names are equal.

    Example:
        >>> from jaxmix.adapter import Adapter
        >>> from jaxmix.families import Replace
        >>> two = Adapter({"x": Replace(jnp.ones(1)), "y": Replace(jnp.ones(1))}, name="norms")
        >>> [part.name for part in by_site(two).parts]
        ['norms@x', 'norms@y']

    Source: ``docs/design.md``: the sites of an adapter are independent.
    """
    return mix(
        *(
            replace(part, updates={site: update}, name=f"{part.name}@{site}")
            for part in mixed.parts
            for site, update in part.updates.items()
        )
    )


def _numbers(mixed: Mix, per: Per) -> Array:
    """Returns the initial values of the learned numbers: one factor, or the strengths."""
    if per == "mix":
        return jnp.ones(1)
    return jnp.stack([jnp.asarray(part.strength, float) for part in mixed.parts])


def _with(mixed: Mix, numbers: Array, per: Per) -> Mix:
    """Returns the mix with the learned factor or strengths."""
    if per == "mix":
        return mixed * numbers[0]
    return Mix(tuple(replace(part, strength=numbers[i]) for i, part in enumerate(mixed.parts)))


def _with_floats(mixed: Mix) -> Mix:
    """Returns the mix with strengths that are Python floats, as in a loaded file."""
    return Mix(tuple(replace(part, strength=float(part.strength)) for part in mixed.parts))


@contextmanager
def _bar(shown: bool, total: int | None) -> Iterator[Callable[[float], None]]:
    """Shows a progress bar and yields a function to call with the loss of each step."""
    if not shown:
        yield lambda loss: None
        return
    columns = (TextColumn("strengths"), BarColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(), transient=True) as progress:
        task = progress.add_task("strengths", total=total, loss="")
        yield lambda loss: progress.update(task, advance=1, loss=f"loss {loss:.4f}", refresh=True)
