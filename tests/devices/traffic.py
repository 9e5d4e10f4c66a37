"""Counts the bytes that a compiled program moves between memory and its kernels.

Each instruction of the entry computation is a kernel: it reads its operands and writes its result.
An array that a kernel only slices, or changes in place, counts as the slice. A conditional counts
as its cheapest branch: jaxmix's others are for inputs that changed since they were attached.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["Kernel", "kernels", "traffic"]

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")
_INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = "
    r"(?P<type>\((?:[^()]|\([^()]*\))*\)|\S+) (?P<op>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[fsuc]\d+)\[([\d,]*)\](\{[^}]*\})?")
_BRANCHES = re.compile(r"(?:true|false)_computation=([^,]*)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:?\s*\{"?n"?:\s*"?(\d+)')
# These move nothing: they name arrays, or wait for what has been counted.
_FREE = frozenset(
    "parameter get-tuple-element tuple bitcast constant after-all opt-barrier partition-id".split()
)


# A GPU reads at least this much of its memory at once.
_SECTOR = 32


@dataclass(frozen=True)
class _Instruction:
    """One line of a program."""

    name: str
    type: str
    op: str
    rest: str
    is_root: bool

    @cached_property
    def size(self) -> int:
        """The bytes of its result in the chip's main memory."""
        return sum(_sizes(self.type))

    @cached_property
    def size_in_place(self) -> int:
        """The bytes that are read for it if it is a slice of an array, such as one column."""
        found = _SHAPE.search(self.type)
        if found is None:
            return self.size
        dtype, dims, layout = found.groups()
        shape = [int(n) for n in dims.split(",") if n]
        minor = re.match(r"\{(\d+)", layout or "")
        run = (shape[int(minor[1])] if minor else 1) * _bits(dtype) // 8
        return self.size * max(run, _SECTOR) // run

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """The computations of a conditional."""
        found = ",".join(part for pair in _BRANCHES.findall(self.rest) for part in pair if part)
        return tuple(re.findall(r"[\w.\-]+", found))

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of its operands."""
        depth = 1
        for end, character in enumerate(self.rest):
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0:
                return tuple(re.findall(r"%([\w.\-]+)", self.rest[:end]))
        return ()

    def called(self, word: str) -> str | None:
        """The computation that it names, as in ``calls=%name``."""
        found = re.search(rf"\b{word}=%?([\w.\-]+)", self.rest)
        return found and found[1]


@dataclass(frozen=True)
class Kernel:
    """An instruction of the entry or of a loop's body.

    Args:
        name: Its name.
        op: Its operation.
        type: The type of its result.
        bytes: The bytes that it reads and writes, in all its runs.
    """

    name: str
    op: str
    type: str
    bytes: int


@dataclass(frozen=True)
class _Text:
    """The computations of a program by name."""

    computations: dict[str, list[_Instruction]] = field(default_factory=dict)

    def bytes_of(self, one: _Instruction, sizes: dict[str, int]) -> int:
        """What an instruction reads and writes.

        Args:
            one: The instruction.
            sizes: The size of each array in its computation.
        """
        read = [sizes.get(name, 0) for name in one.operands]
        if one.op in ("dynamic-slice", "slice", "gather"):
            return 2 * one.size
        if one.op == "dynamic-update-slice":
            return 2 * sizes.get(one.operands[1], 0)
        inner = self.computations.get(one.called("calls") or "", [])
        if one.op != "fusion" or not inner:
            return sum(read) + one.size
        where = {i.name: i for i in inner}
        for i in inner:
            if i.op == "parameter":
                number = int(i.rest.split(")")[0])
                read[number] = min(read[number], _read_of(i, inner))
        root = next(i for i in inner if i.is_root)
        return sum(read) + _written_by(root, where)


def _read_of(parameter: _Instruction, inner: list[_Instruction]) -> int:
    """The bytes that a fusion reads of one operand."""
    names, total = {parameter.name}, 0
    for one in inner:
        at = [i for i, name in enumerate(one.operands) if name in names]
        if not at:
            continue
        if one.op == "bitcast":
            names.add(one.name)
        elif one.op in ("dynamic-slice", "slice"):
            total += one.size_in_place
        elif not (one.op == "dynamic-update-slice" and at == [0]):
            return parameter.size
    return total


def _written_by(root: _Instruction, where: dict[str, _Instruction]) -> int:
    """The bytes that a fusion's root writes."""
    if root.op in ("tuple", "bitcast"):
        return sum(_written_by(where[name], where) for name in root.operands)
    if root.op == "dynamic-update-slice":
        return where[root.operands[1]].size
    return root.size


def _bits(dtype: str) -> int:
    """The bits of a number: 8 for pred and for f8e4m3fn."""
    return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])


def _sizes(text: str) -> Iterator[int]:
    """The bytes of each array in a type; none for those in memory next to the kernels."""
    for dtype, dims, layout in _SHAPE.findall(text):
        number = math.prod(int(n) for n in dims.split(",") if n)
        yield 0 if "S(" in layout else number * _bits(dtype) // 8


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a compiled program; a loop's body counts as often as it runs.

    Args:
        text: The HLO that ``compiled.as_text()`` returns.
    """
    program, entry, current = _Text(), "", ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[2]
            program.computations[current] = []
            entry = current if found[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and (found := _INSTRUCTION.match(line)):
            program.computations[current].append(
                _Instruction(found["name"], found["type"], found["op"], found["rest"],
                             bool(found["root"]))
            )  # fmt: skip

    def walk(name: str, times: int) -> Iterator[Kernel]:
        sizes = {one.name: one.size for one in program.computations[name]}
        for one in program.computations[name]:
            if one.op == "while":
                trips = _TRIPS.search(one.rest)
                yield from walk(one.called("body") or "", times * int(trips[1] if trips else 1))
            elif one.op == "call":
                yield from walk(one.called("to_apply") or "", times)
            elif one.op == "conditional":
                found = [list(walk(branch, times)) for branch in one.branches]
                yield from min(found, key=lambda run: sum(kernel.bytes for kernel in run))
            elif one.op not in _FREE and not one.op.endswith("-done"):
                moved = program.bytes_of(one, sizes)
                yield Kernel(one.name, one.op, one.type, times * moved)

    return list(walk(entry, 1))


def traffic(text: str) -> int:
    """Returns the bytes that all kernels of a compiled program read and write."""
    return sum(kernel.bytes for kernel in kernels(text))
