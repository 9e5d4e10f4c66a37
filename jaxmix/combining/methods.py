"""The table of methods: which formula, what each needs, and what it is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Array

from jaxmix.combining import formulas
from jaxmix.combining.formulas import MajoritySign, Options
from jaxmix.errors import AdapterError

__all__ = ["METHODS", "Method", "checked_options"]

_OUTLIERS = 0.01


@dataclass(frozen=True)
class Method:
    """A way to combine.

    Args:
        name: what people call it.
        formula: its formula, of `jaxmix.combining.formulas`.
        on_factors: whether LoRAs are combined factor by factor, as PEFT does, and not by their Δ.
        svd: whether the result is of low rank, by SVD.
        prunes: whether it needs a density.
        random: whether it needs a key.
        votes: whether it elects signs by a rule that can be chosen.
        crops: whether it drops outliers.
        weighted: whether it takes weights; if not it finds its own.
        counts: how many adapters it takes, the fewest and the most.
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
        """The name of the same method on Δ's, cut to a rank."""
        return "svd" if self.name == "linear" else f"{self.name}_svd"


def _both(name: str, formula: Any, **needs: Any) -> tuple[Method, Method]:
    """A method of PEFT's on factors, and the same on Δ's."""
    one = Method(name, formula, on_factors=True, **needs)
    return one, Method(one.by_svd, formula, svd=True, **needs)


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
    """The method meant, and its options; nothing that is given is left unused.

    Args:
        method: its name.
        count: how many adapters are to be combined.
        has_weights: whether the user gave weights.
        has_rank: whether the user gave a rank, and so the result is made by SVD.
        density: what the user said, or None.
        key: what the user said, or None.
        majority_sign: what the user said, or None.
        outliers: what the user said, or None.

    Returns:
        The method and the options.

    Raises:
        AdapterError: if there is no such method, or it lacks something, or is given what it has no
            use for.
    """
    found = METHODS.get(method) if isinstance(method, str) else None
    if found is None:
        raise AdapterError(f"there is no method {method!r}, expected one of {', '.join(METHODS)}.")
    least, most = found.counts
    if not least <= count <= most:
        expected = "exactly two" if most == 2 else f"at least {_NUMBERS[least]}"
        raise AdapterError(f"the method {method!r} got {count} adapters, expected {expected}.")
    needless = {
        "density": density is not None and not found.prunes,
        "majority_sign": majority_sign is not None and not found.votes,
        "outliers": outliers is not None and not found.crops,
        "weights": has_weights and not found.weighted,
        "key": key is not None and not (found.random or found.svd or has_rank),
    }
    if names := [name for name, is_needless in needless.items() if is_needless]:
        raise AdapterError(
            f"the method {method!r} has no use for {', '.join(names)}. Leave it out, or choose "
            "another method."
        )
    if found.random and key is None:
        raise AdapterError(
            f"the method {method!r} drops entries at random and got no key: give "
            "key=jax.random.key(0), or another."
        )
    sign = get_args(MajoritySign)[0] if majority_sign is None else majority_sign
    if sign not in get_args(MajoritySign):
        raise AdapterError(f"majority_sign is {majority_sign!r}, expected 'total' or 'frequency'.")
    return found, Options(
        _share("density", density, method) if found.prunes else 1.0,
        sign,
        _share("outliers", _OUTLIERS if outliers is None else outliers, method, least=0.0),
    )


_NUMBERS = {1: "one", 2: "two"}


def _share(name: str, share: Any, method: str, least: float | None = None) -> float:
    """A share of a tensor's entries."""
    is_real = isinstance(share, int | float) and not isinstance(share, bool)
    if is_real and (0 < share <= 1 or share == least):
        return float(share)
    above = "above 0" if least is None else "from 0 on"
    raise AdapterError(
        f"the method {method!r} got {name}={share!r}, expected the share of the entries that it "
        f"{'keeps' if name == 'density' else 'drops as too large'}, {above} and at most 1."
    )
