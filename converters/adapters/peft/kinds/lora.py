"""PEFT's LoRA, with DoRA and its other forms."""

import math
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.equal_ranks import with_equal_ranks
from jaxmix.converters.adapters.common.shapes import (
    Factor,
    SiteTensors,
    at_least_float32,
    check_ranks,
    describe_shapes,
    required,
)
from jaxmix.converters.adapters.common.values import COUNT, short_json
from jaxmix.converters.adapters.peft.experts import has_inputs_first
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kinds.lora_config import FIELDS, SUBTRACTED, problems
from jaxmix.converters.adapters.peft.kinds.lora_write import write
from jaxmix.converters.adapters.peft.peft_type import PeftType
from jaxmix.converters.adapters.peft.wrapped import parameters, pattern_site
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import ExpertLoRA, KaSA, LoRA, Update

__all__ = ["PEFT_TYPE"]

# The largest number of elements of a BD-LoRA factor as a matrix, which is nblocks times that in the
# file. Trained ones have a few million.
_MOST = 2**28


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """LoRA or DoRA of a linear layer, a convolution, an embedding or experts."""
    config, module = file.config, pattern_site(file, site)
    rank = config.by_site("rank_pattern", "r", module)
    alpha = config.by_site("alpha_pattern", "lora_alpha", module)
    scale = alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)
    magnitude = _magnitude(file, factors)
    if "lora_embedding_A" in factors or "lora_embedding_B" in factors:
        a, b = required(factors, "lora_embedding_A", "lora_embedding_B")
        check_ranks(factors, {"lora_embedding_A": (2, 0), "lora_embedding_B": (2, 1)}, rank)
        # The weight is (V, D), and PEFT stores A (r, V), B (D, r).
        plain = LoRA(b.T, a.T, scale, magnitude=magnitude, embedding=True)
        return _on_its_base(file, site, plain, rank)
    a, b = required(factors, "lora_A.weight", "lora_B.weight")
    module, _, parameter = site.rpartition(".")
    if parameter in parameters(config, module) and a.shape[:1] != (rank,):
        return _experts(file, site, factors, rank, scale)
    a, b = _widened(file, site, a, b, rank)
    if b.ndim == a.ndim > 2 and a.shape[0] == rank and rank > b.shape[1] > 0:
        raise UnsupportedError(
            f"lora_B has {b.shape[1]} of {rank} ranks: a LoRA of a grouped convolution mixes the "
            "groups' inputs, which no weight of that convolution can do. Train it without that "
            "layer"
        )
    axes = max(a.ndim, 2)
    sizes = {"lora_A.weight": a, "lora_B.weight": b}
    check_ranks(sizes, {"lora_A.weight": (axes, 0), "lora_B.weight": (axes, 1)}, rank)
    if b.shape[2:] != (1,) * (axes - 2):
        raise ShapeError(f"lora_B.weight has shape {b.shape}, expected (out, {rank}, 1, …)")
    kernel = a.shape[2:]
    a, b = a.reshape(rank, -1), b.reshape(-1, rank)
    # The updates of a parameter have its own order of axes, so they are never transposed.
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


def _experts(file: File, site: str, factors: SiteTensors, rank: int, scale: float) -> Update:
    """LoRA of a leaf of experts, which are the outer axis in A's (e·r), the inner in B's (r·e)."""
    a, b = factors["lora_A.weight"], factors["lora_B.weight"]
    if len(factors) > 2 or a.ndim != 2 or b.ndim != 2 or len(a) % rank or len(a) != b.shape[1]:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected (experts·{rank}, in), (out, {rank}·experts)"
        )
    experts, sizes = len(a) // rank, (b.shape[0], a.shape[1])
    shape = file.shape(site)
    if shape[:1] != (experts,) or sorted(shape[1:]) != sorted(sizes):
        raise ShapeError(
            f"{describe_shapes(factors)} fit {experts} experts (out, in) = {sizes}, but {site} has "
            f"shape {shape}"
        )
    in_first = shape[1:] != sizes
    if sizes[0] == sizes[1]:
        # Other parameters of the module have the same order of axes.
        module = site.rpartition(".")[0]
        in_first = file.cache.get((module, "in_first"), has_inputs_first(file, module))
    if in_first is None:
        raise UnsupportedError(
            f"the experts' matrices are square, {sizes}, and neither the file nor the base states "
            "whether they are stored as (out, in) or (in, out). Pass the base's folder with its "
            "config.json"
        )
    return ExpertLoRA(
        a.reshape(experts, rank, -1),
        b.reshape(len(b), rank, experts).transpose(2, 0, 1),
        scale,
        in_first=in_first,
    )


def _widened(file: File, site: str, a: Factor, b: Factor, rank: int) -> tuple[Factor, Factor]:
    """Expands A and B where BD-LoRA stores only their blocks, or QALoRA pools the inputs."""
    config = file.config
    if config.flag("use_qalora"):
        # PEFT takes the mean of each group of inputs, times the number of groups. It does so only
        # for quantized layers; others have a plain LoRA.
        group = _count(config.values.get("qalora_group_size", 16), "qalora_group_size")
        groups, size = a.shape[-1], math.prod(file.shape(site)[1:])
        if a.ndim == 2 and groups != size and groups * group == size:
            a = np.repeat(at_least_float32(a), size // groups, axis=1) * np.float32(
                groups**2 / size
            )
        return a, b
    if isinstance(blocks := config.values.get("use_bdlora"), dict):
        count = _count(blocks.get("nblocks", 1), "nblocks")
        if _is_named(site, blocks.get("target_modules_bd_a")):
            return _block_diagonal(a, count), b
        if _is_named(site, blocks.get("target_modules_bd_b")):
            return a, _block_diagonal(b, count)
    return a, b


def _count(value: Any, name: str) -> int:
    """Checks a count in a nested part of the config, which `ConfigFields` do not check."""
    if not COUNT.holds(value):
        raise CheckpointError(
            f"{name} is {short_json(value)} in the config, expected {COUNT.description}"
        )
    return value


def _is_named(site: str, parts: Any) -> bool:
    """Whether one of the strings is in a module's path, as PEFT tests."""
    return isinstance(parts, list) and any(str(part) in site for part in parts)


def _block_diagonal(stacked: Factor, count: int) -> Factor:
    """Places stacked blocks (rows, cols/count) along a diagonal."""
    if stacked.ndim != 2 or stacked.shape[0] % count:
        raise ShapeError(f"a factor of shape {stacked.shape} does not consist of {count} blocks")
    if stacked.size * count > _MOST:
        raise ShapeError(
            f"a factor of shape {stacked.shape} in {count} blocks has {stacked.size * count:,} "
            f"numbers as a matrix, expected at most {_MOST:,}. Was nblocks edited?"
        )
    rows, cols = stacked.shape[0] // count, stacked.shape[1]
    out = np.zeros((stacked.shape[0], cols * count), stacked.dtype)
    for i in range(count):
        block = slice(i * rows, (i + 1) * rows)
        out[block, i * cols : (i + 1) * cols] = stacked[block]
    return out


def _on_its_base(file: File, site: str, update: LoRA, rank: int) -> LoRA:
    """Subtracts the product that PiSSA and OLoRA subtract from the base when PEFT creates a layer.

    The initial product comes from the base's own factors, so it does not depend on their signs. The
    result equals PEFT's conversion to a plain LoRA of twice the rank. The trained and subtracted
    products nearly cancel, so the base's factors stay in float32: in 16 bits their error would be
    as large as the change.
    """
    if (init := str(file.config.values.get("init_lora_weights")).lower()) not in SUBTRACTED:
        return update
    is_linear = not (update.kernel or update.embedding)
    is_transposed = is_linear and file.is_conv1d(site)
    # PEFT's OLoRA ignores that a weight is stored as (in, out).
    if not is_linear or (init == "olora" and is_transposed):
        raise UnsupportedError(f"PEFT has no {init} for this layer. Save it as a plain LoRA")
    if not update.scale:
        raise CheckpointError(f"lora_alpha is 0, by which {init} divides. Save it as a plain LoRA")
    weight = file.weight(site).astype(np.float64)
    weight = weight.T if is_transposed else weight
    if init == "pissa":
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        initial_b, initial_a = left[:, :rank] * values[:rank] / update.scale, right[:rank]
    else:
        left, right = np.linalg.qr(weight)
        initial_b, initial_a = left[:, :rank], right[:rank]
    a, b = at_least_float32(update.a), at_least_float32(update.b)
    a: Any = np.concatenate([a, initial_a.astype(a.dtype)], 0)
    b: Any = np.concatenate([b, -initial_b.astype(b.dtype)], 1)
    return LoRA(
        a,
        b,
        update.scale,
        magnitude=update.magnitude,
        bias=update.bias,
        transposed=update.transposed,
    )


def _bias(file: File, factors: SiteTensors, shape: tuple[int, ...]) -> Factor | None:
    """The bias of ``lora_bias``."""
    bias = _flagged(file, factors, "lora_B.bias", "lora_bias")
    if bias is not None and bias.shape != shape:
        raise ShapeError(f"lora_B.bias has shape {bias.shape}, expected {shape}")
    return bias


def _magnitude(file: File, factors: SiteTensors) -> Factor | None:
    """DoRA's magnitude, without a convolution's axes of length one."""
    magnitude = _flagged(file, factors, "lora_magnitude_vector", "use_dora")
    if magnitude is None:
        return None
    if magnitude.size != max(magnitude.shape, default=0):
        raise ShapeError(f"lora_magnitude_vector has shape {magnitude.shape}, expected (out,)")
    return magnitude.reshape(-1)


def _flagged(file: File, factors: SiteTensors, name: str, flag: str) -> Factor | None:
    """A factor that must be present exactly if a flag is on."""
    if (name in factors) == file.config.flag(flag):
        return factors.get(name)
    state = "present" if name in factors else "missing"
    setting = "on" if file.config.flag(flag) else "off"
    raise CheckpointError(f"{name} is {state}, but {flag} is {setting} in the config")


PEFT_TYPE = PeftType(
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
    find_problems=problems,
    with_equal_ranks=with_equal_ranks,
)
