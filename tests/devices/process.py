"""One of the two processes with four devices each that test_processes.py starts.

It prints its results as one line of JSON. The folders hold a base and an adapter written by
`jaxmix.save`; the checkpoint of the result is written next to them.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix.converters.checkpoints.sharded_reading import load_params

__all__ = ["main"]


def was_read() -> int:
    """Returns the bytes that this process has read so far; 0 if the system does not count them."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(counters.read_text().split("rchar: ")[1].split()[0])


def axes(entry: Any) -> Any:
    """Returns an entry of a sharding spec from JSON."""
    return tuple(entry) if isinstance(entry, list) else entry


def off(array: jax.Array, truth: np.ndarray) -> float:
    """Returns the largest error of the parts on this process's devices."""
    parts = [
        np.abs(np.asarray(part.data, np.float64) - truth[part.index]).max()
        for part in array.addressable_shards
    ]
    return float(max(parts))


def main(number: int, port: int, folder: Path) -> dict[str, Any]:
    """Loads, composes, runs, trains a step, saves and restores."""
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    mesh = jax.make_mesh((2, 4), ("host", "x"), axis_types=(AxisType.Auto,) * 2)
    specs = json.loads((folder / "specs.json").read_text())
    places = {name: NamedSharding(mesh, P(*map(axes, spec))) for name, spec in specs.items()}

    counter: Counter[str] = Counter()
    before = was_read()
    params = load_params(folder / "base", places, counter=counter)
    report: dict[str, Any] = {"read": was_read() - before, "counted": counter}
    report["held"] = {
        name: sum(part.data.nbytes for part in leaf.addressable_shards)
        for name, leaf in params.items()
    }

    mixed = jaxmix.load(folder / "mix")
    out = jaxmix.compose(params, mixed)
    truth = dict(np.load(folder / "truth.npz"))
    report["off"] = max(off(leaf, truth[name]) for name, leaf in out.items())
    report["kept"] = all(out[name].sharding == places[name] for name in out)

    x = jax.device_put(truth["x"], NamedSharding(mesh, P("host")))

    def forward(params: Any, x: Any) -> Any:
        h = jax.numpy.tanh(x @ params["up.weight"].T)
        return h @ params["down.weight"].T + params["down.bias"][None]

    leaves = jaxmix.attach(params, mixed)
    y = jax.jit(jaxmix.factored(forward), out_shardings=NamedSharding(mesh, P("host")))(leaves, x)
    report["factored off"] = off(y, truth["y"])

    values, whole = jaxmix.trainable(mixed)
    optimizer = optax.sgd(0.1)

    def loss(values: Any, params: Any, x: Any) -> Any:
        return (jaxmix.factored(forward)(jaxmix.attach(params, whole(values)), x) ** 2).mean()

    @jax.jit
    def step(values: Any, state: Any, params: Any, x: Any) -> Any:
        slope = jax.grad(loss)(values, params, x)
        change, state = optimizer.update(slope, state, values)
        return optax.apply_updates(values, change), loss(values, params, x)

    _, start = step(values, optimizer.init(values), params, x)
    report["loss"] = float(start)

    checkpoint = folder / "composed"
    with ocp.StandardCheckpointer() as writer:
        writer.save(checkpoint, out)
    outline = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in out.items()
    }
    with ocp.StandardCheckpointer() as reader:
        again = reader.restore(checkpoint, outline)
    report["restored off"] = max(off(leaf, truth[name]) for name, leaf in again.items())
    report["restored kept"] = all(again[name].sharding == places[name] for name in out)
    return report


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
