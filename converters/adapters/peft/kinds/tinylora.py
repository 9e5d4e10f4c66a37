"""PEFT's TinyLoRA, whose trained vectors are shared by groups of sites."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, FLAG, INTEGER, SHARE, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out, refuse_unless
from jaxmix.errors import CheckpointError, ShapeError, to_lora_call
from jaxmix.families import TinyLoRA

__all__ = ["PEFT_TYPE"]

_V = "tinylora_v."


def _build(file: File, site: str, factors: SiteTensors) -> TinyLoRA:
    """TinyLoRA of a linear layer or an embedding: B R A for both."""
    config = file.config.values
    a, b = required(factors, "tinylora_A", "tinylora_B")
    if a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1] <= config["r"]:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected (r, in) and (out, r), with r at most "
            f"{config['r']}"
        )
    shape, seed = (config["u"], len(a), len(a)), config["projection_seed"]
    p = factors.get("tinylora_P")
    if wrong := {name: v for name, v in file.shared.items() if v.shape != shape[:1]}:
        raise ShapeError(f"{describe_shapes(wrong)}, expected {shape[:1]} by the config's u")
    number = _number(file, p, shape)
    v = _vector(file, number or 0)
    if p is None:
        # PEFT's A and B come from an SVD. P grows with the square of a rank beyond the weight's.
        if len(a) > min(a.shape[1], len(b)):
            raise ShapeError(
                f"{describe_shapes(factors)}, expected a rank that a weight of these sizes has"
            )
        p = _drawn(file, seed + (number or 0), shape)
    if p.shape != shape:
        raise ShapeError(f"tinylora_P has shape {p.shape}, expected {shape}")
    return TinyLoRA(a, b, p, v, number, seed, file.transposed)


def _vector(file: File, number: int) -> Any:
    """The vector of the group of the site with this number."""
    count, tying = len(file.sites), file.config.values["weight_tying"]
    groups = max(1, round(count * (1.0 - tying)))
    group = min(number // max(1, count // groups), groups - 1)
    if set(file.shared) != {f"{_V}{i}" for i in range(groups)}:
        raise CheckpointError(
            f"the file has the vectors {sorted(file.shared)}, expected "
            f"{groups} from {_V}0 on, for {count} modules with weight_tying {tying}. Were some of "
            "the modules left out of it?"
        )
    return file.shared[f"{_V}{group}"]


def _number(file: File, projections: Any, shape: tuple[int, int, int]) -> int | None:
    """The index of a site among the model's adapted modules, in the model's own order.

    The file does not state it. But the projections of each site were drawn from the seed plus this
    number, so drawing them again reveals the number. If all sites share one vector and no
    projections must be drawn, the number is irrelevant, and the result None.
    """
    config, count = file.config.values, len(file.sites)
    if count == 1:
        return 0
    if projections is None:
        raise CheckpointError(
            "tinylora_P is missing: PEFT draws it again from a seed that depends on the module's "
            "position in the model, which no file states. Load it with PEFT once, set "
            "save_projection to true and save it again"
        )
    if max(1, round(count * (1.0 - config["weight_tying"]))) == 1:
        return None
    seed = config["projection_seed"]
    sought = np.asarray(projections, np.float32)
    matching = [i for i in range(count) if _is_drawn(file, seed + i, shape, sought)]
    if len(matching) != 1:
        raise CheckpointError(
            f"tinylora_P equals that of {len(matching)} of the {count} modules when drawn again "
            f"from projection_seed {seed}, expected one, which determines its tinylora_v. Was it "
            "saved by another version of PEFT or torch?"
        )
    return matching[0]


def _drawn(file: File, seed: int, shape: tuple[int, int, int], dtype: str = "float32") -> Any:
    """The projections of a module, which PEFT draws in torch's default dtype."""
    key = (seed, shape, dtype)
    if key not in file.cache:
        torch = file.torch("the vector of each module, which follows from the projections")
        generator, std = torch.Generator().manual_seed(seed), 1.0 / shape[1] ** 0.5
        kind = getattr(torch, dtype)
        drawn = torch.normal(0.0, std, size=shape, generator=generator, dtype=kind)
        file.cache[key] = drawn.numpy()
    return file.cache[key]


def _is_drawn(file: File, seed: int, shape: tuple[int, int, int], saved: np.ndarray) -> bool:
    """Whether saved projections were drawn from a seed, up to the rounding of their dtype."""
    if saved.shape != shape:
        return False
    draws = (_drawn(file, seed, shape, dtype) for dtype in ("float32", "float64"))
    return any(np.allclose(drawn, saved, rtol=0.01, atol=0.01) for drawn in draws)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes one vector for all modules, or one for each, in the order of their numbers."""
    vectors = {site: update.v for site, update in updates.items()}
    (_, first), *rest = vectors.items()
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "r": max(update.a.shape[0] for update in updates.values()),
        "projection_seed": 42,
        "save_projection": True,
        "u": equal_value(updates, "u", lambda update: update.v.shape[0]),
    }
    tensors = {
        f"{site}.tinylora_{name}": array
        for site, update in updates.items()
        for name, array in (("A", update.a), ("B", update.b), ("P", update.projections))
    }
    if all(v is first or np.array_equal(v, first) for _, v in rest):
        return PeftContent({**fields, "weight_tying": 1.0}, tensors, {f"{_V}0": first})
    problem = (
        "PEFT numbers the vectors by the adapted modules of its model, and these have no "
        f"numbers, or not those from 0 to {len(updates) - 1}. Export them as LoRA "
        f"({to_lora_call()})"
    )
    numbers = {update.number for update in updates.values()}
    refuse_unless(updates, lambda update: numbers == set(range(len(updates))), problem)
    fields |= {
        "projection_seed": equal_value(updates, "projection_seed", lambda update: update.seed)
    }
    shared = {f"{_V}{update.number}": update.v for update in updates.values()}
    return PeftContent({**fields, "weight_tying": 0.0}, tensors, shared)


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "bias": one_of("none", "all", "tinylora_only"),
            "fan_in_fan_out": FLAG,
            "projection_seed": INTEGER,
            "r": COUNT,
            "save_projection": FLAG,
            "u": COUNT,
            "weight_tying": SHARE,
            **SAVED,
        },
        ABOUT
        | (WHERE - {"exclude_modules"})
        | {"init_v_bound", "init_weights", "tinylora_dropout"},
    ),
    ("tinylora_A", "tinylora_B", "tinylora_P"),
    _build,
    _write,
    shared=("tinylora_v.*",),
)
