"""The independent truth: updates folded into dense NumPy weights, one after another.

It uses none of jaxmix's operators or maps: each family's step is PEFT's formula, naive and dense in
float64, from the tables of `tests.families`. Weights have PyTorch's axis order, (out, in, *k); an
embedding is (V, D).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxmix.families import Delta, Rebase, Replace, Together, Update

from ..families.formulas import Leaves
from ..families.table import SAMPLES

__all__ = ["fold", "fold_tree"]

Chain = Iterable[tuple[float, Update]]


@dataclass(frozen=True)
class Site:
    """The tensors of a site: their current values, and the base's."""

    weight: np.ndarray | None
    bias: np.ndarray | None
    weight0: np.ndarray | None
    bias0: np.ndarray | None


def fold(
    updates: Chain, weight: Any, bias: Any = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Applies updates in order to a site's weight and bias, and returns both."""
    w, b = (None if x is None else np.asarray(x, np.float64) for x in (weight, bias))
    site = Site(w, b, w, b)
    for strength, update in updates:
        site = _step(site, float(strength), update)
    return site.weight, site.bias


def fold_tree(params: Mapping[str, Any], adapters: Iterable[Any]) -> dict[str, np.ndarray]:
    """Applies adapters in order to a flat dict with PyTorch names."""
    chains: dict[str, list[tuple[float, Update]]] = {}
    for adapter in adapters:
        for name, update in adapter.updates.items():
            chains.setdefault(name, []).append((adapter.strength, update))
    out = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    for name, chain in chains.items():
        folded = fold(chain, out.get(f"{name}.weight"), out.get(f"{name}.bias"))
        for kind, tensor in zip(("weight", "bias"), folded, strict=True):
            if tensor is not None:
                out[f"{name}.{kind}"] = tensor
    return out


def _step(site: Site, s: float, update: Update) -> Site:
    match update:
        case Together():
            for part in update.parts:
                site = _step(site, s, part)
            return site
        case Replace():
            return _replaced(site, s, update)
        case Rebase():
            assert site.weight is not None and site.weight0 is not None
            moved = s * (_wide(update.weight).reshape(site.weight.shape) - site.weight0)
            return replace(site, weight=site.weight + moved, weight0=site.weight0 + moved)
        case Delta():
            return replace(
                site,
                weight=_sum(site.weight, s, update.weight),
                bias=_sum(site.bias, s, update.bias),
            )
        case _:
            return _computed(site, s, update)


def _computed(site: Site, s: float, update: Update) -> Site:
    """Applies PEFT's formula. Without a bias the formula gets zeros, and its bias is dropped."""
    sample = SAMPLES[update.family]
    assert sample.peft is not None and site.weight is not None and site.weight0 is not None
    formula, factors, config = sample.peft(update)
    shape = site.weight.shape if sample.shaped else (len(site.weight), -1)
    weights = (x.reshape(shape) for x in (site.weight, site.weight0))
    zeros = np.zeros(len(site.weight))
    biases = (zeros if x is None else x for x in (site.bias, site.bias0))
    (weight, weight0), (bias, bias0) = weights, biases
    tensors = {name: _wide(x) for name, x in factors.items() if x is not None}
    weight, bias = formula(tensors, config, Leaves(weight, bias, weight0, bias0), s)
    result_bias = None if site.bias is None else bias
    return replace(site, weight=weight.reshape(site.weight.shape), bias=result_bias)


def _wide(x: Any) -> np.ndarray:
    """Floats in float64; positions unchanged."""
    x = np.asarray(x)
    return x if x.dtype.kind in "iu" else x.astype(np.float64)


def _sum(leaf: np.ndarray | None, s: float, change: Any) -> np.ndarray | None:
    return leaf if leaf is None or change is None else leaf + s * _wide(change).reshape(leaf.shape)


def _replaced(site: Site, s: float, update: Replace) -> Site:
    """Interpolates to the new leaves, both in the current values and in the base's."""

    def interpolated(leaf: np.ndarray | None, replacement: Any) -> np.ndarray | None:
        if replacement is None or leaf is None:
            return leaf
        return (1 - s) * leaf + s * _wide(replacement).reshape(leaf.shape)

    return Site(
        interpolated(site.weight, update.weight),
        interpolated(site.bias, update.bias),
        interpolated(site.weight0, update.weight),
        interpolated(site.bias0, update.bias),
    )
