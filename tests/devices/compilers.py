"""Accelerators' compilers without a device, and a reader of the programs that they make.

The TPU's compiler is in libtpu (the extra ``tpu-compiler``), the GPU's in JAX's CUDA plugin (the
extra ``cuda-compiler``). Nothing runs: the cycles are the TPU compiler's own estimates.

    python -m tests.devices.compilers      (``make aot``) prints the tables
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, LoHa, LoKr, LoRA

__all__ = ["GOALS", "MIXES", "Program", "compiled", "has_tpu_compiler", "mix", "ratio"]

TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
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
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


@dataclass(frozen=True)
class Program:
    """What a compiler says of a program: its text, estimated cycles, and temporary bytes."""

    text: str
    cycles: int
    temporary: int


@cache
def device(name: str) -> SingleDeviceSharding:
    """Returns a TPU that only the compiler knows."""
    # Otherwise libtpu asks the network for the machine's metadata.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    found = topologies.get_topology_desc(platform="tpu", topology_name=TPUS[name])
    return SingleDeviceSharding(found.devices[0])


def compiled(run: Any, *args: Any, on: str) -> Program:
    """Compiles a function for a TPU; its first argument is donated.

    Args:
        run: The function.
        *args: Arrays or their shapes.
        on: "v5e" or "v6e".
    """

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=device(on))

    lowered = jax.jit(run, donate_argnums=0).lower(*jax.tree.map(placed, args))
    made: Any = lowered.compile()
    text = made.as_text()
    return Program(text, estimated_cycles(text), made.memory_analysis().temp_size_in_bytes)


def estimated_cycles(text: str) -> int:
    """Sums a program's estimated cycles; a loop's body counts as often as it runs."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[1]
            bodies[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current:
            bodies[current].append(line)

    def cycles(name: str) -> int:
        total = 0
        for line in bodies[name]:
            if loop := _LOOP.search(line):
                # The trip count is the largest constant of the condition, or of what it calls.
                where = [loop[1], *re.findall(r"calls=%?([\w.\-]+)", "\n".join(bodies[loop[1]]))]
                counts = [int(n) for at in where for n in _CONSTANT.findall("\n".join(bodies[at]))]
                total += max(counts, default=1) * cycles(loop[2])
            elif found := _CYCLES.search(line):
                total += int(found[1])
        return total

    return cycles(entry)


def mix(name: str, shape: tuple[int, int]) -> list[Adapter]:
    """Returns the shapes of a mix's adapters, of usual ranks, for one weight (out, in)."""
    out, into = shape

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.float32)

    made = {
        "lora": LoRA(array(16, into), array(out, 16), 2.0),
        "dora": LoRA(array(16, into), array(out, 16), 2.0, array(out)),
        "loha": LoHa(array(out, 8), array(8, into), array(out, 8), array(8, into), 2.0),
        "lokr": LoKr((array(64, 64),), (array(out // 64, 8), array(8, into // 64)), 2.0),
        "oft": OFT(array(into // 32, 32 * 31 // 2), terms=5),
    }
    return [Adapter({"a": made[kind]}, 0.7, kind) for kind in MIXES[name]]


@cache
def _floor(shape: tuple[int, int], on: str) -> int:
    """The cycles of one bare pass over a leaf."""
    return compiled(lambda w: w + 1, jax.ShapeDtypeStruct(shape, jnp.bfloat16), on=on).cycles


def ratio(name: str, shape: tuple[int, int], layout: str, *, on: str) -> tuple[float, Program]:
    """Returns a mix's cycles over those of a bare pass, and its program.

    Args:
        name: The mix, a key of `MIXES`.
        shape: (out, in) of the weight.
        layout: "torch" or "flax".
        on: "v5e" or "v6e".
    """
    torch = layout == "torch"
    stored = shape if torch else shape[::-1]
    leaf = jax.ShapeDtypeStruct(stored, jnp.bfloat16)
    params = {"a.weight": leaf} if torch else {"a": {"kernel": leaf}}
    program = compiled(
        lambda p, a: jaxmix.compose(p, a, layout=layout), params, mix(name, shape), on=on
    )
    return program.cycles / _floor(stored, on), program


def main() -> None:
    """Prints the tables."""
    if not has_tpu_compiler():
        print("The TPU's compiler is missing. Install it: pip install 'jaxmix-peft[tpu-compiler]'.")
        return
    print("| mix | weight | layout |", " | ".join(TPUS), "| goal |\n" + "| --- " * 6 + "|")
    for name, goal in GOALS.items():
        for shape in SHAPES:
            for layout in ("torch", "flax"):
                cells = [f"{ratio(name, shape, layout, on=on)[0]:.2f}" for on in TPUS]
                print(f"| {name} | {shape} | {layout} | {' | '.join(cells)} | {goal} |", flush=True)


if __name__ == "__main__":
    main()
