"""PEFT's LoRA, with DoRA and the other forms that one config can ask for."""

import math
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import Kind
from jaxmix.converters.adapters.peft.kinds.lora_config import FIELDS, SUBTRACTED, problems
from jaxmix.converters.adapters.peft.kinds.lora_write import write
from jaxmix.converters.adapters.peft.level import leveled
from jaxmix.converters.adapters.peft.shapes import Factor, Factors, check_ranks, need, shapes, wide
from jaxmix.converters.adapters.peft.values import COUNT, short
from jaxmix.converters.adapters.peft.wrapped import parameters, pattern_site
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import ExpertLoRA, KaSA, LoRA, Update

__all__ = ["KIND"]

# A BD-LoRA's factor as a matrix: nblocks times what the file holds. Those that people train have a
# few millions of numbers.
_MOST = 2**28


def _build(file: File, site: str, factors: Factors) -> Update:
    """LoRA and DoRA, of a linear layer, a convolution, an embedding or experts."""
    config, module = file.config, pattern_site(file, site)
    rank = config.by_site("rank_pattern", "r", module)
    alpha = config.by_site("alpha_pattern", "lora_alpha", module)
    scale = alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)
    magnitude = _magnitude(file, factors)
    if "lora_embedding_A" in factors or "lora_embedding_B" in factors:
        a, b = need(factors, "lora_embedding_A", "lora_embedding_B")
        check_ranks(factors, {"lora_embedding_A": (2, 0), "lora_embedding_B": (2, 1)}, rank)
        # The weight is (V, D), and PEFT stores A (r, V), B (D, r).
        plain = LoRA(b.T, a.T, scale, magnitude=magnitude, embedding=True)
        return _on_its_base(file, site, plain, rank)
    a, b = need(factors, "lora_A.weight", "lora_B.weight")
    module, _, parameter = site.rpartition(".")
    if parameter in parameters(config, module) and a.shape[:1] != (rank,):
        return _experts(file, site, factors, rank, scale)
    a, b = _widened(file, site, a, b, rank)
    if b.ndim == a.ndim > 2 and a.shape[0] == rank and rank > b.shape[1] > 0:
        raise UnsupportedError(
            f"lora_B has {b.shape[1]} of {rank} ranks: a LoRA of a convolution in groups mixes the "
            "groups' inputs, which no weight of the grouped convolution can do. Train it without "
            "that layer"
        )
    axes = max(a.ndim, 2)
    sizes = {"lora_A.weight": a, "lora_B.weight": b}
    check_ranks(sizes, {"lora_A.weight": (axes, 0), "lora_B.weight": (axes, 1)}, rank)
    if b.shape[2:] != (1,) * (axes - 2):
        raise ShapeError(f"lora_B.weight has shape {b.shape}, expected (out, {rank}, 1, …)")
    kernel = a.shape[2:]
    a, b = a.reshape(rank, -1), b.reshape(-1, rank)
    # The updates of a parameter lie as it does, and so they are never turned.
    is_fixed = bool(kernel) or parameter in parameters(config, module)
    if (diagonal := _flagged(file, factors, "lora_diag", "kasa_config")) is not None:
        return KaSA(a, b, diagonal, scale)
    plain = LoRA(
        a,
        b,
        scale,
        magnitude=magnitude,
        bias=_bias(file, factors, b.shape[:1]),
        kernel=kernel,
        transposed=False if is_fixed else file.transposed,
    )
    return _on_its_base(file, site, plain, rank)


def _experts(file: File, site: str, factors: Factors, rank: int, scale: float) -> Update:
    """LoRA of a leaf of experts. PEFT keeps A's experts slow in (e·r) and B's fast in (r·e)."""
    a, b = factors["lora_A.weight"], factors["lora_B.weight"]
    if len(factors) > 2 or a.ndim != 2 or b.ndim != 2 or len(a) % rank or len(a) != b.shape[1]:
        raise ShapeError(f"{shapes(factors)}, expected (experts·{rank}, in), (out, {rank}·experts)")
    experts, sizes = len(a) // rank, (b.shape[0], a.shape[1])
    shape = file.shape(site)
    if shape[:1] != (experts,) or sorted(shape[1:]) != sorted(sizes):
        raise ShapeError(
            f"{shapes(factors)} are of {experts} experts (out, in) = {sizes}, but {site} is {shape}"
        )
    in_first = shape[1:] != sizes
    if sizes[0] == sizes[1]:
        # Other parameters of the module lie the same way.
        in_first = file.kept.get((site.rpartition(".")[0], "in_first"))
    if in_first is None:
        raise UnsupportedError(
            f"the experts' matrices are square, {sizes}, and the file does not say whether they "
            "lie as (out, in) or as (in, out). Merge it with PEFT"
        )
    return ExpertLoRA(
        a.reshape(experts, rank, -1),
        b.reshape(len(b), rank, experts).transpose(2, 0, 1),
        scale,
        in_first=in_first,
    )


def _widened(file: File, site: str, a: Factor, b: Factor, rank: int) -> tuple[Factor, Factor]:
    """A and B as matrices where BD-LoRA keeps their blocks alone, or QALoRA pools the inputs."""
    config = file.config
    if config.flag("use_qalora"):
        # PEFT takes the mean of each group of inputs, times the number of groups; but only over
        # layers that are quantized, and over others a plain LoRA.
        group = _count(config.values.get("qalora_group_size", 16), "qalora_group_size")
        groups, size = a.shape[-1], math.prod(file.shape(site)[1:])
        if a.ndim == 2 and groups != size and groups * group == size:
            a = np.repeat(wide(a), size // groups, axis=1) * np.float32(groups**2 / size)
        return a, b
    if isinstance(told := config.values.get("use_bdlora"), dict):
        count = _count(told.get("nblocks", 1), "nblocks")
        if _is_named(site, told.get("target_modules_bd_a")):
            return _block_diagonal(a, count), b
        if _is_named(site, told.get("target_modules_bd_b")):
            return a, _block_diagonal(b, count)
    return a, b


def _count(value: Any, name: str) -> int:
    """A number out of a part of the config that `Fields` do not look into."""
    if not COUNT.holds(value):
        raise CheckpointError(f"{name} is {short(value)} in the config, expected {COUNT.text}")
    return value


def _is_named(site: str, parts: Any) -> bool:
    """Whether one of the texts is in a module's path, as PEFT looks for them."""
    return isinstance(parts, list) and any(str(part) in site for part in parts)


def _block_diagonal(stacked: Factor, count: int) -> Factor:
    """Blocks (rows, cols/count), one under the other, along a diagonal."""
    if stacked.ndim != 2 or stacked.shape[0] % count:
        raise ShapeError(f"a factor of shape {stacked.shape} is not made of {count} blocks")
    if stacked.size * count > _MOST:
        raise ShapeError(
            f"a factor of shape {stacked.shape} in {count} blocks has {stacked.size * count:,} "
            f"numbers as a matrix, expected {_MOST:,} at the most. Was nblocks edited?"
        )
    rows, cols = stacked.shape[0] // count, stacked.shape[1]
    out = np.zeros((stacked.shape[0], cols * count), stacked.dtype)
    for i in range(count):
        rows_here = slice(i * rows, (i + 1) * rows)
        out[rows_here, i * cols : (i + 1) * cols] = stacked[rows_here]
    return out


def _on_its_base(file: File, site: str, update: LoRA, rank: int) -> LoRA:
    """With what PiSSA and OLoRA took off the base, as PEFT does it when it makes the layer.

    The initial product is that of the base's own factors, so that it does not depend on signs. It
    is what PEFT takes for a plain LoRA of twice the rank. What is trained and what is taken off
    nearly cancel: rounded to 16 bits the base's own factors would be off by as much as the change.
    """
    if (init := str(file.config.values.get("init_lora_weights")).lower()) not in SUBTRACTED:
        return update
    is_linear = not (update.kernel or update.embedding)
    is_turned = is_linear and file.is_conv1d(site)
    # PEFT's OLoRA takes a weight that lies as (in, out) for one that does not.
    if not is_linear or (init == "olora" and is_turned):
        raise UnsupportedError(f"PEFT has no {init} of this layer. Save it as a plain LoRA")
    if not update.scale:
        raise CheckpointError(f"lora_alpha is 0, by which {init} divides. Save it as a plain LoRA")
    weight = file.weight(site).astype(np.float64)
    weight = weight.T if is_turned else weight
    if init == "pissa":
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        taken, by = left[:, :rank] * values[:rank] / update.scale, right[:rank]
    else:
        left, right = np.linalg.qr(weight)
        taken, by = left[:, :rank], right[:rank]
    a, b = wide(update.a), wide(update.b)
    a: Any = np.concatenate([a, by.astype(a.dtype)], 0)
    b: Any = np.concatenate([b, -taken.astype(b.dtype)], 1)
    return LoRA(
        a,
        b,
        update.scale,
        magnitude=update.magnitude,
        bias=update.bias,
        transposed=update.transposed,
    )


def _bias(file: File, factors: Factors, shape: tuple[int, ...]) -> Factor | None:
    """The bias of ``lora_bias``."""
    bias = _flagged(file, factors, "lora_B.bias", "lora_bias")
    if bias is not None and bias.shape != shape:
        raise ShapeError(f"lora_B.bias has shape {bias.shape}, expected {shape}")
    return bias


def _magnitude(file: File, factors: Factors) -> Factor | None:
    """DoRA's magnitude without the axes of length one that a convolution's has."""
    magnitude = _flagged(file, factors, "lora_magnitude_vector", "use_dora")
    if magnitude is None:
        return None
    if magnitude.size != max(magnitude.shape, default=0):
        raise ShapeError(f"lora_magnitude_vector has shape {magnitude.shape}, expected (out,)")
    return magnitude.reshape(-1)


def _flagged(file: File, factors: Factors, name: str, flag: str) -> Factor | None:
    """A factor that is there exactly if a flag says so."""
    if (name in factors) == file.config.flag(flag):
        return factors.get(name)
    found = "there" if name in factors else "missing"
    said = "on" if file.config.flag(flag) else "off"
    raise CheckpointError(f"{name} is {found}, but {flag} is {said} in the config")


KIND = Kind(
    FIELDS,
    (
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_diag",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
    ),
    _build,
    write,
    judged=problems,
    leveled=leveled,
)
