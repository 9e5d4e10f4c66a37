"""Writes what the TPUs' and the GPU's compilers estimate into the pages, without a chip.

    JAX_PLATFORMS=cpu python -m tests.devices.tables [TABLE …]      (``make aot``)

It prints each figure as soon as it is known, with the seconds since the start, and writes each
table as soon as it is complete.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmix
from jaxmix import Bank

from ..benchmarks.chips import MODELS
from ..house.sources import ROOT
from . import compile_times, llama
from .compilers import GOALS, MIXES, TPUS, Program, compiled, has_tpu_compiler, ratio, update
from .gpu import has_gpu_compiler
from .llama import LLAMA_8B
from .sharded_memory import USES
from .test_compiled_factored import attached

__all__ = ["TABLES", "Table", "by_family", "main", "written"]

CHIPS = {"v5e": "v5e", "v6e": "v6e", "tpu7x": "tpu7x", "h100": "H100"}
SHAPES = ((14336, 4096), (4096, 14336), (1024, 4096))
FACTORED = ("LoRA", "LoHa", "LoRA+LoHa+LoKr", "OFT+LoRA", "DoRA")
TOKENS = (1, 128, 2048)
ROWS, KINDS = 64, ("LoRA", "LoHa", "LoKr")
THREE = "LoRA+LoHa+LoKr"
END = "<!-- until here -->\n"
_START = time.monotonic()


@dataclass(frozen=True)
class Table:
    """A table: its head, and its rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Returns the table as on a page."""
        lines = (self.head, tuple("---" for _ in self.head), *self.rows)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def say(*words: Any) -> None:
    """Prints a line with the seconds since the start."""
    print(f"{time.monotonic() - _START:6.0f} s ", *words, flush=True)


def cost(run: Callable[..., Any], *args: Any, on: str) -> int:
    """Returns a program's cycles on a TPU, its traffic on a GPU; the first argument is donated."""
    program = compiled(run, *args, on=on)
    return program.cycles if on in TPUS else program.traffic


# ---------------------------------------------------------------- compose


@cache
def _composed(name: str, shape: tuple[int, int], layout: str, on: str) -> tuple[float, Program]:
    times, program = ratio(name, shape, layout, on=on)
    say("compose", name, shape, layout, on, f"{times:.2f}, {program.temporary / 1e6:.1f} MB")
    return times, program


def _compose(shapes: Sequence[tuple[int, int]], cell: Callable[[float, Program], str]) -> Table:
    rows = [
        (
            name,
            f"{shape[0]} × {shape[1]}",
            layout,
            *(cell(*_composed(name, shape, layout, on)) for on in CHIPS),
        )
        for name in GOALS
        for shape in shapes
        for layout in ("torch", "flax")
    ]
    return Table(("mix", "weight", "layout", *CHIPS.values()), tuple(rows))


def compose() -> Table:
    """The costs of compose."""
    return _compose(SHAPES, lambda times, _: f"{times:.2f}")


def temporary() -> Table:
    """The temporary memory of compose."""
    return _compose(SHAPES[:1], lambda _, program: f"{program.temporary / 1e6:.1f}")


# ---------------------------------------------------------------- unmerged


def _adapters(name: str) -> list[jaxmix.Adapter]:
    weights = llama.layers(LLAMA_8B, 1)
    return [llama.adapter(weights, partial(update, kind), kind) for kind in MIXES[name]]


def _tokens(rows: int, length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length, LLAMA_8B.hidden), jnp.bfloat16)


def _run(donated: None, params: Any, x: Any) -> Any:
    return llama.forward(params, x)


def _run_factored(donated: None, leaves: Any, x: Any) -> Any:
    return jaxmix.factored(llama.forward)(leaves, x)


@cache
def _alone(rows: int, length: int, on: str) -> int:
    return cost(_run, None, llama.layers(LLAMA_8B, 1), _tokens(rows, length), on=on)


def factored() -> Table:
    """The costs of a layer with adapters over those of the layer alone."""
    rows = []
    for name in FACTORED:
        leaves = jax.eval_shape(attached, llama.layers(LLAMA_8B, 1), _adapters(name))
        for length in TOKENS:
            cells = []
            for on in CHIPS:
                found = cost(_run_factored, None, leaves, _tokens(1, length), on=on)
                cells.append(f"{found / _alone(1, length, on):.2f}")
                say("factored", name, length, "tokens", on, cells[-1])
            rows.append((name, str(length), *cells))
    return Table(("mix", "tokens", *CHIPS.values()), tuple(rows))


def bank() -> Table:
    """The costs of a batch with a bank over those of other batches."""
    params, x = llama.layers(LLAMA_8B, 1), _tokens(ROWS, 1)
    made = [_adapters(kind)[0] for kind in KINDS]
    members = {f"{i}": made[i % len(made)] for i in range(8)}
    bank = jax.eval_shape(Bank, members, params)
    who = jax.ShapeDtypeStruct((ROWS,), np.int32)

    def run(donated: None, bank: Any, params: Any, x: Any, who: Any) -> Any:
        return bank(llama.forward)(params, x, who)

    rows: dict[str, list[str]] = {
        "the same, with one LoRA for all rows": [],
        f"the same, with one {THREE} for all rows": [],
        "the same, without adapters": [],
    }
    for on in CHIPS:
        found = cost(run, None, bank, params, x, who, on=on)
        others = [
            cost(_run_factored, None, jax.eval_shape(attached, params, _adapters(name)), x, on=on)
            for name in ("LoRA", THREE)
        ]
        for row, other in zip(rows.values(), (*others, _alone(ROWS, 1, on)), strict=True):
            row.append(f"{found / other:.2f}")
        say("Bank", on, *(row[-1] for row in rows.values()))
    head = ("over the batch", *CHIPS.values())
    return Table(head, tuple((name, *row) for name, row in rows.items()))


# ---------------------------------------------------------------- time to compile


def seconds() -> Table:
    """The seconds of CPU time to compile compose, as it runs outside of jit and as one program."""

    def timed(label: str, layers: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
        params = llama.layers(LLAMA_8B, layers)
        if names is not None:
            params = {
                f"layers.0.{name}.weight": params[f"layers.0.{name}.weight"] for name in names
            }
        made = [llama.adapter(params, partial(update, kind), kind) for kind in MIXES[THREE]]
        before = time.process_time()
        compiled(jaxmix.compose, params, made, on="v5e")
        found = f"{time.process_time() - before:.1f}"
        say("compile", label, found, "s of CPU time")
        return label, found

    shapes = ("q_proj", "k_proj", "gate_proj", "down_proj")
    rows = [timed(f"the program for `{name}`", 1, [name]) for name in shapes]
    rows.append(
        ("these four, which outside of `jit` are all", f"{sum(float(s) for _, s in rows):.1f}")
    )
    rows.append(timed("all weights of one layer in one `jit`", 1))
    rows.append(timed("all weights of 32 layers in one `jit`", 32))
    return Table(("program", "s"), tuple(rows))


LONG = 5  # a family that takes longer has its own row


def families() -> Table:
    """The seconds of CPU time to compile each family, for one weight."""
    found: dict[str, dict[str, float]] = {}
    for kind, program, took in compile_times.measured(compile_times.KINDS):
        say("compile", kind, program, "stopped" if took is None else f"{took:.1f} s of CPU time")
        found.setdefault(kind, {})[program] = math.inf if took is None else took
    rows = by_family(found)
    return Table(("family", "`compose`", f"unmerged, {compile_times.TOKENS} tokens"), rows)


def by_family(found: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], ...]:
    """Returns a row for each family that takes long, and one row for all others.

    Args:
        found: The seconds of each program of each family; infinity if it was stopped.
    """

    def cell(seconds: float) -> str:
        return f"{seconds:.1f}" if seconds < math.inf else f"over {compile_times.LIMIT}"

    long = {kind: times for kind, times in sorted(found.items()) if max(times.values()) > LONG}
    rows = [(kind, *map(cell, times.values())) for kind, times in long.items()]
    others = [tuple(times.values()) for kind, times in found.items() if kind not in long]
    if others:
        most = (f"at most {max(column):.1f}" for column in zip(*others, strict=True))
        rows.append((f"the other {len(others)}", *most))
    return tuple(rows)


# ---------------------------------------------------------------- memory


def memory() -> Table:
    """The memory of one layer on a v5e-256, by the calculator and by the compiler."""
    rows = []
    for model in MODELS:
        for use, measured in USES.items():
            found = measured(model)
            rows.append(
                (
                    model.name,
                    use,
                    f"{found.held / 1e6:.1f}",
                    f"{found.held_compiled / 1e6:.1f}",
                    f"{found.passing / 1e6:.1f}",
                    f"{found.passing_compiled / 1e6:.1f}",
                )
            )
            say("memory", *rows[-1])
    head = "model", "use", "held", "by the compiler", "temporary", "by the compiler"
    return Table(head, tuple(rows))


# ---------------------------------------------------------------- pages

DOCS = ROOT / "docs"
# The name of each table, as in its mark on a page: the page, and what makes it.
TABLES: dict[str, tuple[Path, Callable[[], Table]]] = {
    "compose": (DOCS / "accelerators.md", compose),
    "temporary": (DOCS / "accelerators.md", temporary),
    "factored": (DOCS / "accelerators.md", factored),
    "bank": (DOCS / "accelerators.md", bank),
    "seconds": (DOCS / "accelerators.md", seconds),
    "families": (DOCS / "accelerators.md", families),
    "memory": (DOCS / "scale.md", memory),
}


def written(page: str, name: str, content: str) -> str:
    """Returns a page with the content between a table's mark and the next end mark."""
    before, rest = page.split(f"<!-- {name} -->\n")
    return f"{before}<!-- {name} -->\n{content}\n{END}{rest.split(END, 1)[1]}"


def main(names: Sequence[str]) -> None:
    """Makes tables and writes them into their pages."""
    if unknown := [name for name in names if name not in TABLES]:
        raise SystemExit(f"unknown tables {unknown}; there are {', '.join(TABLES)}")
    if not (has_tpu_compiler() and has_gpu_compiler()):
        raise SystemExit("a compiler is missing: `make aot` installs the TPU's and the GPU's")
    versions = f"JAX {version('jax')}, libtpu {version('libtpu')}"
    for name in names or TABLES:
        page, make = TABLES[name]
        before = sum(os.times()[:4])  # with that of processes that ended
        table = make()
        minutes = (sum(os.times()[:4]) - before) / 60
        # Tables of programs that another table compiled take none.
        took = f"; {minutes:.1f} minutes of CPU time" if minutes >= 0.05 else ""
        content = f"{table.markdown()}\n\n{versions}{took}."
        page.write_text(written(page.read_text(encoding="utf-8"), name, content), encoding="utf-8")
        say("written:", name, "in", page.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
