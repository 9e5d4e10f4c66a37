"""Uses of a weight without a factored form, and the messages about them.

Such a use makes the weight dense, which `jaxmix.factored` is meant to avoid. It warns with
``how="auto"`` and refuses with ``how="factored"``.
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

# Files whose lines do not help users: those of JAX, of this package, and wrappers between them.
_OPAQUE = (f"{Path(jax.__file__).parent}{os.sep}", str(Path(__file__).parent), contextlib.__file__)


@dataclass(frozen=True)
class Use:
    """A use of a weight without a factored form.

    Args:
        leaf: The leaf's dotted name.
        array: Its shape and dtype, as a string.
        why: The operation, or the property of the leaf, that has no factored form.
        place: The operation's place in the program; empty if unknown.
    """

    leaf: str
    array: str
    why: str
    place: str = ""

    @property
    def reason(self) -> str:
        """The use as one line of a message."""
        return f"{self.why}{self.place}"

    def __str__(self) -> str:
        return f"{self.leaf} ({self.array}): {self.reason}"


Report = Callable[[Use], Any]


def as_array(value: Any, report: Report, eqn: Any = None) -> Any:
    """Returns a weight's dense array, for a use without a factored form.

    Args:
        value: A weight; any other value is returned unchanged.
        report: Called with the use, unless dense weights were requested.
        eqn: The equation that uses it; None if the function returns it.

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
    """Returns a report for an inner program.

    Args:
        eqn: The equation that runs the inner program.
        report: The outer program's report.

    Returns:
        A report that uses the equation's place for uses without one, as in JAX's own programs.
    """
    return lambda use: report(use if use.place else replace(use, place=_place(eqn)))


def described(array: Any) -> str:
    """Describes the shape and dtype of a weight, and whether it is dequantized.

    Args:
        array: The weight, or the attached leaf.

    Returns:
        A short string.
    """
    dequantized = ", dequantized" if is_quantized(array.base) else ""
    return f"{array.shape} {array.dtype}{dequantized}"


def _place(eqn: Any) -> str:
    """An equation's place: the innermost line outside of JAX; empty if unknown."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        if not frame.file_name.startswith(_OPAQUE):
            return f" at {Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
    return ""


def warning(uses: Sequence[Use], caller: str = "factored", often: str = "at each call") -> str:
    """Returns the warning about weights that are made dense.

    Args:
        uses: The uses, at least one.
        caller: What makes them dense.
        often: When it does.

    Returns:
        The warning's text.
    """
    return (
        f"{caller} makes {_count(uses)} dense {often}, where there is no factored form:"
        f"{listing(map(str, uses))}\nThis takes a pass over the weight and memory for a copy of "
        f"it. {_ADVICE}"
    )


def refusal(uses: Sequence[Use], caller: str = "factored") -> str:
    """Returns the error for uses that would make weights dense.

    Args:
        uses: The uses, at least one.
        caller: What refuses them.

    Returns:
        The error's text.
    """
    return (
        f'{caller} got how="factored", expected a factored form for each use of a weight; '
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
