"""The table of methods: their formulas and which options each takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Array

from jaxmix.combining import formulas
from jaxmix.combining.formulas import MajoritySign, Options
from jaxmix.errors import AdapterError, option

__all__ = ["METHODS", "Method", "checked_options"]

_OUTLIERS = 0.01


@dataclass(frozen=True)
class Method:
    """A method of `jaxmix.combine`.

    Args:
        name: The name of the method.
        formula: The formula, from `jaxmix.combining.formulas`.
        on_factors: Whether LoRAs are combined factor by factor, as in PEFT, instead of by their Δ.
        svd: Whether the result is a low rank, by SVD.
        prunes: Whether it needs a density.
        random: Whether it needs a key.
        votes: Whether it elects signs and takes a majority_sign.
        crops: Whether it takes a share of outliers.
        weighted: Whether it takes weights; otherwise it computes its own.
        counts: The smallest and the largest number of adapters.
    """

    name: str
    formula: Callable[[Array, Array, Options, Array | None], Array]
    on_factors: bool = False
    svd: bool = False
    prunes: bool = False
    random: bool = False
    votes: bool = False
    crops: bool = False
    weighted: bool = True
    counts: tuple[int, float] = (1, float("inf"))

    @property
    def by_svd(self) -> str:
        """The name of the same method on Δ, truncated to a rank."""
        return "svd" if self.name == "linear" else f"{self.name}_svd"


def _both(name: str, formula: Any, **needs: Any) -> tuple[Method, Method]:
    """Returns a method of PEFT on factors and the same method on Δ."""
    on_factors = Method(name, formula, on_factors=True, **needs)
    return on_factors, Method(on_factors.by_svd, formula, svd=True, **needs)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *_both("linear", formulas.linear),
        Method("cat", formulas.linear),
        *_both("ties", formulas.ties, prunes=True, votes=True),
        *_both("dare_linear", formulas.dare_linear, prunes=True, random=True),
        *_both("dare_ties", formulas.dare_ties, prunes=True, random=True, votes=True),
        *_both("magnitude_prune", formulas.magnitude_prune, prunes=True),
        Method("slerp", formulas.slerp, counts=(2, 2)),
        Method("breadcrumbs", formulas.breadcrumbs, prunes=True, crops=True),
        Method("sce", formulas.sce, prunes=True, weighted=False),
        Method("model_stock", formulas.model_stock, weighted=False, counts=(2, float("inf"))),
        Method("knots", formulas.ties, prunes=True, votes=True),
    )
}


def checked_options(
    method: str,
    count: int,
    *,
    has_weights: bool,
    has_rank: bool,
    density: Any,
    key: Any,
    majority_sign: Any,
    outliers: Any,
) -> tuple[Method, Options]:
    """Checks a method and its options, including that every given option is used.

    Args:
        method: The name of the method.
        count: The number of adapters to combine.
        has_weights: Whether weights are given.
        has_rank: Whether a rank is given, which means an SVD.
        density: The given density, or None.
        key: The given key, or None.
        majority_sign: The given rule, or None.
        outliers: The given share, or None.

    Returns:
        The method and the options.

    Raises:
        AdapterError: If the method is unknown, lacks an option, or does not use a given option.
    """
    chosen = METHODS.get(method) if isinstance(method, str) else None
    if chosen is None:
        raise AdapterError(f"there is no method {method!r}, expected one of {', '.join(METHODS)}.")
    least, most = chosen.counts
    if not least <= count <= most:
        expected = "exactly two" if most == 2 else f"at least {_NUMBERS[least]}"
        found = f"{count} adapter{'' if count == 1 else 's'}"
        raise AdapterError(f"the method {method!r} got {found}, expected {expected}.")
    needless = {
        "density": density is not None and not chosen.prunes,
        "majority_sign": majority_sign is not None and not chosen.votes,
        "outliers": outliers is not None and not chosen.crops,
        "weights": has_weights and not chosen.weighted,
        "key": key is not None and not (chosen.random or chosen.svd or has_rank),
    }
    if names := [name for name, is_needless in needless.items() if is_needless]:
        raise AdapterError(
            f"the method {method!r} does not use {', '.join(names)}. Leave "
            f"{'them' if names[1:] else 'it'} out, or use another method."
        )
    if chosen.random and key is None:
        raise AdapterError(
            f"the method {method!r} drops random entries and needs a key, such as "
            "key=jax.random.key(0)."
        )
    sign = get_args(MajoritySign)[0] if majority_sign is None else majority_sign
    if sign not in get_args(MajoritySign):
        raise AdapterError(f"majority_sign is {majority_sign!r}, expected 'total' or 'frequency'.")
    return chosen, Options(
        _share("density", density, method) if chosen.prunes else 1.0,
        sign,
        _share("outliers", _OUTLIERS if outliers is None else outliers, method, least=0.0),
    )


_NUMBERS = {1: "one", 2: "two"}


def _share(name: str, share: Any, method: str, least: float | None = None) -> float:
    """Checks a share of a tensor's entries."""
    is_real = isinstance(share, int | float) and not isinstance(share, bool)
    if is_real and (0 < share <= 1 or share == least):
        return float(share)
    if share is None:
        raise AdapterError(
            f"the method {method!r} needs the share of the entries that it keeps. Pass it, above 0 "
            f"and at most 1: {option(name, 0.5)}."
        )
    lower = "above 0" if least is None else "at least 0"
    raise AdapterError(
        f"the method {method!r} got {name}={share!r}, expected the share of the entries that it "
        f"{'keeps' if name == 'density' else 'drops as outliers'}, {lower} and at most 1."
    )
