"""Writes ``qwix.zip`` with the installed jax, flax and qwix.

    python -m tests.goldens.formats.make_qwix

A small NNX model with linear layers and an einsum is given LoRA by qwix, in float64. The file: its
LoRA leaves under their paths. Beside it the kernels of the model's own forward: its outputs for
unit inputs.
"""

# Run where these libraries are installed.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from safetensors.numpy import save_file

from ..archive import pack

__all__ = ["ALPHA", "main"]

ALPHA = 6.0


class Layer(nnx.Module):
    """A kernel (in, out), and one of an einsum (in, heads, head)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Flax draws the numbers."""
        self.up = nnx.Linear(10, 6, rngs=rngs, param_dtype=jnp.float64)
        self.query = nnx.Einsum("bd,dnh->bnh", (10, 2, 3), rngs=rngs, param_dtype=jnp.float64)
        self.out = nnx.LinearGeneral(
            (2, 3), 10, axis=(-2, -1), rngs=rngs, param_dtype=jnp.float64, use_bias=False
        )


class Net(nnx.Module):
    """Two layers, run one by one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Flax draws the numbers."""
        self.layers = nnx.List([Layer(rngs), Layer(rngs)])

    def __call__(self, x: jax.Array, heads: jax.Array) -> list[tuple[jax.Array, ...]]:
        """Each layer's outputs, for inputs and for inputs of heads."""
        return [(layer.up(x), layer.query(x), layer.out(heads)) for layer in self.layers]


def _units() -> tuple[jax.Array, jax.Array]:
    """Returns every unit input, and zeros."""
    x = jnp.concatenate([jnp.eye(10), jnp.zeros((1, 10))])
    heads = jnp.concatenate([jnp.eye(6), jnp.zeros((5, 6))]).reshape(11, 2, 3)
    return x.astype(jnp.float64), heads.astype(jnp.float64)


def _flat(model: Any, lora: bool) -> dict[str, np.ndarray]:
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    leaves = jax.tree_util.tree_flatten_with_path(pure)[0]
    by_path = {"/".join(str(key.key) for key in path): np.asarray(x) for path, x in leaves}
    return {name: x for name, x in by_path.items() if ("_lora_" in name) == lora}


def main() -> None:
    """Writes the file and prints its size."""
    with jax.enable_x64(True), tempfile.TemporaryDirectory() as folder:
        x, heads = _units()
        rule = qwix.LoraProvider(module_path=".*", rank=3, alpha=ALPHA)
        net = qwix.apply_lora_to_model(Net(nnx.Rngs(0)), rule, x, heads, rngs=nnx.Rngs(1))
        rng = np.random.default_rng(4)

        def drawn(path: Any, leaf: Any) -> Any:
            is_lora = "_lora_" in str(path)
            new = rng.normal(size=leaf.shape) if is_lora else leaf
            return jnp.asarray(new, jnp.float64)

        state = nnx.state(net, nnx.Param)
        nnx.update(net, jax.tree_util.tree_map_with_path(drawn, state))
        expected: dict[str, np.ndarray] = {}
        for i, (up, query, out) in enumerate(net(x, heads)):
            for name, y, count in (("up", up, 10), ("query", query, 10), ("out", out, 6)):
                y = np.asarray(y).reshape(11, -1)
                expected[f"layers.{i}.{name}.weight"] = (y[:count] - y[10:]).T
        base = _flat(net, lora=False)
        save_file(_flat(net, lora=True), Path(folder, "nnx.safetensors"))
        table = {
            f"{name.rpartition('/')[0].replace('/', '.')}.weight": _matrix(leaf)
            for name, leaf in base.items()
            if name.endswith("kernel")
        }
        data = {
            "written_by.json": {name: version(name) for name in ("qwix", "flax", "jax")},
            "cases.json": {"nnx": False},
        }
        tensors = {"base.safetensors": table, "nnx.expected.safetensors": expected}
        print(f"qwix.zip: {pack('formats/qwix', data, tensors, Path(folder)):,} bytes")


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """Reshapes a kernel (in …, out …) to PyTorch's (out, in): `out` here has two axes of inputs."""
    rows = 6 if kernel.shape[:2] == (2, 3) else kernel.shape[0]
    return np.ascontiguousarray(kernel.reshape(rows, -1).T)


if __name__ == "__main__":
    main()
