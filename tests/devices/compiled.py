"""Reads compiled programs: their collectives, and the arrays that each device holds.

The text is HLO after partitioning, so that all shapes in it are those of one device.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Collective", "collectives", "large", "largest", "written"]

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# `%name = type op(`, where the type is `f32[2,3]{1,0}` or a tuple of such.
_LINE = re.compile(
    r"=\s+(?P<type>\((?:[^()]|\([^()]*\))*\)|\S+)\s+(?P<op>[a-z][\w-]*)\(", re.MULTILINE
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{\s*$")
# Operations that write nothing, or copy an array between memories as it is.
_UNWRITTEN = ("bitcast", "copy-done", "copy-start", "get-tuple-element", "parameter", "tuple")
_SHAPE = re.compile(r"\b(?P<dtype>pred|bf16|[fsuc]\d+\w*)\[(?P<dims>[\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """A collective, and how many numbers each device receives from it."""

    kind: str
    size: int


def _sizes(text: str) -> list[int]:
    """Returns the sizes of all arrays in a type."""
    return [
        math.prod(int(n) for n in dims.split(",") if n)
        for dims in (found["dims"] for found in _SHAPE.finditer(text))
    ]


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """(operation, type of its result) of each instruction."""
    for found in _LINE.finditer(text):
        yield found["op"], found["type"]


def collectives(text: str) -> list[Collective]:
    """Returns all collectives of a compiled program, asynchronous ones included.

    Args:
        text: The HLO that ``compiled.as_text()`` returns.
    """
    found = []
    for op, kind in _instructions(text):
        name = op.removesuffix("-start")
        if name in _KINDS:
            found.append(Collective(name, sum(_sizes(kind))))
    return found


def large(text: str, size: int) -> list[Collective]:
    """Returns the collectives from which a device receives at least this many numbers."""
    return [one for one in collectives(text) if one.size >= size]


def largest(text: str) -> int:
    """Returns the size of the largest array on a device, intermediate results included."""
    return max((size for _, kind in _instructions(text) for size in _sizes(kind)), default=0)


def written(text: str, dtype: str, size: int) -> list[str]:
    """Returns the types of results that are written out whole, outside of fusions.

    Args:
        text: The HLO.
        dtype: Their dtype, such as "f32".
        size: The least number of elements.
    """
    unfused: list[str] = []
    is_fused = False
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            is_fused = "fused_computation" in found["name"]
        elif not is_fused:
            unfused.append(line)
    return [
        kind
        for op, kind in _instructions("\n".join(unfused))
        if op not in _UNWRITTEN
        for array in _SHAPE.finditer(kind)
        if array["dtype"] == dtype and max(_sizes(array[0]), default=0) >= size
    ]
