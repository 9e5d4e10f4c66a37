"""The memory that the TPU's compiler gives a layer of a large Llama on a v5e-256.

The calculator of tests/benchmarks/chips.py counts what each chip needs. Here the compiler does, for
the programs of one layer, whose weights are sharded over all chips.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter, Bank
from jaxmix.families import LoRA
from jaxmix.unmerged.attaching import is_factored

from ..benchmarks.chips import V5E, Bill, Llama, compose, run, train
from . import llama
from .compilers import tpus

__all__ = ["USES", "Memory"]

RANK = 16


@dataclass(frozen=True)
class Memory:
    """The bytes of one layer on one chip.

    Args:
        held: Weights, factors and results, as the calculator counts them.
        held_compiled: The same by the compiler.
        passing: What exists only while the program runs, as the calculator counts it.
        passing_compiled: The same by the compiler.
    """

    held: float
    held_compiled: int
    passing: float
    passing_compiled: int


@cache
def _mesh() -> jax.sharding.Mesh:
    devices = np.asarray(tpus("v5e:16x16")).reshape(V5E.mesh)
    return jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def _on(*spec: Any) -> NamedSharding:
    return NamedSharding(_mesh(), P(*spec))


def _placed(tree: Any, place: Callable[[Any], NamedSharding]) -> Any:
    """The shapes of a tree, with the sharding of each array."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=place(x)), tree
    )


def _over_model(x: Any) -> NamedSharding:
    """Shards the longest axis over the model axis."""
    spec: list[Any] = [None] * np.ndim(x)
    if np.size(x) > 1024:
        spec[int(np.argmax(np.shape(x)))] = "model"
    return _on(*spec)


def _like_weight(x: Any) -> NamedSharding:
    """Shards B's rows and A's columns like the weight's."""
    if np.ndim(x) != 2:
        return _on()
    return _on(None, "model") if np.shape(x)[0] == RANK else _on("data", None)


def _weights(model: Llama) -> dict[str, jax.ShapeDtypeStruct]:
    return llama.layers(model, 1, _on("data", "model"))


def _lora(model: Llama, dtype: Any) -> Adapter:
    """A LoRA at all weights of a layer."""

    def made(shape: tuple[int, int]) -> LoRA:
        a, b = ((RANK, shape[1]), (shape[0], RANK))
        return LoRA(jax.ShapeDtypeStruct(a, dtype), jax.ShapeDtypeStruct(b, dtype), 1.0)

    return llama.adapter(llama.layers(model, 1), made, "lora")


def _tokens(
    model: Llama, rows: int, length: int, hidden: str | None = None
) -> jax.ShapeDtypeStruct:
    """Tokens, whose rows are sharded over the data axis."""
    there = _on("data", None, hidden)
    return jax.ShapeDtypeStruct((rows, length, model.hidden), jnp.bfloat16, sharding=there)


def _memory(
    model: Llama, bill: Bill, factors: float, passing: str, run: Any, *args: Any, out: Any
) -> Memory:
    """Compiles a program of one layer.

    Args:
        model: The model.
        bill: What the calculator counts for all layers.
        factors: The bytes of all layers' factors that are arguments or results.
        passing: The bill's name of what exists only while the program runs.
        run: The function; the first argument is donated if the bill has no result.
        *args: Its arguments.
        out: The shardings of its results.
    """
    donated = (0,) if bill.memory.get("result") == 0 else ()
    program: Any = jax.jit(run, out_shardings=out, donate_argnums=donated).lower(*args).compile()
    found = program.memory_analysis()
    weights = 2 * model.adapted / V5E.count
    held = weights + bill.memory.get("result", 0) + factors
    return Memory(
        held / model.layers,
        found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes,
        bill.memory[passing],
        found.temp_size_in_bytes,
    )


def _compose(model: Llama, *, donate: bool) -> Memory:
    params = _weights(model)
    bill = compose(model, V5E, RANK, donate=donate)
    adapter = _placed(_lora(model, np.float32), _like_weight)
    places = {name: leaf.sharding for name, leaf in params.items()}
    return _memory(
        model, bill, bill.memory["factors"], "one leaf", jaxmix.compose, params, adapter, out=places
    )


def _factored(model: Llama, rows: int, length: int) -> Memory:
    params, x = _weights(model), _tokens(model, rows, length)
    held = jax.eval_shape(jaxmix.attach, params, _lora(model, jnp.bfloat16))
    leaves = {
        name: replace(_placed(leaf, _over_model), base=params[name]) if is_factored(leaf) else leaf
        for name, leaf in held.items()
    }
    bill = run(model, V5E, rows, length, 0, RANK)
    found = jaxmix.factored(llama.forward)
    made = _memory(
        model, bill, bill.memory["factors"], "activations", found, leaves, x, out=x.sharding
    )
    return _without(made, 2 * _bytes(x))


def _bank(model: Llama, rows: int, members: int) -> Memory:
    params, x = _weights(model), _tokens(model, rows, 1)
    one = _lora(model, jnp.bfloat16)
    bank = jax.eval_shape(Bank, {str(i): one for i in range(members)}, params)
    who = jax.ShapeDtypeStruct((rows,), np.int32, sharding=_on("data"))

    def called(bank: Any, params: Any, x: Any, who: Any) -> Any:
        return bank(llama.forward)(params, x, who)

    bill = run(model, V5E, rows, 1, 0, RANK, members)
    args = _placed(bank, _over_model), params, x, who
    made = _memory(
        model, bill, bill.memory["factors"], "activations", called, *args, out=x.sharding
    )
    return _without(made, 2 * _bytes(x))


def _train(model: Llama, rows: int, length: int) -> Memory:
    params, x = _weights(model), _tokens(model, rows, length, "model")
    adapter = _placed(_lora(model, np.float32), _over_model)
    layer = jax.checkpoint(jaxmix.factored(llama.forward))

    def slopes(adapter: Any, params: Any, x: Any) -> Any:
        def loss(adapter: Any) -> Any:
            return jnp.mean(layer(jaxmix.attach(params, adapter), x).astype(np.float32) ** 2)

        return jax.grad(loss)(adapter)

    bill = train(model, V5E, rows, length, RANK)
    # The adapter and its slopes, without the two moments.
    factors = bill.memory["adapter, slopes, moments"] / 2
    places = jax.tree.map(lambda leaf: leaf.sharding, adapter)
    made = _memory(model, bill, factors, "one layer", slopes, adapter, params, x, out=places)
    return _without(made, _bytes(x))


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    """The bytes of tokens on one chip."""
    sharding: Any = x.sharding
    return int(np.prod(sharding.shard_shape(x.shape))) * x.dtype.itemsize


def _without(made: Memory, tokens: int) -> Memory:
    return replace(made, held_compiled=made.held_compiled - tokens)


USES: dict[str, Callable[[Llama], Memory]] = {
    "compose": partial(_compose, donate=False),
    "compose, donated": partial(_compose, donate=True),
    "factored decode, 32 × 1 tokens": partial(_factored, rows=32, length=1),
    "factored prefill, 16 × 2048 tokens": partial(_factored, rows=16, length=2048),
    "Bank of 64, decode, 32 × 1 tokens": partial(_bank, rows=32, members=64),
    "train, 16 × 2048 tokens": partial(_train, rows=16, length=2048),
}
