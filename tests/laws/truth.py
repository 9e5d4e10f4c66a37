"""The independent truth: words of updates folded into dense NumPy weights, one after another.

Written from the families' formulas and not from jaxmix's operators: everything is a dense float64
matrix, nothing is folded. Weights lie as PyTorch has them, (out, in, *k); an embedding is (V, D).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxmix.families import OFT, AdaLoRA, LoHa, LoKr, LoRA, Replace, SHiRA, Together, Update

__all__ = ["Site", "fold", "fold_tree", "rotation"]

Chain = Iterable[tuple[float, Update]]


@dataclass(frozen=True)
class Site:
    """The tensors of a site: as they are now, and as the base has them."""

    weight: np.ndarray | None
    bias: np.ndarray | None
    weight0: np.ndarray | None
    bias0: np.ndarray | None


def fold(word: Chain, weight: Any, bias: Any = None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The weight and the bias of a site after a word of updates, the first one first."""
    w, b = (None if x is None else np.asarray(x, np.float64) for x in (weight, bias))
    site = Site(w, b, w, b)
    for strength, update in word:
        site = _step(site, float(strength), update)
    return site.weight, site.bias


def fold_tree(params: Mapping[str, Any], adapters: Iterable[Any]) -> dict[str, np.ndarray]:
    """A flat dict with PyTorch names after adapters, the first one first."""
    words: dict[str, list[tuple[float, Update]]] = {}
    for adapter in adapters:
        for name, update in adapter.updates.items():
            words.setdefault(name, []).append((adapter.strength, update))
    out = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    for name, word in words.items():
        new = fold(word, out.get(f"{name}.weight"), out.get(f"{name}.bias"))
        for part, tensor in zip(("weight", "bias"), new, strict=True):
            if tensor is not None:
                out[f"{name}.{part}"] = tensor
    return out


def _step(site: Site, s: float, update: Update) -> Site:
    match update:
        case Together():
            for part in update.parts:
                site = _step(site, s, part)
            return site
        case Replace():
            return _replaced(site, s, update)
        case LoRA() if update.magnitude is not None:
            return _dora(site, s, update)
        case OFT():
            assert site.weight is not None
            flat = site.weight.reshape(len(site.weight), -1)
            r = rotation(update, s, flat.shape[1])
            turned = flat @ (r if update.embedding else r.T)
            return replace(site, weight=turned.reshape(site.weight.shape))
        case _:
            bias = site.bias
            if isinstance(update, LoRA) and update.bias is not None:
                assert bias is not None
                bias = bias + s * _f(update.scale) * _f(update.bias).reshape(bias.shape)
            assert site.weight is not None
            delta = s * _delta(update, site.weight.shape)
            return replace(site, weight=site.weight + delta, bias=bias)


def _f(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _replaced(site: Site, s: float, update: Replace) -> Site:
    """Towards the new leaves, and the base too."""

    def line(old: np.ndarray | None, new: Any) -> np.ndarray | None:
        if new is None or old is None:
            return old
        return (1 - s) * old + s * _f(new).reshape(old.shape)

    return Site(
        line(site.weight, update.weight),
        line(site.bias, update.bias),
        line(site.weight0, update.weight),
        line(site.bias0, update.bias),
    )


def _dora(site: Site, s: float, update: LoRA) -> Site:
    """``(1 − s)·W + s·c ⊙ (W + γBA)``, the norm read off the base."""
    w, w0 = site.weight, site.weight0
    assert w is not None and w0 is not None
    delta = _delta(update, w.shape)
    over = 0 if update.embedding else tuple(range(1, w.ndim))
    norm = np.sqrt(((w0 + delta) ** 2).sum(axis=over))
    c = _f(update.magnitude) / norm
    spread = c.reshape((1, -1) if update.embedding else (-1, *(1,) * (w.ndim - 1)))
    weight = (1 - s) * w + s * spread * (w + delta)
    bias = site.bias
    if bias is not None and not update.embedding:
        assert site.bias0 is not None
        c = c.reshape(bias.shape)
        added = 0 if update.bias is None else _f(update.scale) * _f(update.bias).reshape(bias.shape)
        bias = (1 - s) * bias + s * (site.bias0 + c * (bias - site.bias0 + added))
    return replace(site, weight=weight, bias=bias)


def _delta(update: Update, shape: tuple[int, ...]) -> np.ndarray:
    """The Δ of an additive update, in the weight's shape."""
    match update:
        case AdaLoRA():
            product = _f(update.b) @ np.diag(_f(update.e)) @ _f(update.a)
            return (_f(update.scale) * product).reshape(shape)
        case LoRA():
            return (_f(update.scale) * (_f(update.b) @ _f(update.a))).reshape(shape)
        case LoHa():
            one = _cored(update.t1, update.b1, update.a1)
            two = _cored(update.t2, update.b2, update.a2)
            return (_f(update.scale) * one * two).reshape(shape)
        case LoKr():
            return _lokr(update, shape)
        case SHiRA():
            delta = np.zeros((shape[0], int(np.prod(shape[1:]))))
            for value, i, j in zip(_f(update.values), *np.asarray(update.indices), strict=True):
                delta[i, j] += value
            return delta.reshape(shape)
    raise NotImplementedError(update)


def _cored(t: Any, b: Any, a: Any) -> np.ndarray:
    """``B A``, or with a core what an effective convolution makes: (out, in, *k)."""
    if t is None:
        return _f(b) @ _f(a)
    return np.einsum("ij...,io,jn->on...", _f(t), _f(b), _f(a))


def _lokr(update: LoKr, shape: tuple[int, ...]) -> np.ndarray:
    x = _f(update.x[0]) if len(update.x) == 1 else _f(update.x[0]) @ _f(update.x[1])
    if update.t2 is not None:
        y = _cored(update.t2, *update.y)
    elif len(update.y) == 2:
        y = _f(update.y[0]) @ _f(update.y[1])
    else:
        y = _f(update.y[0])
    if y.ndim == 4:
        x = x[:, :, None, None]
    return (_f(update.scale) * np.kron(x, y)).reshape(shape)


def rotation(update: OFT, s: float, width: int) -> np.ndarray:
    """OFT's R (width, width), its generator scaled by s."""
    numbers = _f(update.generator)
    size = round((1 + np.sqrt(1 + 8 * numbers.shape[1])) / 2)
    rows, cols = np.triu_indices(size, 1)
    eye, out = np.eye(size), np.zeros((width, width))
    for i in range(width // size):
        q = np.zeros((size, size))
        q[rows, cols] = numbers[i % len(numbers)]
        q = q - q.T
        if update.eps is not None:
            limit = float(_f(update.eps)) / np.sqrt(len(numbers))
            q = q * min(1.0, limit / max(np.linalg.norm(q), 1e-300))
        q = s * q
        if update.terms is None:
            block = (eye - q) @ np.linalg.inv(eye + q)
        else:
            n = 4 if update.terms == 3 else update.terms
            powers = [np.linalg.matrix_power(q, k) for k in range(n)]
            weights = [1.0] * min(n, 1) + [2.0] * (n - 2) + [1.0] * (n > 1)
            if n == 2:
                weights = [1.0, 2.0]
            block = sum((c * p for c, p in zip(weights, powers, strict=True)), np.zeros_like(q))
        at = slice(i * size, (i + 1) * size)
        out[at, at] = block
    return out
