"""The calculator's estimates of memory and work agree with programs on eight devices."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter
from jaxmix.families import LoRA
from jaxmix.unmerged.attaching import is_factored

from ..benchmarks.chips import MODELS, Bill, Chips, Llama, compose, markdown, run, train
from ..house.sources import ROOT
from . import llama
from .spying import grid, programs

# Eight devices as chips, and a small model of a Llama's proportions.
EIGHT = Chips("8 devices", (2, 4), 1e9, 1e9, 1e9, 1e9, 1e9)
SMALL = Llama("small", 128, 1, 32, 384, 512)
RANK = 8


def leaves(dtype: Any = jnp.bfloat16) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the model's weights, sharded over both axes."""
    there = NamedSharding(grid(), P("x", "y"))
    made = llama.layers(SMALL, SMALL.layers, there, dtype)
    return made | llama.vocabulary(SMALL, there, dtype)


def lora(dtype: Any = np.float32) -> Adapter:
    """Returns a LoRA at all linear layers."""

    def made(shape: tuple[int, int]) -> LoRA:
        return LoRA(np.ones((RANK, shape[1]), dtype), np.ones((shape[0], RANK), dtype), 1.0)

    return llama.adapter(leaves(), made, "lora")


def forward(params: Any, tokens: Any) -> Any:
    """The model's matrix products, from tokens to logits."""
    return llama.forward(params, params["embed.weight"][tokens]) @ params["head.weight"].T


def within(found: float, counted: float, factor: float) -> None:
    """Returns whether an estimate is within a factor of the measured number."""
    assert counted / factor <= found <= counted * factor, (found, counted)


def test_counts_of_the_models() -> None:
    """The models have the sizes that their names state."""
    assert [round(model.params / 1e9) for model in MODELS] == [71, 406]
    assert MODELS[0].factors(16) == 80 * 16 * (2 * 16384 + 2 * 9216 + 3 * 36864)


def test_compose(monkeypatch: Any) -> None:
    """Weights and result agree to the byte, temporaries of one leaf within a factor of two."""
    bill = compose(SMALL, EIGHT, RANK)
    adapter = lora()
    there = {n: jax.device_put(np.ones(x.shape, x.dtype), x.sharding) for n, x in leaves().items()}
    with programs(monkeypatch) as seen:
        jaxmix.compose(there, adapter)
    memory = [program.memory_analysis() for program in seen]
    layers = SMALL.adapted * 2 // 8
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in there.values())
    assert held == bill.memory["weights"]
    assert (
        sum(program.output_size_in_bytes for program in memory) == bill.memory["result"] == layers
    )
    factors = sum(program.argument_size_in_bytes for program in memory) - layers
    within(factors, bill.memory["factors"], 1.05)  # strengths and scales are arguments too
    within(max(program.temp_size_in_bytes for program in memory), bill.memory["one leaf"], 2)
    flops = sum(program.cost_analysis()["flops"] for program in seen)
    within(flops, 2 * RANK * SMALL.adapted / 8, 1.5)


ROWS, LENGTH = 8, 16


def lowered(fn: Any, *args: Any, out: Any = None) -> Any:
    return jax.jit(fn, out_shardings=out).lower(*args).compile()


def over_model(x: Any) -> Any:
    """Shards the longest axis over the model axis, as the calculator assumes for factors."""
    spec: list[Any] = [None] * np.ndim(x)
    if np.size(x) >= 64:
        spec[int(np.argmax(np.shape(x)))] = "y"
    there = NamedSharding(grid(), P(*spec))
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=there)


@cache
def inputs() -> tuple[Any, Any, Any]:
    """Returns float32 weights (no conversion on CPU), tokens, and the sharding of the logits."""
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), np.int32, sharding=NamedSharding(grid(), P("x")))
    return leaves(np.float32), tokens, NamedSharding(grid(), P("x", None, "y"))


def test_factored() -> None:
    """Runs tokens through base and separate factors."""
    params, tokens, out = inputs()
    held = jaxmix.attach({n: np.zeros(x.shape, x.dtype) for n, x in params.items()}, lora())
    there = {
        name: replace(jax.tree.map(over_model, leaf), base=params[name])
        if is_factored(leaf)
        else params[name]
        for name, leaf in held.items()
    }
    program = lowered(jaxmix.factored(forward, "factored"), there, tokens, out=out)
    check(program, run(SMALL, EIGHT, ROWS, LENGTH, 0, RANK, item=4))


def test_bank() -> None:
    """Runs a bank of four adapters."""
    params, tokens, out = inputs()
    base = {n: jnp.zeros(x.shape, x.dtype) for n, x in params.items()}
    bank = jax.tree.map(over_model, jaxmix.Bank({str(i): lora() for i in range(4)}, base))

    def called(bank: Any, params: Any, tokens: Any, who: Any) -> Any:
        return bank(forward)(params, tokens, who)

    program = lowered(called, bank, params, tokens, np.zeros(ROWS, np.int32), out=out)
    check(program, run(SMALL, EIGHT, ROWS, LENGTH, 0, RANK, 4, item=4))


def check(program: Any, bill: Bill) -> None:
    """Arguments per device agree within 1.3, temporaries within 2."""
    memory = program.memory_analysis()
    within(memory.argument_size_in_bytes, bill.memory["weights"] + bill.memory["factors"], 1.3)
    within(memory.temp_size_in_bytes, bill.memory["activations"], 2)


def test_train() -> None:
    """Gradients of one step with rematerialized layers."""
    params, tokens, _ = inputs()
    values, whole = jaxmix.trainable(lora())

    def loss(values: Any, params: Any, tokens: Any) -> Any:
        held = jaxmix.attach(params, whole(values))
        return jnp.mean(jaxmix.factored(forward, "factored")(held, tokens) ** 2)

    there = jax.tree.map(over_model, values)
    places = jax.tree.map(lambda x: x.sharding, there)
    program = lowered(jax.grad(loss), there, params, tokens, out=places)
    bill, memory = train(SMALL, EIGHT, ROWS, LENGTH, RANK, item=4), program.memory_analysis()
    factors = bill.memory["adapter, slopes, moments"] / 4
    within(memory.argument_size_in_bytes, bill.memory["weights"] + factors, 1.3)
    within(memory.output_size_in_bytes, factors, 1.3)
    passing = sum(bill.memory[name] for name in ("kept between layers", "logits", "one layer"))
    within(memory.temp_size_in_bytes, passing, 3)


def test_the_page_has_the_table() -> None:
    """docs/scale.md shows the script's current output."""
    assert markdown() in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
