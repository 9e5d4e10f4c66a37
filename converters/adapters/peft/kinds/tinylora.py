"""PEFT's TinyLoRA, whose trained vectors are shared by groups of sites."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import fan_in_fan_out, same, unless
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, FLAG, INTEGER, SHARE, one_of
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import TinyLoRA

__all__ = ["KIND"]

_V = "tinylora_v."


def _build(file: File, site: str, factors: Factors) -> TinyLoRA:
    """TinyLoRA at a site, of a linear layer or an embedding: B R A of both."""
    said = file.config.values
    a, b = need(factors, "tinylora_A", "tinylora_B")
    if a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1] <= said["r"]:
        raise ShapeError(f"{shapes(factors)}, expected (r, in) and (out, r), r {said['r']} or less")
    shape, seed = (said["u"], len(a), len(a)), said["projection_seed"]
    p = factors.get("tinylora_P")
    if wrong := {name: v for name, v in file.shared.items() if v.shape != shape[:1]}:
        raise ShapeError(f"{shapes(wrong)}, expected {shape[:1]} by the config's u")
    number = _number(file, p, shape)
    v = _vector(file, number or 0)
    if p is None:
        # PEFT's A and B come out of an SVD. A rank beyond the weight's would square in P.
        if len(a) > min(a.shape[1], len(b)):
            raise ShapeError(f"{shapes(factors)}, expected a rank that a weight of these sizes has")
        p = _drawn(file, seed + (number or 0), shape)
    if p.shape != shape:
        raise ShapeError(f"tinylora_P has shape {p.shape}, expected {shape}")
    return TinyLoRA(a, b, p, v, number, seed, file.transposed)


def _vector(file: File, number: int) -> Any:
    """The vector of the group to which the site of this number belongs."""
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
    """Which of the model's adapted modules a site is, in the order in which the model makes them.

    The file does not say it, but the projections of each were drawn from the seed plus this number,
    so that they tell it when they are drawn again. Where one vector serves all, and no projections
    are to be drawn, it does not matter, and is None.
    """
    said, count = file.config.values, len(file.sites)
    if count == 1:
        return 0
    if projections is None:
        raise CheckpointError(
            "tinylora_P missing: PEFT draws it anew from a seed that counts the modules in the "
            "order in which the model makes them, which no file tells. Load it with PEFT once, set "
            "save_projection to true and save it again"
        )
    if max(1, round(count * (1.0 - said["weight_tying"]))) == 1:
        return None
    seed = said["projection_seed"]
    sought = np.asarray(projections, np.float32)
    same = [i for i in range(count) if _is_drawn(file, seed + i, shape, sought)]
    if len(same) != 1:
        raise CheckpointError(
            f"tinylora_P is that of {len(same)} of the {count} modules when drawn again from "
            f"projection_seed {seed}, expected one, so that nobody can say which tinylora_v is "
            "its own. Was it saved by another version of PEFT or torch?"
        )
    return same[0]


def _drawn(file: File, seed: int, shape: tuple[int, int, int], dtype: str = "float32") -> Any:
    """The projections of one module; PEFT draws them in torch's default dtype."""
    key = (seed, shape, dtype)
    if key not in file.kept:
        torch = file.torch("which vector belongs to which module, told by projections")
        generator, std = torch.Generator().manual_seed(seed), 1.0 / shape[1] ** 0.5
        kind = getattr(torch, dtype)
        made = torch.normal(0.0, std, size=shape, generator=generator, dtype=kind)
        file.kept[key] = made.numpy()
    return file.kept[key]


def _is_drawn(file: File, seed: int, shape: tuple[int, int, int], saved: np.ndarray) -> bool:
    """Whether saved projections are from a seed, up to the rounding of what they were saved in."""
    if saved.shape != shape:
        return False
    draws = (_drawn(file, seed, shape, dtype) for dtype in ("float32", "float64"))
    return any(np.allclose(drawn, saved, rtol=0.01, atol=0.01) for drawn in draws)


def _write(updates: Mapping[str, Any]) -> Written:
    """One vector for all, or one for each module in the order of their numbers."""
    vectors = {site: update.v for site, update in updates.items()}
    (_, first), *rest = vectors.items()
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "r": max(update.a.shape[0] for update in updates.values()),
        "projection_seed": 42,
        "save_projection": True,
        "u": same(updates, "u", lambda update: update.v.shape[0]),
    }
    tensors = {
        f"{site}.tinylora_{name}": array
        for site, update in updates.items()
        for name, array in (("A", update.a), ("B", update.b), ("P", update.projections))
    }
    if all(v is first or np.array_equal(v, first) for _, v in rest):
        return Written({**fields, "weight_tying": 1.0}, tensors, {f"{_V}0": first})
    said = (
        "PEFT counts the vectors by its model's modules, all of them adapted, and these have no "
        f"numbers, or not those from 0 to {len(updates) - 1}. Export them as LoRA (jaxmix.to_lora)"
    )
    numbers = {update.number for update in updates.values()}
    unless(updates, lambda update: numbers == set(range(len(updates))), said)
    fields |= {"projection_seed": same(updates, "projection_seed", lambda update: update.seed)}
    shared = {f"{_V}{update.number}": update.v for update in updates.values()}
    return Written({**fields, "weight_tying": 0.0}, tensors, shared)


KIND = Kind(
    Fields(
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
