"""Writes ``mlx.zip`` with the installed mlx and mlx-lm.

    python -m tests.goldens.formats.make_mlx

mlx computes on the CPU too. For each case: the folder that mlx-lm's trainer writes (its own
``linear_to_lora_layers``, the trainable parameters, ``save_config``), and the weights of the
layers' own forward, in float32: their outputs for unit inputs.
"""

# Run where these libraries are installed.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config

from ..archive import pack

__all__ = ["main"]


class Layer(nn.Module):
    """Two projections, one with a bias."""

    def __init__(self) -> None:
        """Drawn by `_model`."""
        super().__init__()
        self.q_proj = nn.Linear(10, 6, bias=False)
        self.down_proj = nn.Linear(8, 10)


class Model(nn.Module):
    """Two layers and an embedding."""

    def __init__(self) -> None:
        """Drawn by `_model`."""
        super().__init__()
        self.embed_tokens = nn.Embedding(14, 10)
        self.layers = [Layer(), Layer()]


def _model() -> Model:
    model = Model()
    rng = np.random.default_rng(3)
    _draw(model, rng)
    return model


def _draw(model: nn.Module, rng: np.random.Generator, among: tuple[str, ...] = ()) -> None:
    """Draws new numbers for the parameters with these last names; for all without any."""
    new = [
        (name, mx.array(0.5 * rng.normal(size=x.shape).astype(np.float32)))
        for name, x in tree_flatten(model.parameters())
        if not among or name.rpartition(".")[2] in among
    ]
    model.load_weights(
        [(n, mx.abs(x) + 1 if n.endswith(".m") else x) for n, x in new], strict=False
    )


def _forward(layer: nn.Module) -> dict[str, np.ndarray]:
    """Returns the weight and the bias of a layer, from its outputs."""
    if isinstance(layer, nn.Embedding) or hasattr(layer, "embedding"):
        return {"weight": np.array(layer(mx.arange(14)))}
    plain = layer if isinstance(layer, nn.Linear) else layer.linear
    size = plain.weight.shape[1]
    zero = np.array(layer(mx.zeros((1, size))))[0]
    tensors = {"weight": (np.array(layer(mx.eye(size))) - zero).T}
    return {**tensors, "bias": zero} if "bias" in plain else tensors


def _case(folder: Path, kind: str, keys: list[str] | None) -> dict[str, np.ndarray]:
    model, config = _model(), {"rank": 3, "scale": 2.5, "dropout": 0.0}
    if keys is not None:
        config["keys"] = keys
    model.freeze()
    if kind == "full":
        model.layers[1].unfreeze()
        _draw(model.layers[1], np.random.default_rng(5))
    else:
        linear_to_lora_layers(model, 1, config, use_dora=kind == "dora")
        _draw(model, np.random.default_rng(5), ("lora_a", "lora_b", "m"))
    model.eval()
    folder.mkdir()
    trained = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), trained)
    full_config: dict[str, Any] = {
        "fine_tune_type": kind,
        "num_layers": 1,
        "lora_parameters": config,
    }
    save_config(full_config, folder / "adapter_config.json")
    names = ["embed_tokens", *(f"layers.{i}.{x}" for i in (0, 1) for x in ("q_proj", "down_proj"))]
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        layer: Any = model
        for part in name.split("."):
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
        tensors |= {f"{name}.{leaf}": x for leaf, x in _forward(layer).items()}
    return tensors


def main() -> None:
    """Writes the file and prints its size."""
    base = {name: np.array(x) for name, x in tree_flatten(_model().parameters())}
    tensors = {"base.safetensors": base}
    everything = ["q_proj", "down_proj", "embed_tokens"]
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, keys in (
            ("lora", "lora", None),
            ("lora-embedding", "lora", everything),
            ("dora", "dora", None),
            ("dora-embedding", "dora", everything),
            ("full", "full", None),
        ):
            tensors[f"{name}.expected.safetensors"] = _case(Path(folder, name), kind, keys)
        cases = [n.removesuffix(".expected.safetensors") for n in tensors if ".expected" in n]
        data = {
            "written_by.json": {name: version(name) for name in ("mlx", "mlx-lm")},
            "cases.json": dict.fromkeys(cases, True),
        }
        print(f"mlx.zip: {pack('formats/mlx', data, tensors, Path(folder)):,} bytes")


if __name__ == "__main__":
    main()
