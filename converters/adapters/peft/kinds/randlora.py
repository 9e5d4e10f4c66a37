"""PEFT's RandLoRA, whose bases are one pair for all sites, saved or drawn from a seed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.site_values import as_float
from jaxmix.converters.adapters.common.values import COUNT, FLAG, INTEGER, NUMBER, one_of
from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import RandLoRA

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> RandLoRA:
    """RandLoRA at a site."""
    weights, gamma = required(factors, "randlora_lambda", "randlora_gamma")
    config = file.config.values
    rank = config["r"]
    if weights.shape[:1] != (rank,):
        raise ShapeError(f"randlora_lambda has shape {weights.shape}, expected ({rank}, n)")
    a, b = _bases(file)
    bases = weights.shape[1] if weights.ndim == 2 else -1
    is_site = gamma.ndim == 2 and (weights.shape[:1], gamma.shape[:1]) == ((rank,), (bases,))
    if not is_site or a.ndim != 3 or b.ndim != 3 or (*a.shape[:2], b.shape[2]) != (rank, 1, rank):
        shapes = describe_shapes({"randlora_A": a, "randlora_B": b, **factors})
        raise ShapeError(
            f"{shapes}, expected ({rank}, 1, ·), (·, ·, {rank}), lambda ({rank}, n), gamma (n, ·)"
        )
    scale, fan = config["randlora_alpha"] / rank, file.transposed
    return RandLoRA(a, b, weights, gamma, scale, fan)


def _bases(file: File) -> tuple[Any, Any]:
    """A and B of all sites, from the file or drawn as in PEFT.

    PEFT also stores copies of them at every site, which are ignored.
    """
    a, b = file.shared.get("randlora_A"), file.shared.get("randlora_B")
    if a is not None and b is not None:
        return a, b
    config = file.config.values
    if config.get("save_projection", True):
        raise CheckpointError("randlora_A or randlora_B is missing, but save_projection is true")
    torch = file.torch("randlora_A and randlora_B")
    # The largest output and input may belong to different sites.
    sizes = [file.sizes(site) for site in file.sites]
    small, large = sorted(max(axis) for axis in zip(*sizes, strict=True))
    sparsity = None
    if config.get("very_sparse"):
        sparsity = math.sqrt(small)
    elif config.get("sparse"):
        sparsity = 3
    if "drawn" not in file.cache:
        seed = config["projection_prng_key"]
        file.cache["drawn"] = _drawn(torch, seed, config["r"], small, large, sparsity)
    return file.cache["drawn"]


def _drawn(
    torch: Any, seed: int, rank: int, small: int, large: int, sparsity: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the pair from one generator; a dense pair in bfloat16, as PEFT does if it can."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    bases = -(-small // rank)
    if sparsity is not None:
        sizes = ((rank, 1, small), (large, bases, rank))
        uniform = [torch.rand(s, generator=generator, dtype=torch.float32) for s in sizes]
        arrays = [_ternary(torch, x, 1 / (2 * sparsity)) for x in uniform]
    else:

        def kaiming(*shape: int) -> Any:
            empty = torch.empty(shape, dtype=torch.bfloat16)
            return torch.nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)

        a = kaiming(rank, 1, small)
        arrays = [a, torch.cat([kaiming(large, 1, rank) for _ in range(bases)], dim=1)]
    a, b = ((x / x.std()).float().numpy() for x in arrays)
    return a, b


def _ternary(torch: Any, uniform: Any, part: float) -> Any:
    """-1 for the lowest part, 1 for the highest, 0 between."""
    out = torch.zeros_like(uniform)
    out[uniform < part] = -1
    out[uniform > 1 - part] = 1
    return out


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the bases once, so PEFT draws none; it needs no copies at the sites."""
    rank = equal_value(updates, "r", lambda update: update.weights.shape[0])
    bases = {
        "randlora_A": same_array(updates, "randlora_A", lambda update: update.a),
        "randlora_B": same_array(updates, "randlora_B", lambda update: update.b),
    }
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors[f"{site}.randlora_lambda"] = update.weights
        tensors[f"{site}.randlora_gamma"] = update.gamma
    return PeftContent(
        {
            "fan_in_fan_out": fan_in_fan_out(updates),
            "r": rank,
            "randlora_alpha": equal_value(
                updates, "randlora_alpha", lambda up: as_float(up.scale) * rank
            ),
            "projection_prng_key": 0,
            "save_projection": True,
        },
        tensors,
        bases,
    )


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "bias": one_of("none", "all", "randlora_only"),
            "fan_in_fan_out": FLAG,
            "projection_prng_key": INTEGER,
            "r": COUNT,
            "randlora_alpha": NUMBER,
            "save_projection": FLAG,
            "sparse": FLAG,
            "very_sparse": FLAG,
            **SAVED,
        },
        ABOUT | (WHERE - {"exclude_modules"}) | {"init_weights", "randlora_dropout"},
    ),
    ("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"),
    _build,
    _write,
    shared=("randlora_A", "randlora_B"),
)
