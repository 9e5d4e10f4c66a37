"""Accelerators' compilers without a device, and what they say of the programs that they make.

The TPU's compiler is in libtpu (the extra ``tpu-compiler``), the GPU's in JAX's CUDA plugin (the
extra ``cuda-compiler``). Nothing runs. A program's cost is what the TPU's compiler estimates in
cycles. The GPU's compiler estimates nothing, so there it is the bytes that all kernels read and
write.

    make aot      writes the tables of docs/accelerators.md
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, LoHa, LoKr, LoRA

from . import gpu
from .traffic import traffic

__all__ = [
    "GOALS",
    "MIXES",
    "TPUS",
    "Program",
    "compiled",
    "copied_bytes",
    "estimated_cycles",
    "has_tpu_compiler",
    "mix",
    "ratio",
    "tpus",
    "update",
]

TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
SHAPES = ((14336, 4096), (4096, 14336), (1024, 4096))
MIXES = {
    "LoRA": ("lora",),
    "LoHa": ("loha",),
    "LoKr": ("lokr",),
    "LoRA+LoHa+LoKr": ("lora", "loha", "lokr"),
    "OFT": ("oft",),
    "OFT+LoRA": ("oft", "lora"),
    "DoRA": ("dora",),
}
# The most estimated cycles of a mix into one donated leaf, over those of ``w + 1``.
GOALS = {
    "LoRA": 1.15,
    "LoHa": 1.3,
    "LoKr": 1.3,
    "LoRA+LoHa+LoKr": 1.7,
    "OFT": 2.1,
    "DoRA": 2.4,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SLICE = re.compile(r" dynamic-update-slice\(%?[\w.\-]+, %?([\w.\-]+)")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


@dataclass(frozen=True)
class Program:
    """What a compiler says of a program: its text, and temporary bytes."""

    text: str
    temporary: int

    @cached_property
    def cycles(self) -> int:
        """The cycles that the TPU's compiler estimates."""
        return estimated_cycles(self.text)

    @cached_property
    def copied(self) -> int:
        """The bytes of slices that are copied into an array besides these cycles."""
        return copied_bytes(self.text)

    @cached_property
    def traffic(self) -> int:
        """The bytes that all kernels read and write."""
        return traffic(self.text)


@cache
def tpus(topology: str) -> list[Any]:
    """Returns TPUs that only the compiler knows."""
    # Otherwise libtpu asks the network for the machine's metadata.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def device(name: str) -> SingleDeviceSharding:
    """Returns one chip that only the compiler knows."""
    found = gpu.topology().devices if name == "h100" else tpus(TPUS[name])
    return SingleDeviceSharding(found[0])


def compiled(run: Any, *args: Any, on: str) -> Program:
    """Compiles a function for a chip; its first argument is donated.

    Args:
        run: The function.
        *args: Arrays or their shapes.
        on: A key of `TPUS`, or "h100".
    """

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=device(on))

    lowered = jax.jit(run, donate_argnums=0).lower(*jax.tree.map(placed, args))
    made: Any = lowered.compile()
    return Program(made.as_text(), made.memory_analysis().temp_size_in_bytes)


def estimated_cycles(text: str) -> int:
    """Sums a program's estimated cycles; a loop's body counts as often as it runs."""

    def cost(line: str, _: Sequence[str]) -> int:
        found = _CYCLES.search(line)
        return int(found[1]) if found else 0

    return _sum_of_runs(text, cost)


def copied_bytes(text: str) -> int:
    """Sums the slices that are copied into an array, for which no cycles are estimated."""

    def cost(line: str, lines: Sequence[str]) -> int:
        found = _SLICE.search(line)
        if not found or _CYCLES.search(line):
            return 0
        shape = re.compile(rf" %?{re.escape(found[1])} = [a-z]+(\d+)\[([\d,]*)\]")
        bits, sizes = next(match for other in lines if (match := shape.search(other))).groups()
        return math.prod(int(n) for n in sizes.split(",") if n) * int(bits) // 8

    return _sum_of_runs(text, cost)


def _sum_of_runs(text: str, cost: Callable[[str, Sequence[str]], int]) -> int:
    """Sums the costs of a program's lines; a loop's body counts as often as it runs."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[1]
            bodies[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current:
            bodies[current].append(line)

    def total(name: str) -> int:
        result = 0
        for line in bodies[name]:
            if loop := _LOOP.search(line):
                # The trip count is the largest constant of the condition, or of what it calls.
                where = [loop[1], *re.findall(r"calls=%?([\w.\-]+)", "\n".join(bodies[loop[1]]))]
                counts = [int(n) for at in where for n in _CONSTANT.findall("\n".join(bodies[at]))]
                result += max(counts, default=1) * total(loop[2])
            else:
                result += cost(line, bodies[name])
        return result

    return total(entry)


def update(kind: str, shape: tuple[int, int]) -> Any:
    """Returns the shapes of an update of usual rank for a weight (out, in)."""
    out, into = shape

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.float32)

    match kind:
        case "lora":
            return LoRA(array(16, into), array(out, 16), 2.0)
        case "dora":
            return LoRA(array(16, into), array(out, 16), 2.0, array(out))
        case "loha":
            return LoHa(array(out, 8), array(8, into), array(out, 8), array(8, into), 2.0)
        case "lokr":
            return LoKr((array(64, 64),), (array(out // 64, 8), array(8, into // 64)), 2.0)
        case _:
            return OFT(array(into // 32, 32 * 31 // 2), terms=5)


def mix(name: str, shape: tuple[int, int]) -> list[Adapter]:
    """Returns the shapes of a mix's adapters for one weight (out, in)."""
    return [Adapter({"a": update(kind, shape)}, 0.7, kind) for kind in MIXES[name]]


@cache
def _pass(shape: tuple[int, int], on: str) -> int:
    """The cycles of one bare pass over a leaf."""
    return compiled(lambda w: w + 1, jax.ShapeDtypeStruct(shape, jnp.bfloat16), on=on).cycles


def ratio(name: str, shape: tuple[int, int], layout: str, *, on: str) -> tuple[float, Program]:
    """Returns what a mix costs over the least that it can cost, and its program.

    On a TPU these are its cycles over those of ``w + 1``, which reads the leaf and writes it. Bytes
    that are copied without estimated cycles take as long there as they do in ``w + 1``. On a GPU it
    is its traffic over the bytes of the leaf, twice, and of the factors.

    Args:
        name: The mix, a key of `MIXES`.
        shape: (out, in) of the weight.
        layout: "torch" or "flax".
        on: A key of `TPUS`, or "h100".
    """
    torch = layout == "torch"
    stored = shape if torch else shape[::-1]
    leaf = jax.ShapeDtypeStruct(stored, jnp.bfloat16)
    params = {"a.weight": leaf} if torch else {"a": {"kernel": leaf}}
    adapters = mix(name, shape)
    program = compiled(lambda p, a: jaxmix.compose(p, a, layout=layout), params, adapters, on=on)
    if on in TPUS:
        cycles = program.cycles / _pass(stored, on)
        return cycles + program.copied / (4 * np.prod(shape)), program
    factors = sum(np.size(x) * 4 for x in jax.tree.leaves(adapters))
    return program.traffic / (4 * np.prod(shape) + factors), program
