"""Tiny networks as data, and their forward in NumPy, for the goldens.

A network is a tuple of layers with tanh between them. Weights have PyTorch's shapes: linear (out,
in), convolution (out, in / groups, *kernel), embedding (V, D), GPT-2's Conv1D (in, out).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jaxmix import Layout

__all__ = ["MLP", "Layer", "Net", "from_json", "layout", "run", "to_json"]


@dataclass(frozen=True)
class Layer:
    """One layer: its PyTorch name, its kind and its sizes.

    ``kind`` is ``linear``, ``gpt2`` (Conv1D of GPT-2), ``conv1d``, ``conv2d``, ``conv3d`` or
    ``embedding``; ``size`` is (in, out), or (V, D) for an embedding.
    """

    name: str
    kind: str
    size: tuple[int, int]
    kernel: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The weight's shape in PyTorch."""
        first, second = self.size
        if self.kind in ("embedding", "gpt2"):
            return (first, second)
        return (second, first // self.groups, *self.kernel)

    @property
    def bias_shape(self) -> tuple[int, ...] | None:
        """The bias's shape, or None without a bias."""
        return None if self.kind == "embedding" or not self.bias else (self.size[1],)


Net = tuple[Layer, ...]

# Non-square throughout; only suffixes of three parts distinguish the names.
MLP: Net = (
    Layer("layers.0.lin", "linear", (12, 20)),
    Layer("layers.1.lin", "linear", (20, 18)),
    Layer("layers.2.lin", "linear", (18, 10)),
)


def layout(net: Net) -> Layout:
    """Returns a layout that lists the Conv1D layers, which square shapes alone do not show."""
    names = (re.escape(layer.name) for layer in net if layer.kind == "gpt2")
    return Layout("the net's", conv1d="|".join(names))


def to_json(net: Net) -> list[dict]:
    """Returns the network as JSON data."""
    return [asdict(layer) for layer in net]


def from_json(data: list[dict]) -> Net:
    """Returns the network of `to_json`'s data."""
    return tuple(
        Layer(**{**d, "size": tuple(d["size"]), "kernel": tuple(d["kernel"])}) for d in data
    )


def _convolve(x: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """Convolves, unpadded, stride 1: y[b, o, s] = sum over (i, k) of x[b, i, s + k] w[o, i, k]."""
    dims = weight.ndim - 2
    space = tuple(range(2, 2 + dims))
    outs = []
    for x_g, w_g in zip(np.split(x, groups, axis=1), np.split(weight, groups, axis=0), strict=True):
        windows = sliding_window_view(x_g, weight.shape[2:], axis=space)  # (b, i, *s, *k)
        axes = [1, *range(2 + dims, 2 + 2 * dims)]
        y = np.tensordot(windows, w_g, axes=(axes, list(range(1, 2 + dims))))  # (b, *s, o)
        outs.append(np.moveaxis(y, -1, 1))
    return np.concatenate(outs, axis=1)


def _layer(layer: Layer, params: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    weight = np.asarray(params[f"{layer.name}.weight"])
    match layer.kind:
        case "embedding":
            return weight[x]
        case "linear":
            y, over = x @ weight.T, ()
        case "gpt2":
            y, over = x @ weight, ()
        case _:
            y, over = _convolve(x, weight, layer.groups), (1,) * len(layer.kernel)
    if layer.bias:
        y = y + np.asarray(params[f"{layer.name}.bias"]).reshape(-1, *over)
    return y


def run(net: Net, params: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Returns the network's output: layer, tanh, layer, …, layer."""
    for i, layer in enumerate(net):
        x = _layer(layer, params, np.tanh(x) if i else x)
    return x
