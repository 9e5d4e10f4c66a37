"""From PEFT's tensors of one site to an update: one function a family.

PEFT's orientation: A (r, in), B (out, r), weight (out, in).
"""

import math
from collections.abc import Callable

import numpy as np

from jaxmix.converters.peft.config import Config
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import OFT, AdaLoRA, LoHa, LoKr, LoRA, SHiRA, Update

__all__ = ["BUILDERS"]

Factors = dict[str, np.ndarray]


def _adalora(config: Config, site: str, factors: Factors) -> Update:
    """AdaLoRA: the scale is alpha / (init_r + 1e-5), whatever rank is left."""
    a, b, e = _need(factors, "lora_A", "lora_B", "lora_E")
    rank = _adalora_rank(config, site)
    if (a.ndim, b.ndim, e.ndim) != (2, 2, 2) or {a.shape[0], b.shape[1], e.size} != {rank}:
        found = _shapes(factors)
        raise ShapeError(f"{found}, expected (r, in), (out, r), (r, 1) with r = {rank}")
    alpha, init_r = config.number("lora_alpha"), config.number("init_r", 1)
    scale = (alpha if alpha > 0 else init_r) / (init_r + 1e-5)
    return AdaLoRA(a, b, e[:, 0], scale, transposed=config.flag("fan_in_fan_out"))


def _adalora_rank(config: Config, site: str) -> int:
    """The rank that is left: what the saved mask counts, else init_r."""
    masks = config.values.get("rank_pattern") or {}
    names = (f"{site}.lora_E", f"base_model.model.{site}.lora_E", f"model.{site}.lora_E")
    mask = next((masks[name] for name in names if name in masks), None)
    return int(config.number("init_r", 1)) if mask is None else sum(map(bool, mask))


def _loha(config: Config, site: str, factors: Factors) -> Update:
    """LoHa; with cores an effective convolution."""
    b1, a1, b2, a2 = _need(factors, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    t1, t2 = factors.get("hada_t1"), factors.get("hada_t2")
    rank = config.by_site("rank_pattern", "r", site, 1)
    if (t1 is None) != (t2 is None):
        raise CheckpointError(f"{_shapes(factors)}: one of hada_t1 and hada_t2 is missing")
    side = 1 if t1 is None else 0
    ranks = {b1.shape[side], b2.shape[side], a1.shape[0], a2.shape[0]}
    ranks |= set() if t1 is None or t2 is None else {*t1.shape[:2], *t2.shape[:2]}
    if ranks != {rank} or any(x.ndim != 2 for x in (b1, a1, b2, a2)):
        raise ShapeError(f"{_shapes(factors)}, expected rank {rank:g} from the config in all")
    kernel = () if t1 is None else t1.shape[2:]
    scale = config.by_site("alpha_pattern", "alpha", site) / rank
    return LoHa(b1, a1, b2, a2, scale, t1, t2, kernel=kernel)


def _lokr(config: Config, site: str, factors: Factors) -> Update:
    """LoKr, its form told from the keys that are there."""
    rank = config.by_site("rank_pattern", "r", site, 1)
    x, y = _side(factors, "lokr_w1"), _side(factors, "lokr_w2")
    core = factors.get("lokr_t2")
    ranks = {r for pair in (x, y) if len(pair) == 2 for r in _inner(pair, core if pair is y else None)}
    if ranks - {rank} or x[0].ndim != 2 or (core is not None and len(y) == 1):
        raise ShapeError(f"{_shapes(factors)}, expected rank {rank:g} from the config in every pair")
    scale = config.by_site("alpha_pattern", "alpha", site) / rank
    return LoKr(x, y, scale, core, rank=int(rank))


def _inner(pair: tuple[np.ndarray, ...], core: np.ndarray | None) -> set[int]:
    """The inner sizes of a pair, which should all be the rank; with a core, (r, k) and (r, n)."""
    left, right = pair
    if left.ndim != 2 or right.ndim != 2:
        return {-1}
    if core is None:
        return {left.shape[1], right.shape[0]}
    return {left.shape[0], right.shape[0], *core.shape[:2]}


def _side(factors: Factors, name: str) -> tuple[np.ndarray, ...]:
    """A Kronecker factor: whole, or as a pair."""
    whole, pair = factors.get(name), [factors.get(name + end) for end in ("_a", "_b")]
    if whole is not None and pair == [None, None]:
        return (whole,)
    if whole is None and pair[0] is not None and pair[1] is not None:
        return pair[0], pair[1]
    raise CheckpointError(f"{_shapes(factors)}: expected {name}, or {name}_a and {name}_b")


def _lora(config: Config, site: str, factors: Factors) -> Update:
    """LoRA and DoRA, of a linear layer, a convolution or an embedding."""
    if "lora_embedding_A" in factors or "lora_embedding_B" in factors:
        return _lora_embedding(config, site, factors)
    a, b = _need(factors, "lora_A.weight", "lora_B.weight")
    rank, scale = _lora_scale(config, site)
    kernel = a.shape[2:]
    if b.ndim == a.ndim > 2 and a.shape[0] == rank and rank > b.shape[1] > 0:
        raise UnsupportedError(
            f"lora_B has {b.shape[1]} of {rank} ranks: a LoRA of a convolution in groups mixes the "
            "groups' inputs, which no weight of the grouped convolution can do. Train it without "
            "that layer"
        )
    _check_lora(a, b, rank, factors)
    magnitude = _magnitude(config, factors)
    return LoRA(
        a.reshape(a.shape[0], -1),
        b.reshape(b.shape[0], -1),
        scale,
        magnitude=magnitude,
        bias=factors.get("lora_B.bias"),
        kernel=kernel,
        transposed=config.flag("fan_in_fan_out") and not kernel,
    )


def _check_lora(a: np.ndarray, b: np.ndarray, rank: int, factors: Factors) -> None:
    """Whether A and B have the config's rank, and the axes of a linear layer or a convolution."""
    points = (1,) * (a.ndim - 2)
    if a.ndim < 2 or a.shape[0] != rank or b.shape[1:] != (rank, *points):
        expected = f"({rank}, in, …) and (out, {rank}{', 1' * (a.ndim - 2)})"
        raise ShapeError(f"{_shapes(factors)}, expected {expected} with the config's rank {rank}")
    bias = factors.get("lora_B.bias")
    if bias is not None and bias.shape != b.shape[:1]:
        raise ShapeError(f"lora_B.bias has shape {bias.shape}, expected {b.shape[:1]}")


def _lora_embedding(config: Config, site: str, factors: Factors) -> Update:
    """LoRA of an embedding: the weight is (V, D), and PEFT stores A (r, V), B (D, r)."""
    a, b = _need(factors, "lora_embedding_A", "lora_embedding_B")
    rank, scale = _lora_scale(config, site)
    if (a.ndim, b.ndim) != (2, 2) or (a.shape[0], b.shape[1]) != (rank, rank):
        raise ShapeError(f"{_shapes(factors)}, expected ({rank}, V) and (D, {rank}) by the config")
    return LoRA(b.T, a.T, scale, magnitude=_magnitude(config, factors), embedding=True)


def _lora_scale(config: Config, site: str) -> tuple[int, float]:
    """The rank and alpha/rank of a site."""
    rank = int(config.by_site("rank_pattern", "r", site, 1))
    alpha = config.by_site("alpha_pattern", "lora_alpha", site)
    return rank, alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)


def _magnitude(config: Config, factors: Factors) -> np.ndarray | None:
    """DoRA's magnitude without the axes of length one that a convolution's has."""
    magnitude = factors.get("lora_magnitude_vector")
    if (magnitude is not None) != config.flag("use_dora"):
        found = "there is one" if magnitude is not None else "there is none"
        raise CheckpointError(
            f"{found} lora_magnitude_vector, but use_dora is {config.flag('use_dora')} in the config"
        )
    if magnitude is None:
        return None
    if magnitude.size != max(magnitude.shape, default=0):
        raise ShapeError(f"lora_magnitude_vector has shape {magnitude.shape}, expected (out,)")
    return magnitude.reshape(-1)


def _oft(config: Config, site: str, factors: Factors) -> Update:
    """OFT: the blocks' size is the tensor's."""
    if len(factors) != 1:
        raise CheckpointError(f"{_shapes(factors)}: expected one of them")
    ((name, generator),) = factors.items()
    numbers = generator.shape[-1] if generator.ndim == 2 else 0
    block = round((1 + math.sqrt(1 + 8 * numbers)) / 2)
    if generator.ndim != 2 or block * (block - 1) // 2 != numbers:
        raise ShapeError(f"{_shapes(factors)}, expected (blocks, b(b − 1)/2)")
    if config.flag("block_share") and generator.shape[0] != 1:
        raise ShapeError(f"{_shapes(factors)}, expected one block: block_share is true")
    series = config.flag("use_cayley_neumann")
    return OFT(
        generator,
        terms=int(config.number("num_cayley_neumann_terms", 1)) if series else None,
        eps=float(config.number("eps", 0)) if config.flag("coft") else None,
        embedding=name == "oft_embedding_R.weight",
    )


def _shira(config: Config, site: str, factors: Factors) -> Update:
    """SHiRA: values and where they go. PEFT on Windows saves the positions as floats."""
    values, indices = _need(factors, "shira_weight", "shira_indices")
    if values.ndim != 1 or indices.shape != (2, values.size):
        raise ShapeError(f"{_shapes(factors)}, expected (N,) and (2, N)")
    whole = indices.astype(np.int32)
    if (whole != indices).any() or (whole < 0).any():
        raise CheckpointError("shira_indices are not all whole numbers from 0 on. Save it again")
    return SHiRA(values, whole)


def _need(factors: Factors, *names: str) -> tuple[np.ndarray, ...]:
    """The tensors of these names, all of them."""
    if missing := [name for name in names if name not in factors]:
        raise CheckpointError(f"{', '.join(missing)} missing beside {_shapes(factors)}")
    return tuple(factors[name] for name in names)


def _shapes(factors: Factors) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in factors.items())


BUILDERS: dict[str, Callable[[Config, str, Factors], Update]] = {
    "ADALORA": _adalora,
    "LOHA": _loha,
    "LOKR": _lokr,
    "LORA": _lora,
    "OFT": _oft,
    "SHIRA": _shira,
}
