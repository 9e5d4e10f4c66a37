"""Uses of a weight that have no factored form, and what is said of them.

Such a use makes the dense weight, though `jaxmix.factored` is there to avoid just that. So it
warns where the way was left to it, and refuses where factored products were asked for.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxmix.errors import listing
from jaxmix.placement.quantized import is_quantized
from jaxmix.unmerged.weight import Weight

__all__ = ["Report", "Use", "as_array", "described", "refusal", "warning", "within"]

# Files whose lines tell a user nothing: JAX's, these here, and what stands between.
_OPAQUE = (f"{Path(jax.__file__).parent}{os.sep}", str(Path(__file__).parent), contextlib.__file__)


@dataclass(frozen=True)
class Use:
    """A use of a weight that has no factored form.

    Args:
        leaf: the leaf's dotted name.
        array: its shape and dtype, for people.
        why: what has no form: the operation, or a property of the leaf.
        place: where the program has the operation; empty if that is unknown.
    """

    leaf: str
    array: str
    why: str
    place: str = ""

    @property
    def reason(self) -> str:
        """What has no form, and where."""
        return f"{self.why}{self.place}"

    def __str__(self) -> str:
        return f"{self.leaf} ({self.array}): {self.reason}"


Report = Callable[[Use], Any]


def as_array(value: Any, report: Report, eqn: Any = None) -> Any:
    """The array that a weight stands for, for a use that has no factored form.

    Args:
        value: a weight, or anything else, which stays as it is.
        report: called with the use, unless dense weights were asked for.
        eqn: the equation that uses it; None where the function returns it.

    Returns:
        The array.
    """
    if not isinstance(value, Weight):
        return value
    if value.how != "dense":
        why = "the function returns it" if eqn is None else eqn.primitive.name
        report(Use(value.name, described(value), why, _place(eqn)))
    return value.dense()


def within(eqn: Any, report: Report) -> Report:
    """Reports what a program inside a program does; JAX's own programs have no place of their own.

    Args:
        eqn: the equation that runs the inner program.
        report: the outer program's report.

    Returns:
        A report that fills in the equation's place where there is none.
    """
    return lambda use: report(use if use.place else replace(use, place=_place(eqn)))


def described(array: Any) -> str:
    """The shape and dtype of a weight or a factored leaf, and whether a dense one is dequantized.

    Args:
        array: the weight, or the leaf.

    Returns:
        A few words.
    """
    dequantized = ", dequantized" if is_quantized(array.base) else ""
    return f"{array.shape} {array.dtype}{dequantized}"


def _place(eqn: Any) -> str:
    """Where a program has an equation: the innermost line that is not JAX's; empty if unknown."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        if not frame.file_name.startswith(_OPAQUE):
            return f" at {Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
    return ""


def warning(uses: Sequence[Use]) -> str:
    """What to say where the weights are made dense all the same.

    Args:
        uses: the uses, at least one.

    Returns:
        The warning's text.
    """
    return (
        f"factored makes {_count(uses)} dense at each call, where there is no factored form:"
        f"{listing(map(str, uses))}\nThis takes a pass over the weight and memory for a copy of "
        f"it. {_ADVICE}"
    )


def refusal(uses: Sequence[Use]) -> str:
    """What to say where factored products were asked for.

    Args:
        uses: the uses, at least one.

    Returns:
        The error's text.
    """
    return (
        f'factored got how="factored", expected a factored form for each use of a weight; '
        f"{_count(uses)} would be made dense:{listing(map(str, uses))}\n{_ADVICE} With "
        'how="auto" these uses take the dense weight, with a warning.'
    )


_ADVICE = (
    "Multiply tokens by the whole weight, convolve with it or look up its rows, or merge the "
    "adapters of these leaves with jaxmix.compose."
)


def _count(uses: Sequence[Use]) -> str:
    count = len({use.leaf for use in uses})
    return f"{count} weight{'' if count == 1 else 's'}"
