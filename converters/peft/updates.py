"""From PEFT's tensors of one site to an update: one function a family.

PEFT's orientation: A (r, in), B (out, r), weight (out, in).
"""

import math
from collections.abc import Callable

import numpy as np

from jaxmix.converters.peft.config import Config
from jaxmix.converters.peft.shapes import Factor, Factors, check_cores, check_ranks, need, shapes
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import OFT, AdaLoRA, LoHa, LoKr, LoRA, SHiRA, Update

__all__ = ["BUILDERS"]


def _adalora(config: Config, site: str, factors: Factors) -> Update:
    """AdaLoRA: the scale is alpha / (init_r + 1e-5), whatever rank is left.

    PEFT takes the rank that is left for an alpha of 0 or less.
    """
    a, b, e = need(factors, "lora_A", "lora_B", "lora_E")
    init_r, alpha = config.values["init_r"], config.values["lora_alpha"]
    mask = (config.values.get("rank_pattern") or {}).get(f"{site}.lora_E")
    rank = init_r if mask is None else sum(mask)
    if (a.shape[:1], b.shape[1:], e.shape) != ((rank,), (rank,), (rank, 1)) or a.ndim != 2:
        expected = f"({rank}, in), (out, {rank}), ({rank}, 1)"
        raise ShapeError(f"{shapes(factors)}, expected {expected} by the config")
    scale = (alpha if alpha > 0 else rank) / (init_r + 1e-5)
    return AdaLoRA(a, b, e[:, 0], scale, transposed=config.flag("fan_in_fan_out"))


def _loha(config: Config, site: str, factors: Factors) -> Update:
    """LoHa; with cores an effective convolution."""
    b1, a1, b2, a2 = need(factors, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    t1, t2 = factors.get("hada_t1"), factors.get("hada_t2")
    rank = config.by_site("rank_pattern", "r", site)
    if (t1 is None) != (t2 is None):
        raise CheckpointError(f"one of hada_t1 and hada_t2 is missing beside {shapes(factors)}")
    columns = 1 if t1 is None else 0
    axes = {f"hada_w{i}_{x}": (2, columns if x == "a" else 0) for i in "12" for x in "ab"}
    check_ranks(factors, axes, rank)
    check_cores(factors, ("hada_t1", "hada_t2"), rank)
    scale = config.by_site("alpha_pattern", "alpha", site) / rank
    kernel = () if t1 is None else t1.shape[2:]
    return LoHa(b1, a1, b2, a2, scale, t1, t2, kernel=kernel)


def _lokr(config: Config, site: str, factors: Factors) -> Update:
    """LoKr, its form told from the keys that are there."""
    rank = config.by_site("rank_pattern", "r", site)
    x, y = _side(factors, "lokr_w1"), _side(factors, "lokr_w2")
    core = factors.get("lokr_t2")
    if core is not None and len(y) == 1:
        raise CheckpointError(f"lokr_t2 beside {shapes(factors)}: expected lokr_w2_a and lokr_w2_b")
    rows = 1 if core is None else 0
    axes = {"lokr_w1_a": (2, 1), "lokr_w1_b": (2, 0), "lokr_w2_a": (2, rows), "lokr_w2_b": (2, 0)}
    check_ranks(factors, axes, rank)
    check_cores(factors, ("lokr_t2",), rank)
    for name, side, most in (("lokr_w1", x, 2), ("lokr_w2", y, 5)):
        if len(side) == 1 and not 2 <= side[0].ndim <= most:
            raise ShapeError(f"{name} has shape {side[0].shape}, expected (rows, columns)")
    scale = config.by_site("alpha_pattern", "alpha", site) / rank
    return LoKr(x, y, scale, core)


def _side(factors: Factors, name: str) -> tuple[Factor, ...]:
    """A Kronecker factor: whole, or as a pair."""
    whole, pair = factors.get(name), [factors.get(name + end) for end in ("_a", "_b")]
    if whole is not None and pair == [None, None]:
        return (whole,)
    if whole is None and pair[0] is not None and pair[1] is not None:
        return pair[0], pair[1]
    raise CheckpointError(f"{shapes(factors)}: expected {name}, or {name}_a and {name}_b")


def _lora(config: Config, site: str, factors: Factors) -> Update:
    """LoRA and DoRA, of a linear layer, a convolution or an embedding."""
    rank = config.by_site("rank_pattern", "r", site)
    alpha = config.by_site("alpha_pattern", "lora_alpha", site)
    scale = alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)
    magnitude = _magnitude(config, factors)
    if "lora_embedding_A" in factors or "lora_embedding_B" in factors:
        a, b = need(factors, "lora_embedding_A", "lora_embedding_B")
        check_ranks(factors, {"lora_embedding_A": (2, 0), "lora_embedding_B": (2, 1)}, rank)
        # The weight is (V, D), and PEFT stores A (r, V), B (D, r).
        return LoRA(b.T, a.T, scale, magnitude=magnitude, embedding=True)
    a, b = need(factors, "lora_A.weight", "lora_B.weight")
    if b.ndim == a.ndim > 2 and a.shape[0] == rank and rank > b.shape[1] > 0:
        raise UnsupportedError(
            f"lora_B has {b.shape[1]} of {rank} ranks: a LoRA of a convolution in groups mixes the "
            "groups' inputs, which no weight of the grouped convolution can do. Train it without "
            "that layer"
        )
    axes = max(a.ndim, 2)
    check_ranks(factors, {"lora_A.weight": (axes, 0), "lora_B.weight": (axes, 1)}, rank)
    if b.shape[2:] != (1,) * (axes - 2):
        raise ShapeError(f"lora_B.weight has shape {b.shape}, expected (out, {rank}, 1, …)")
    kernel = a.shape[2:]
    return LoRA(
        a.reshape(rank, -1),
        b.reshape(-1, rank),
        scale,
        magnitude=magnitude,
        bias=_bias(config, factors, b.shape[:1]),
        kernel=kernel,
        transposed=config.flag("fan_in_fan_out") and not kernel,
    )


def _bias(config: Config, factors: Factors, shape: tuple[int, ...]) -> Factor | None:
    """The bias of ``lora_bias``."""
    bias = _flagged(config, factors, "lora_B.bias", "lora_bias")
    if bias is not None and bias.shape != shape:
        raise ShapeError(f"lora_B.bias has shape {bias.shape}, expected {shape}")
    return bias


def _magnitude(config: Config, factors: Factors) -> Factor | None:
    """DoRA's magnitude without the axes of length one that a convolution's has."""
    magnitude = _flagged(config, factors, "lora_magnitude_vector", "use_dora")
    if magnitude is None:
        return None
    if magnitude.size != max(magnitude.shape, default=0):
        raise ShapeError(f"lora_magnitude_vector has shape {magnitude.shape}, expected (out,)")
    return magnitude.reshape(-1)


def _flagged(config: Config, factors: Factors, name: str, flag: str) -> Factor | None:
    """A factor that is there exactly if a flag says so."""
    if (name in factors) == config.flag(flag):
        return factors.get(name)
    found = "there" if name in factors else "missing"
    said = "true" if config.flag(flag) else "false"
    raise CheckpointError(f"{name} is {found}, but {flag} is {said} in the config")


def _oft(config: Config, site: str, factors: Factors) -> Update:
    """OFT: the blocks' size is the tensor's."""
    if len(factors) != 1:
        raise CheckpointError(f"{shapes(factors)}: expected one of them")
    ((name, generator),) = factors.items()
    numbers = generator.shape[-1] if generator.ndim == 2 else -1
    block = round((1 + math.sqrt(1 + 8 * max(numbers, 0))) / 2)
    if block * (block - 1) // 2 != numbers:
        raise ShapeError(f"{shapes(factors)}, expected (blocks, b(b − 1)/2)")
    if config.flag("block_share") and generator.shape[0] != 1:
        raise ShapeError(f"{shapes(factors)}, expected one block: block_share is true")
    series, values = config.flag("use_cayley_neumann"), config.values
    return OFT(
        generator,
        terms=values["num_cayley_neumann_terms"] if series else None,
        eps=float(values["eps"]) if config.flag("coft") else None,
        embedding=name == "oft_embedding_R.weight",
    )


def _shira(config: Config, site: str, factors: Factors) -> Update:
    """SHiRA: values and where they go. PEFT on Windows saves the positions as floats."""
    values, indices = need(factors, "shira_weight", "shira_indices")
    if values.ndim != 1 or indices.shape != (2, values.size):
        raise ShapeError(f"{shapes(factors)}, expected (N,) and (2, N)")
    wide = indices.astype(np.float64)
    if (wide != np.floor(wide)).any() or (wide < 0).any() or (wide >= 2**31).any():
        raise CheckpointError("shira_indices are not all whole numbers from 0 on. Save it again")
    return SHiRA(values, wide.astype(np.int32))


BUILDERS: dict[str, Callable[[Config, str, Factors], Update]] = {
    "ADALORA": _adalora,
    "LOHA": _loha,
    "LOKR": _lokr,
    "LORA": _lora,
    "OFT": _oft,
    "SHIRA": _shira,
}
