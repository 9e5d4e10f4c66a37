"""Estimates memory and time per chip for large models: what fits, and what is the limit.

    python -m tests.benchmarks.chips

Memory is computed from shapes by rules that tests/devices/test_chips.py checks on 8 devices. Times
are the minimum that a chip's figures allow (a roofline); nothing here was run on such chips.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

GB = 1e9


@dataclass(frozen=True)
class Chips:
    """Chips of one kind, and the two axes of their mesh, over both of which the base is sharded.

    Args:
        name: Their name.
        mesh: Their number along each axis, (data, model).
        hbm: Bytes of memory per chip.
        bandwidth: Bytes per second to that memory.
        flops: Dense bfloat16 operations per second.
        flops32: Float32 operations per second in full precision.
        link: Bytes per second to the other chips, one way.
    """

    name: str
    mesh: tuple[int, int]
    hbm: float
    bandwidth: float
    flops: float
    flops32: float
    link: float

    @property
    def count(self) -> int:
        return math.prod(self.mesh)


# https://cloud.google.com/tpu/docs/v5e: 16 GB, 819 GB/s, 197 TFLOP/s, 400 GB/s between chips, in
# both directions together; float32 products at the highest precision are six in bfloat16.
V5E = Chips("v5e-256", (16, 16), 16 * GB, 819 * GB, 197e12, 197e12 / 6, 200 * GB)
# https://www.nvidia.com/en-us/data-center/h100, SXM: 80 GB, 3.35 TB/s, 1979 TFLOP/s with sparsity
# and half of it without, 67 in float32, NVLink 900 GB/s in both directions together.
H100 = Chips("8×H100", (1, 8), 80 * GB, 3350 * GB, 989e12, 67e12, 450 * GB)


@dataclass(frozen=True)
class Llama:
    """A Llama by its sizes."""

    name: str
    hidden: int
    layers: int
    kv: int  # key entries per token and layer: heads times their size
    ffn: int
    vocab: int

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of a layer's seven weights."""
        h, f = self.hidden, self.ffn
        return (h, h), (self.kv, h), (self.kv, h), (h, h), (f, h), (f, h), (h, f)

    @property
    def adapted(self) -> int:
        """The number of entries in the weights that adapters change."""
        return self.layers * sum(map(math.prod, self.linears))

    @property
    def params(self) -> int:
        """The number of entries in all weights except the norms, which are small."""
        return self.adapted + 2 * self.vocab * self.hidden

    def factors(self, rank: int) -> int:
        """The number of entries in a LoRA at all linear layers."""
        return self.layers * rank * sum(map(sum, self.linears))

    def parts(self, rank: int, mesh: tuple[int, int]) -> float:
        """The same per chip if B's rows and A's columns are sharded like the weight's."""
        over_rows, over_cols = mesh
        sides = sum(out / over_rows + into / over_cols for out, into in self.linears)
        return self.layers * rank * sides


# Their config.json on the hub: meta-llama/Llama-3.1-70B, meta-llama/Llama-3.1-405B.
MODELS = (
    Llama("70B", 8192, 80, 1024, 28672, 128256),
    Llama("405B", 16384, 126, 1024, 53248, 128256),
)


@dataclass(frozen=True)
class Bill:
    """What one way of using adapters needs of each chip.

    Args:
        what: A description of the use.
        memory: Bytes by purpose.
        seconds: The minimum time of each part.
        grows: What fills the remaining memory, and the bytes of one such item.
    """

    what: str
    memory: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    grows: tuple[str, float] = ("", math.inf)

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    def verdict(self, chips: Chips) -> str:
        """The first limit that is reached."""
        room = chips.hbm - self.bytes
        if room < 0:
            worst = max(self.memory, key=lambda name: self.memory[name])
            return f"does not fit: {worst}"
        name, each = self.grows
        return f"fits; full at {room / each:,.0f} more {name}" if name else "fits"


def compose(
    model: Llama, chips: Chips, rank: int = 16, item: int = 2, donate: bool = False
) -> Bill:
    """A LoRA composed into all linear layers, leaf by leaf.

    The leaf and Δ in float32 exist at the same time. Factors from a file are sharded over the
    chips.
    """
    n, largest = chips.count, max(map(math.prod, model.linears))
    base, factors = model.params * item / n, 4 * model.parts(rank, chips.mesh)
    memory = {
        "weights": base,
        "result": 0 if donate else model.adapted * item / n,
        "factors": factors,
        "one leaf": 2 * largest * 4 / n,
    }
    moved = model.adapted * (2 * item + 8) / n
    return Bill(
        f"compose{', donated' if donate else ''}",
        memory,
        {
            "memory": moved / chips.bandwidth,
            "products": 2 * rank * model.adapted / n / chips.flops32,
        },
        ("adapters' factors", factors),
    )


def run(
    model: Llama,
    chips: Chips,
    rows: int,
    length: int,
    context: int,
    rank: int = 16,
    adapters: int = 0,
    item: int = 2,
) -> Bill:
    """Runs rows of `length` tokens with `context` tokens before them through base and factors.

    Weights stay in place, and activations move (2D, weight-stationary). Keys and values are sharded
    over all chips, factors over the model axis; over both axes, tokens would have to be moved to
    them. With `adapters`, the factors form a bank in float32, and each row reads its own.
    """
    n, tokens = chips.count, rows * length
    weights = model.params * item / n
    cache = 2 * model.layers * model.kv * item / n
    data, over = chips.mesh
    factors = model.factors(rank) * (4 if adapters else item) / over
    held = {
        "weights": weights,
        "factors": factors * max(adapters, 1),
        "keys and values": rows * (context + length) * cache,
        # The widest activations, three at a time; they may be replicated along the model axis.
        "activations": 3 * tokens * (model.hidden + model.ffn) * 4 / data,
    }
    read = weights + factors * (min(rows, adapters) or 1) + held["keys and values"]
    # Twice a layer an all-gather and a reduce-scatter along each axis (arXiv 2211.05102, 2D).
    widths = [model.hidden / axis for axis in chips.mesh if axis > 1]
    moved = model.layers * 4 * tokens * item * sum(widths)
    work = 2 * (model.params + model.factors(rank)) * tokens / n
    name = "decode" if length == 1 else "prefill"
    what = f"Bank of {adapters:,}, {name}" if adapters else f"factored {name}"
    grows = ("adapters", factors) if adapters else ("cached tokens", cache)
    seconds = {
        "memory": read / chips.bandwidth,
        "products": work / chips.flops,
        "links": moved / chips.link,
    }
    return Bill(f"{what}, {rows} × {length} tokens", held, seconds, grows)


def train(
    model: Llama, chips: Chips, rows: int, length: int, rank: int = 16, item: int = 2
) -> Bill:
    """One step of Adam on a LoRA, with activations rematerialized layer by layer.

    Rows are sharded over the data axis, a row's activations over the model axis. A layer's weights
    are gathered over the data axis whenever they are needed. The base has no gradient and no
    moments; the adapter's are sharded like it over the model axis.
    """
    n, tokens, (data, over) = chips.count, rows * length, chips.mesh
    here = tokens / data
    layer = model.adapted * item / model.layers
    memory = {
        "weights": model.params * item / n,
        "adapter, slopes, moments": 4 * model.factors(rank) * 4 / over,
        "kept between layers": here * model.hidden * model.layers * item / over,
        "logits": 2 * here * model.vocab * 4 / over,
        "one layer": layer / over + 6 * here * (model.hidden + model.ffn) * 4 / over,
    }
    sums = 4 * model.layers * 3 * here * model.hidden * item  # of activations, over the model axis
    return Bill(
        f"train, {rows} × {length} tokens",
        memory,
        {
            "memory": 3 * model.params * item / over / chips.bandwidth,
            # Forward, forward again, and the gradient of the input, none of the weights.
            "products": 3 * 2 * model.params * tokens / n / chips.flops,
            "links": (sums + (3 * model.adapted * item / over if data > 1 else 0)) / chips.link,
        },
        ("rows", memory["kept between layers"] / rows),
    )


USES: tuple[Callable[[Llama, Chips], Bill], ...] = (
    lambda model, chips: compose(model, chips),
    lambda model, chips: compose(model, chips, donate=True),
    lambda model, chips: run(model, chips, rows=32, length=1, context=4096),
    lambda model, chips: run(model, chips, rows=16, length=2048, context=0),
    lambda model, chips: run(model, chips, rows=32, length=1, context=4096, adapters=64),
    lambda model, chips: train(model, chips, rows=16, length=2048),
)


def lines() -> list[tuple[str, ...]]:
    """Returns the table's lines."""
    made = []
    for chips in (V5E, H100):
        for model in MODELS:
            for use in USES:
                bill = use(model, chips)
                slow = max(bill.seconds, key=lambda name: bill.seconds[name])
                time = bill.seconds[slow]
                shown = f"{1e3 * time:.3g} ms" if time < 1 else f"{time:.2g} s"
                made.append(
                    (chips.name, model.name, bill.what, f"{bill.bytes / GB:.1f} of "
                     f"{chips.hbm / GB:.0f}", f"{shown} ({slow})", bill.verdict(chips))
                )  # fmt: skip
    return made


HEAD = ("chips", "model", "use", "GB a chip", "time at least", "what breaks first")


def markdown() -> str:
    """Returns the table as in docs/scale.md."""
    rows = (HEAD, tuple("---" for _ in HEAD), *lines())
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Prints the table."""
    table = Table(*HEAD)
    for row in lines():
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
