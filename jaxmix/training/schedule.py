"""AdaLoRA's rank schedule as a pure function: decides which ranks of which sites are kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmix.errors import AdapterError, listing
from jaxmix.pytrees import register_dataclass

__all__ = ["RankSchedule", "RankState", "orthogonality"]

# AdaLoRA's trained arrays at a site: A (r, in), B (out, r) and the singular values e (r,).
_TRIPLE = {"a", "b", "e"}


@register_dataclass
@dataclass(frozen=True, eq=False)
class RankState:
    """The state of a `RankSchedule` between steps, by the paths of the sites in the values.

    Args:
        sensitivity: The moving average of ``|w · ∂w|`` for each site's ``a``, ``b`` and ``e``.
        uncertainty: The moving average of the deviation of ``|w · ∂w|`` from the sensitivity.
        kept: The ranks that the last decision kept, for each site (r,).

    Raises:
        AdapterError: Raised by `RankSchedule.start`.

    Example:
        >>> e = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 2)), "e": jnp.ones(2)}
        >>> RankSchedule(target_rank=1, steps=9).start({"proj": e}).kept["proj"].tolist()
        [True, True]

    Source: ``peft/tuners/adalora/layer.py``, ``RankAllocator``.
    """

    sensitivity: dict[str, dict[str, Float[Array, "..."]]]
    uncertainty: dict[str, dict[str, Float[Array, "..."]]]
    kept: dict[str, Bool[Array, " r"]]


@dataclass(frozen=True)
class RankSchedule:
    """AdaLoRA's rank schedule, PEFT's ``update_and_allocate`` as a pure function.

    The score of a value is ``sensitivity · uncertainty``. The score of a rank is that of its e plus
    the means over its row of A and its column of B. Among all ranks of all sites, those with the
    lowest scores are masked, which means that their e is set to 0. The number of ranks that are
    kept falls from all ranks, b₀, to ``target_rank`` per site, b₁, along a cubic curve:
    ``⌊(b₀ − b₁)(1 − (t − warmup)/(T − final − warmup))³ + b₁⌋``. Masked ranks may grow again until
    step ``T − final``; from then on the mask is fixed. As in PEFT, all ranks whose score equals the
    threshold are masked.

    Args:
        target_rank: The average number of ranks that a site keeps; PEFT's ``target_r``.
        steps: The total number of steps T; PEFT's ``total_step``.
        warmup: The number of steps at the start that mask nothing; PEFT's ``tinit``.
        final: The number of steps at the end with a fixed mask; PEFT's ``tfinal``.
        every: The number of steps between decisions; PEFT's ``deltaT``.
        beta1: The decay rate of the sensitivity.
        beta2: The decay rate of the uncertainty.

    Raises:
        AdapterError: If the arguments are invalid.

    Example:
        >>> schedule = RankSchedule(target_rank=1, steps=3)
        >>> site = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 2)), "e": jnp.array([0.1, 1.0])}
        >>> state = schedule.start({"proj": site})
        >>> for step in range(4):
        ...     values, state = schedule.step(state, {"proj": site}, {"proj": site}, step)
        >>> values["proj"]["e"].tolist()
        [0.0, 1.0]

    Source: https://arxiv.org/abs/2303.10512; ``peft/tuners/adalora/layer.py``, ``RankAllocator``.
    PEFT raises an error if all ranks are kept; here nothing is masked then.
    """

    target_rank: int
    steps: int
    warmup: int = 0
    final: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}, expected {wanted}"
            for name, value, is_right, wanted in (
                ("target_rank", self.target_rank, self.target_rank >= 0, "at least 0"),
                ("steps", self.steps, self.steps > 0, "at least 1"),
                ("warmup", self.warmup, self.warmup >= 0, "at least 0"),
                ("final", self.final, self.final >= 0, "at least 0"),
                ("every", self.every, self.every > 0, "at least 1"),
                ("beta1", self.beta1, 0 < self.beta1 < 1, "a number between 0 and 1"),
                ("beta2", self.beta2, 0 < self.beta2 < 1, "a number between 0 and 1"),
                ("warmup + final", self.warmup + self.final,
                 self.warmup + self.final < self.steps, f"less than the {self.steps} steps"),
            )
            if not is_right
        ]  # fmt: skip
        if wrong:
            raise AdapterError(f"invalid rank schedule:{listing(wrong)}")

    def start(self, values: Mapping[str, Any]) -> RankState:
        """Returns the state before the first step.

        Args:
            values: The values of one AdaLoRA adapter from `jaxmix.trainable`, or a part of them.

        Returns:
            A state with averages of zero in which all ranks are kept.

        Raises:
            AdapterError: If there is no AdaLoRA site, or the sites have fewer ranks than the
                target.
        """
        sites = dict(_sites(values))
        if not sites:
            raise AdapterError(
                "the rank schedule got values without an AdaLoRA site, expected arrays a, b and e, "
                "as jaxmix.trainable returns them for an AdaLoRA adapter."
            )
        ranks, target = _count_ranks(sites), self.target_rank * len(sites)
        if ranks < target:
            raise AdapterError(
                f"the rank schedule has target_rank {self.target_rank} for {len(sites)} sites, but "
                f"they have {ranks} ranks in total, expected at least {target}."
            )
        zeros = jax.tree.map(jnp.zeros_like, sites)
        kept = {name: jnp.ones(np.shape(site["e"]), bool) for name, site in sites.items()}
        return RankState(zeros, zeros, kept)

    def step(
        self, state: RankState, values: Mapping[str, Any], slopes: Mapping[str, Any], step: Any
    ) -> tuple[dict[str, Any], RankState]:
        """Updates the state and masks ranks; call it after each step of the optimizer.

        Args:
            state: The state after the previous step.
            values: The values after the optimizer's step, as in PEFT.
            slopes: The gradients of the same step, in the same structure.
            step: The index of the step, traced or not.

        Returns:
            The values with masked ranks, and the new state.
        """
        step = jnp.asarray(step)
        sites, gradients = dict(_sites(values)), dict(_sites(slopes))
        last = self.steps - self.final
        is_moving, is_last = step < last, step == last
        products = jax.tree.map(lambda x, slope: jnp.abs(x * slope), sites, gradients)
        mean = _moving_average(self.beta1, state.sensitivity, products)
        deviation = jax.tree.map(lambda x, y: jnp.abs(x - y), products, mean)
        spread = _moving_average(self.beta2, state.uncertainty, deviation)
        mean = _where(is_moving, mean, state.sensitivity)
        spread = _where(is_moving, spread, state.uncertainty)
        scores = {
            name: _score(jax.tree.map(jnp.multiply, mean[name], spread[name])) for name in sites
        }
        masked = _count_ranks(sites) - jnp.asarray(self._budgets(sites))[jnp.clip(step, 0, last)]
        ranked = jnp.sort(jnp.concatenate(list(scores.values())))
        threshold = jnp.where(masked > 0, ranked[jnp.maximum(masked - 1, 0)], -jnp.inf)
        decides = is_last | (is_moving & (step > self.warmup) & (step % self.every == 0))
        chosen = {name: score > threshold for name, score in scores.items()}
        kept = _where(decides, chosen, state.kept)
        masks = decides | (step > last)
        new = {
            name: {**site, "e": jnp.where(~masks | kept[name], site["e"], 0)}
            for name, site in sites.items()
        }
        zeros = jax.tree.map(jnp.zeros_like, mean)
        state = RankState(_where(is_last, zeros, mean), _where(is_last, zeros, spread), kept)
        return _put(values, new), state

    def budget(self, step: int, ranks: int, sites: int) -> int:
        """Returns how many ranks are kept after a step.

        Args:
            step: The index of the step.
            ranks: The initial number of ranks of all sites.
            sites: The number of sites.

        Returns:
            The number of ranks.
        """
        last, target = self.steps - self.final, self.target_rank * sites
        if step <= self.warmup:
            return ranks
        if step > last:
            return target
        left = 1 - (step - self.warmup) / (last - self.warmup)
        return int((ranks - target) * left**3 + target)

    def _budgets(self, sites: Mapping[str, Any]) -> np.ndarray:
        """Returns the budget of each step as a table; in float32 some would be rounded wrongly."""
        steps = range(self.steps - self.final + 1)
        return np.array([self.budget(t, _count_ranks(sites), len(sites)) for t in steps], np.int32)


def orthogonality(values: Mapping[str, Any]) -> Float[Array, ""]:
    """Measures how far AdaLoRA's A and B are from orthonormal, a regularizer for the loss.

    It is the mean of the Frobenius norms ``‖A Aᵀ − I‖`` and ``‖Bᵀ B − I‖`` over all sites.

    Args:
        values: The values of an AdaLoRA adapter from `jaxmix.trainable`, or a part of them.

    Returns:
        The mean. PEFT adds it to the loss with the factor ``orth_reg_weight``, by default 0.5.

    Raises:
        AdapterError: If there is no AdaLoRA site.

    Example:
        >>> eye = {"a": jnp.eye(2), "b": 2 * jnp.eye(2), "e": jnp.ones(2)}
        >>> round(float(orthogonality({"proj": eye})), 4)
        2.1213

    Source: ``peft/tuners/adalora/model.py``, ``forward``.
    """
    products = [
        product
        for _, site in _sites(values)
        for product in (site["a"] @ site["a"].T, site["b"].T @ site["b"])
    ]
    if not products:
        raise AdapterError(
            "orthogonality got values without an AdaLoRA site, expected arrays a, b and e."
        )
    return jnp.mean(jnp.stack([_norm(x - jnp.eye(*x.shape, dtype=x.dtype)) for x in products]))


def _norm(matrix: Float[Array, "r r"]) -> Float[Array, ""]:
    """Returns the Frobenius norm, with a gradient of 0 at 0 as in torch."""
    square = jnp.sum(matrix * matrix)
    is_nonzero = square > 0
    return jnp.where(is_nonzero, jnp.sqrt(jnp.where(is_nonzero, square, 1)), 0)


def _score(site: Mapping[str, Array]) -> Float[Array, " r"]:
    """Returns each rank's score from the scores of its values."""
    return site["e"] + (jnp.mean(site["a"], axis=1) + jnp.mean(site["b"], axis=0))


def _moving_average(beta: float, old: Any, new: Any) -> Any:
    """Returns the exponential moving average of a tree."""
    return jax.tree.map(lambda x, y: beta * x + (1 - beta) * y, old, new)


def _where(condition: Any, then: Any, otherwise: Any) -> Any:
    """Selects between two trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), then, otherwise)


def _count_ranks(sites: Mapping[str, Any]) -> int:
    """Returns the number of ranks of all sites."""
    return sum(site["e"].shape[0] for site in sites.values())


def _sites(values: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the AdaLoRA sites among values, by their paths."""
    if not isinstance(values, Mapping):
        return
    if _TRIPLE <= values.keys():
        yield path, {name: values[name] for name in sorted(_TRIPLE)}
        return
    for key, inner in values.items():
        yield from _sites(inner, f"{path}/{key}" if path else key)


def _put(values: Any, sites: Mapping[str, Any], path: str = "") -> Any:
    """Returns the values with some sites replaced."""
    if not isinstance(values, Mapping):
        return values
    if path in sites:
        return {**values, **sites[path]}
    return {
        key: _put(inner, sites, f"{path}/{key}" if path else key) for key, inner in values.items()
    }
