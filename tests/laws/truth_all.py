"""The fold of `truth` for words of any families: dense matrices, one update after another."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix import Adapter
from jaxmix.affine import Base
from jaxmix.families import Delta, DiagOFT, ExpertLoRA, Normed, Rebase, Together, Update

from ..families.formulas import Leaves
from . import truth
from .draws_additive import MAKERS as ADDITIVE
from .truth import Site
from .truth_turning import step as turning_step

__all__ = ["folded"]


def folded(params: Mapping[str, Any], adapters: Iterable[Adapter]) -> dict[str, np.ndarray]:
    """The leaves of the one site, ``site``."""
    w0, b0 = params["site.weight"], params.get("site.bias")
    site = Site(w0, b0, w0, b0)
    for adapter in adapters:
        (update,) = adapter.updates.values()
        site = _step(site, float(adapter.strength), update)
    assert site.weight is not None
    out = {"site.weight": site.weight}
    return out if site.bias is None else {**out, "site.bias": site.bias}


def _step(site: Site, s: float, update: Update) -> Site:
    weight, weight0 = site.weight, site.weight0
    assert weight is not None and weight0 is not None
    flat, flat0 = weight.reshape(len(weight), -1), weight0.reshape(len(weight), -1)
    match update:
        case Together():
            for part in update.parts:
                site = _step(site, s, part)
            return site
        case Rebase():
            moved = s * (update.weight - flat0).reshape(weight.shape)
            return replace(site, weight=weight + moved, weight0=weight0 + moved)
        case Delta():
            bias = site.bias
            if bias is not None and update.bias is not None:
                bias = bias + s * update.bias
            more = 0 if update.weight is None else s * np.asarray(update.weight)
            return replace(site, weight=weight + more, bias=bias)
        case ExpertLoRA():
            delta = update.b @ update.a * update.scale
            delta = delta.swapaxes(1, 2) if update.in_first else delta
            return replace(site, weight=weight + s * delta.reshape(weight.shape))
        case Normed():
            delta = truth._delta(update.update, weight.shape).reshape(flat.shape)
            c = update.magnitude / np.linalg.norm(flat0 + delta, axis=1)
            new = (1 - s) * flat + s * c[:, None] * (flat + delta)
            return replace(site, weight=new.reshape(weight.shape))
        case DiagOFT():
            return replace(site, weight=_diag_oft(update, flat, s).reshape(weight.shape))
    if update.family in ADDITIVE:
        return _added(site, s, update, flat0)
    none = np.zeros(len(weight))
    biases = (none, none) if site.bias is None else (site.bias, site.bias0)
    new = turning_step(Leaves(flat, biases[0], flat0, biases[1]), s, update)
    if new is None:
        return truth._step(site, s, update)
    bias = None if site.bias is None else new[1]
    return replace(site, weight=new[0].reshape(weight.shape), bias=bias)


def _added(site: Site, s: float, update: Update, flat0: np.ndarray) -> Site:
    """Δ and δ as the family's own maps have them at strength 1; the contract knows their truth."""
    assert site.weight is not None
    bias0 = None if site.bias0 is None else site.bias0[:, None]
    base, one = Base(jnp.asarray(flat0), flat0.shape, bias0), jnp.ones(())
    delta = np.asarray(update.weight_map(base, one).shift.dense()).reshape(site.weight.shape)
    bias = site.bias
    if bias is not None:
        bias = bias + s * np.asarray(update.bias_map(base, one).shift.dense())[:, 0]
    return replace(site, weight=site.weight + s * delta, bias=bias)


def _diag_oft(update: DiagOFT, flat: np.ndarray, s: float) -> np.ndarray:
    """Block by block, with an inverse."""
    assert update.blocks is not None
    d, bound = np.asarray(update.blocks), update.bound
    if bound is not None and update.by_block:
        d = np.stack([x * min(1.0, float(bound) / np.linalg.norm(x)) for x in d])
    q = update.factor * (d - d.transpose(0, 2, 1))
    if bound is not None and not update.by_block:
        q = q * min(1.0, float(bound) / np.linalg.norm(q))
    size, eye = flat.shape[0 if update.side == "out" else 1], np.eye(d.shape[1])
    turn, b = np.zeros((size, size)), d.shape[1]
    for i in range(size // b):
        one = s * q[i % len(q)]
        at = slice(i * b, (i + 1) * b)
        turn[at, at] = np.linalg.inv(eye + one) @ (eye - one)
    new = turn @ flat if update.side == "out" else flat @ turn.T
    if update.rescale is not None:
        new = (1 - s + s * np.asarray(update.rescale))[:, None] * new
    return new
