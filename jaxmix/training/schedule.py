"""AdaLoRA's rank schedule: which ranks of which sites are kept, as a function of what was seen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxmix.errors import AdapterError, listing

__all__ = ["RankSchedule", "RankState", "orthogonality"]

# AdaLoRA's trained arrays at a site: A (r, in), B (out, r) and the singular values e (r,).
_TRIPLE = {"a", "b", "e"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RankState:
    """What `RankSchedule` remembers between steps; sites by their place among the values.

    Args:
        sensitivity: The mean of ``|w · ∂w|`` over steps, for each site's ``a``, ``b`` and ``e``.
        uncertainty: The mean of how far ``|w · ∂w|`` was from it.
        kept: The ranks that were kept when it was last decided, for each site (r,).

    Raises:
        AdapterError: Raised by `RankSchedule.start`, which makes the first one.

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

    A rank's score is that of its e plus the means over its row of A and its column of B, and the
    score of a number is ``sensitivity · uncertainty``. Of all ranks of all sites the lowest are
    masked, so many that a budget is left, which falls from the ranks that there are to
    ``target_rank`` a site along a cubic: ``⌊(b₀ − b₁)(1 − (t − warmup)/(T − final − warmup))³ +
    b₁⌋``. A masked rank's e is 0 and may grow again, until ``T − final``: what is masked then stays
    masked. Ranks of equal scores at the threshold are all masked, as PEFT masks them.

    Args:
        target_rank: How many ranks a site keeps in the mean; PEFT's ``target_r``.
        steps: T, how many steps there are; PEFT's ``total_step``.
        warmup: How many of them mask nothing; PEFT's ``tinit``.
        final: How many at the end mask what was decided before; PEFT's ``tfinal``.
        every: From one decision to the next; PEFT's ``deltaT``.
        beta1: How much of the sensitivity is kept.
        beta2: How much of the uncertainty is kept.

    Raises:
        AdapterError: If the numbers are no schedule.

    Example:
        >>> schedule = RankSchedule(target_rank=1, steps=3)
        >>> site = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 2)), "e": jnp.array([0.1, 1.0])}
        >>> state = schedule.start({"proj": site})
        >>> for step in range(4):
        ...     values, state = schedule.step(state, {"proj": site}, {"proj": site}, step)
        >>> values["proj"]["e"].tolist()
        [0.0, 1.0]

    Source: https://arxiv.org/abs/2303.10512; ``peft/tuners/adalora/layer.py``, ``RankAllocator``.
    PEFT raises where the budget is all ranks: there nothing is masked here.
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
                ("target_rank", self.target_rank, self.target_rank >= 0, "a rank"),
                ("steps", self.steps, self.steps > 0, "a number of steps"),
                ("warmup", self.warmup, self.warmup >= 0, "a number of steps"),
                ("final", self.final, self.final >= 0, "a number of steps"),
                ("every", self.every, self.every > 0, "a number of steps"),
                ("beta1", self.beta1, 0 < self.beta1 < 1, "a number between 0 and 1"),
                ("beta2", self.beta2, 0 < self.beta2 < 1, "a number between 0 and 1"),
                ("warmup + final", self.warmup + self.final,
                 self.warmup + self.final < self.steps, f"less than the {self.steps} steps"),
            )
            if not is_right
        ]  # fmt: skip
        if wrong:
            raise AdapterError(f"a rank schedule that is none:{listing(wrong)}")

    def start(self, values: Mapping[str, Any]) -> RankState:
        """The state before the first step.

        Args:
            values: What `jaxmix.trainable` gives of one AdaLoRA adapter, or a part of it.

        Returns:
            Nothing seen, all ranks kept.

        Raises:
            AdapterError: If there is no site of AdaLoRA, or they have fewer ranks than the target.
        """
        sites = dict(_sites(values))
        if not sites:
            raise AdapterError(
                "a rank schedule got values without a site of AdaLoRA, expected a, b and e "
                "somewhere: what jaxmix.trainable gives of an adapter of that family."
            )
        there, target = _ranks(sites), self.target_rank * len(sites)
        if there < target:
            raise AdapterError(
                f"a rank schedule has target_rank {self.target_rank} for {len(sites)} sites, but "
                f"they have {there} ranks in all, expected {target} or more."
            )
        zeros = jax.tree.map(jnp.zeros_like, sites)
        kept = {name: jnp.ones(np.shape(site["e"]), bool) for name, site in sites.items()}
        return RankState(zeros, zeros, kept)

    def step(
        self, state: RankState, values: Mapping[str, Any], slopes: Mapping[str, Any], step: Any
    ) -> tuple[dict[str, Any], RankState]:
        """What follows a step of the optimizer.

        Args:
            state: What was seen so far.
            values: The values after the optimizer's step, as PEFT has it.
            slopes: The gradients of the same step, in the same structure.
            step: The number of the step, traced or not.

        Returns:
            The values with ranks masked, and the new state.
        """
        step = jnp.asarray(step)
        sites, by = dict(_sites(values)), dict(_sites(slopes))
        last = self.steps - self.final
        is_moving, is_last = step < last, step == last
        seen = jax.tree.map(lambda x, slope: jnp.abs(x * slope), sites, by)
        mean = _moved(self.beta1, state.sensitivity, seen)
        apart = jax.tree.map(lambda x, y: jnp.abs(x - y), seen, mean)
        spread = _moved(self.beta2, state.uncertainty, apart)
        mean = _where(is_moving, mean, state.sensitivity)
        spread = _where(is_moving, spread, state.uncertainty)
        scores = {
            name: _score(jax.tree.map(jnp.multiply, mean[name], spread[name])) for name in sites
        }
        masked = _ranks(sites) - jnp.asarray(self._budgets(sites))[jnp.clip(step, 0, last)]
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
        """How many ranks are left after a step.

        Args:
            step: The number of the step.
            ranks: How many there are at the start, of all sites.
            sites: How many sites there are.

        Returns:
            How many ranks are kept.
        """
        last, target = self.steps - self.final, self.target_rank * sites
        if step <= self.warmup:
            return ranks
        if step > last:
            return target
        left = 1 - (step - self.warmup) / (last - self.warmup)
        return int((ranks - target) * left**3 + target)

    def _budgets(self, sites: Mapping[str, Any]) -> np.ndarray:
        """The budget of each step: as a table, for in float32 some would be rounded otherwise."""
        steps = range(self.steps - self.final + 1)
        return np.array([self.budget(t, _ranks(sites), len(sites)) for t in steps], np.int32)


def orthogonality(values: Mapping[str, Any]) -> Float[Array, ""]:
    """How far AdaLoRA's A and B are from orthonormal: PEFT adds half of it to the loss.

    The mean of ``‖A Aᵀ − I‖`` and ``‖Bᵀ B − I‖``, Frobenius norms, over all sites.

    Args:
        values: What `jaxmix.trainable` gives of an AdaLoRA adapter, or a part of it.

    Returns:
        The mean; PEFT's ``orth_reg_weight``, 0.5 by default, is its factor.

    Raises:
        AdapterError: If there is no site of AdaLoRA.

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
            "orthogonality got values without a site of AdaLoRA, expected a, b and e somewhere."
        )
    return jnp.mean(jnp.stack([_length(x - jnp.eye(*x.shape, dtype=x.dtype)) for x in products]))


def _length(matrix: Float[Array, "r r"]) -> Float[Array, ""]:
    """The Frobenius norm, whose slope at 0 is 0, as torch has it."""
    square = jnp.sum(matrix * matrix)
    is_there = square > 0
    return jnp.where(is_there, jnp.sqrt(jnp.where(is_there, square, 1)), 0)


def _score(site: Mapping[str, Array]) -> Float[Array, " r"]:
    """Each rank's score, of the scores of its numbers."""
    return site["e"] + (jnp.mean(site["a"], axis=1) + jnp.mean(site["b"], axis=0))


def _moved(beta: float, old: Any, new: Any) -> Any:
    """A moving mean."""
    return jax.tree.map(lambda x, y: beta * x + (1 - beta) * y, old, new)


def _where(condition: Any, then: Any, otherwise: Any) -> Any:
    """One of two trees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), then, otherwise)


def _ranks(sites: Mapping[str, Any]) -> int:
    """How many ranks all sites have."""
    return sum(site["e"].shape[0] for site in sites.values())


def _sites(values: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The sites of AdaLoRA among values, by their paths."""
    if not isinstance(values, Mapping):
        return
    if _TRIPLE <= values.keys():
        yield path, {name: values[name] for name in sorted(_TRIPLE)}
        return
    for key, inner in values.items():
        yield from _sites(inner, f"{path}/{key}" if path else key)


def _put(values: Any, sites: Mapping[str, Any], path: str = "") -> Any:
    """The values with other sites in them."""
    if not isinstance(values, Mapping):
        return values
    if path in sites:
        return {**values, **sites[path]}
    return {
        key: _put(inner, sites, f"{path}/{key}" if path else key) for key, inner in values.items()
    }
