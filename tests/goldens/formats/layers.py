"""The weight of a torch layer, measured from its outputs."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["effective", "effective_all", "fill"]


def fill(parameters: "list[tuple[str, nn.Parameter]]", seed: int = 11) -> None:
    """Replaces every parameter with random numbers, so that none is zero or one."""
    torch.manual_seed(seed)
    for name, parameter in parameters:
        values = 0.4 * torch.randn_like(parameter)
        is_scale = name.endswith(("dora_scale", "rescale", "scalar", "default"))
        parameter.data.copy_(1 + values.abs() if is_scale else values)


def effective_all(
    root: nn.Module, names: "list[str]", dtype: torch.dtype, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Returns the weights and biases of these modules, under ``<prefix><name>.weight``."""
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        layer = root.get_submodule(name)
        weight, bias = effective(layer, dtype)
        tensors[f"{prefix}{name}.weight"] = weight
        if np.abs(bias).max() > 0:
            tensors[f"{prefix}{name}.bias"] = bias
    return tensors


def effective(layer: nn.Module, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weight and bias of a layer's forward, from its outputs for unit inputs."""
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return _norms(layer, dtype)
    wrapped: Any = layer
    plain = wrapped.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    if isinstance(plain, nn.Linear):
        shape: tuple[int, ...] = (plain.in_features,)
    else:
        assert isinstance(plain, nn.Conv1d | nn.Conv2d)
        shape = (plain.in_channels, *plain.kernel_size)
    units = torch.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)
    bias = layer(torch.zeros_like(units[:1])).reshape(-1)
    weight = (layer(units).reshape(len(units), -1) - bias).T.reshape(-1, *shape)
    return weight.detach().numpy(), bias.detach().numpy()


def _norms(layer: nn.LayerNorm | nn.GroupNorm, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns a norm's weight and bias, from two points of a line for each channel."""
    if isinstance(layer, nn.LayerNorm):
        size = layer.normalized_shape[0]
        plain: nn.Module = nn.LayerNorm(size, layer.eps, elementwise_affine=False)
    else:
        size = layer.num_channels
        plain = nn.GroupNorm(layer.num_groups, size, layer.eps, affine=False)
    x = torch.randn(2, size, dtype=dtype)
    (y1, y2), (n1, n2) = layer(x), plain(x)
    weight = (y1 - y2) / (n1 - n2)
    return weight.detach().numpy(), (y1 - weight * n1).detach().numpy()
