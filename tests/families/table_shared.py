"""Rows and samples of the families whose factors are shared by sites, or drawn from few numbers."""

from typing import Any

import numpy as np

from jaxmix.families import PVeRA, RandLoRA, TinyLoRA, UniLoRA, VBLoRA, VeRA

from . import formulas_additive as formulas
from .module import RANK, Module, Rng, common_divisor, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample

__all__ = ["ROWS", "SAMPLES"]

_W = (6, 9)
_FAN = {"fan_in_fan_out": True}


def _fan(config: Config) -> bool:
    return bool(config.get("fan_in_fan_out"))


def _weight(config: Config, weight: tuple[int, int] = _W) -> tuple[int, int]:
    return (weight[1], weight[0]) if _fan(config) else weight


def _ints(below: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(below).integers(0, below, shape).astype(np.int32)


def _vera(f: Factors, config: Config) -> VeRA:
    make, name = (PVeRA, "pvera") if "pvera_A" in f else (VeRA, "vera")
    names = ("A", "B", "lambda_b", "lambda_d")
    return make(*(f[f"{name}_{n}"] for n in names), transposed=_fan(config))


def _vera_row(spare: int = 0, name: str = "vera", ranks: int = 1, **config: Any) -> Row:
    shapes = {
        f"{name}_A": (3 * ranks, 9 + spare),
        f"{name}_B": (6 + 2 * spare, 3),
        f"{name}_lambda_b": (6,),
        f"{name}_lambda_d": (3 * ranks,),
    }
    formula, properties = getattr(formulas, name), {"fits_in": bool(spare)}
    return Row(_vera, formula, _weight(config), shapes, "rank 3", config, properties=properties)


def _randlora(f: Factors, config: Config) -> RandLoRA:
    a, b, weights, gamma = (f[f"randlora_{name}"] for name in ("A", "B", "lambda", "gamma"))
    return RandLoRA(a, b, weights, gamma, config["alpha"] / len(a), transposed=_fan(config))


def _randlora_row(
    weight: tuple[int, int] = _W, rank: int = 2, spare: int = 0, **config: Any
) -> Row:
    small, large = sorted(weight)
    bases = -(-small // rank)
    shapes = {
        "randlora_A": (rank, 1, small + spare),
        "randlora_B": (large + spare, bases + spare, rank),
        "randlora_lambda": (rank, bases),
        "randlora_gamma": (bases, small),
    }
    # A size larger by one fits where the bases have spare rows.
    properties = {"fits_out": bool(spare) and weight[0] == large, "fits_in": False}
    properties["fits_in"] = bool(spare) and weight[1] == large
    size, config = f"{bases} bases of rank {rank}", {"alpha": 5, **config}
    return Row(
        _randlora,
        formulas.randlora,
        _weight(config, weight),
        shapes,
        size,
        config,
        properties=properties,
    )


def _vblora(f: Factors, config: Config) -> VBLoRA:
    def side(name: str) -> tuple[Any, ...]:
        name = f"vblora_logits_{name}"
        suffixes = ("_topk_weights", "_topk_indices")
        return (f[name],) if name in f else tuple(f[name + suffix] for suffix in suffixes)

    bank = f["vblora_vector_bank"]
    return VBLoRA(side("A"), side("B"), bank, config["topk"], transposed=_fan(config))


def _vblora_row(topk: int = 2, only_topk: bool = False, **config: Any) -> Row:
    shapes, fixed = {"vblora_vector_bank": (7, 3)}, {}
    for name, sizes in (("A", (3, 3)), ("B", (2, 3))):
        name = f"vblora_logits_{name}"
        if only_topk:
            shapes[f"{name}_topk_weights"] = (*sizes, topk - 1)
            fixed[f"{name}_topk_indices"] = _ints(7, *sizes, topk).astype(np.uint8)
        else:
            shapes[name] = (*sizes, 7)
    size, config = "rank 3 of 7 vectors", {"topk": topk, **config}
    return Row(_vblora, formulas.vblora, _weight(config), shapes, size, config, fixed=fixed)


def _unilora(f: Factors, config: Config) -> UniLoRA:
    names = ("theta_d", "indices_A", "indices_B", "scales_A", "scales_B")
    return UniLoRA(*(f[f"unilora_{name}"] for name in names), transposed=_fan(config))


def _unilora_row(**config: Any) -> Row:
    shapes = {"unilora_theta_d": (5,), "unilora_scales_A": (3, 9), "unilora_scales_B": (6, 3)}
    fixed = {"unilora_indices_A": _ints(5, 3, 9), "unilora_indices_B": _ints(5, 6, 3)}
    size = "rank 3 of 5 values"
    return Row(_unilora, formulas.unilora, _weight(config), shapes, size, config, fixed=fixed)


def _tinylora(f: Factors, config: Config) -> TinyLoRA:
    return TinyLoRA(*(f[f"tinylora_{name}"] for name in "ABPv"), transposed=_fan(config))


def _tinylora_row(**config: Any) -> Row:
    shapes = {"A": (2, 9), "B": (6, 2), "P": (4, 2, 2), "v": (4,)}
    factor_shapes = {f"tinylora_{name}": shape for name, shape in shapes.items()}
    size = "4 values at rank 2"
    return Row(_tinylora, formulas.tinylora, _weight(config), factor_shapes, size, config)


def _draw_vera(rng: Rng, module: Module) -> VeRA:
    out, size = module.matrix
    a, b = normal(rng, RANK, size + 1), normal(rng, out + 2, RANK)
    return VeRA(a, b, normal(rng, out), normal(rng, RANK))


def _draw_pvera(rng: Rng, module: Module) -> PVeRA:
    out, size = module.matrix
    a, b = normal(rng, 2 * RANK, size + 1), normal(rng, out + 2, RANK)
    return PVeRA(a, b, normal(rng, out), normal(rng, 2 * RANK))


def _draw_randlora(rng: Rng, module: Module) -> RandLoRA:
    small, large = sorted(module.matrix)
    bases = -(-small // RANK)
    a, b = normal(rng, RANK, 1, small + 1), normal(rng, large + 1, bases + 1, RANK)
    return RandLoRA(a, b, normal(rng, RANK, bases), normal(rng, bases, small), 0.3)


def _draw_vblora(rng: Rng, module: Module) -> VBLoRA:
    """Draws all logits, or only the largest."""
    length = common_divisor(*module.matrix)
    out, size = (n // length for n in module.matrix)
    sizes, bank = ((RANK, size), (out, RANK)), normal(rng, 5, length)
    if rng.random() < 0.5:
        a, b = ((normal(rng, *s, 5),) for s in sizes)
    else:
        a, b = ((rng.random((*s, 1)), rng.integers(0, 5, (*s, 2), np.uint8)) for s in sizes)
    return VBLoRA(a, b, bank, topk=2)


def _draw_unilora(rng: Rng, module: Module) -> UniLoRA:
    out, size = module.matrix
    shapes = ((RANK, size), (out, RANK))
    indices = (rng.integers(0, 6, shape).astype(np.int32) for shape in shapes)
    return UniLoRA(normal(rng, 6), *indices, *(rng.random(shape) for shape in shapes))


def _draw_tinylora(rng: Rng, module: Module) -> TinyLoRA:
    out, size = module.matrix
    a, b = normal(rng, RANK, size), normal(rng, out, RANK)
    return TinyLoRA(a, b, normal(rng, 3, RANK, RANK), normal(rng, 3))


def _peft_vera(update: VeRA) -> Peft:
    name = "pvera" if isinstance(update, PVeRA) else "vera"
    factors = {"A": update.a, "B": update.b}
    factors |= {"lambda_b": update.lambda_b, "lambda_d": update.lambda_d}
    return getattr(formulas, name), {f"{name}_{key}": x for key, x in factors.items()}, {}


def _peft_randlora(update: RandLoRA) -> Peft:
    factors = {"A": update.a, "B": update.b, "lambda": update.weights, "gamma": update.gamma}
    tensors = {f"randlora_{key}": x for key, x in factors.items()}
    return formulas.randlora, tensors, {"alpha": float(update.scale) * len(update.a)}


def _peft_vblora(update: VBLoRA) -> Peft:
    factors: dict[str, Any] = {"vblora_vector_bank": update.bank}
    for name, side in (("A", update.a), ("B", update.b)):
        suffixes = ("",) if len(side) == 1 else ("_topk_weights", "_topk_indices")
        factors |= {
            f"vblora_logits_{name}{suffix}": x for suffix, x in zip(suffixes, side, strict=True)
        }
    return formulas.vblora, factors, {"topk": update.topk}


def _peft_unilora(update: UniLoRA) -> Peft:
    factors = {"theta_d": update.theta, "indices_A": update.a_indices}
    factors |= {"indices_B": update.b_indices, "scales_A": update.a_scales}
    factors["scales_B"] = update.b_scales
    return formulas.unilora, {f"unilora_{key}": x for key, x in factors.items()}, {}


def _peft_tinylora(update: TinyLoRA) -> Peft:
    factors = {"A": update.a, "B": update.b, "P": update.projections, "v": update.v}
    return formulas.tinylora, {f"tinylora_{key}": x for key, x in factors.items()}, {}


ROWS: dict[str, Row] = {
    "vera": _vera_row(),
    "vera shared": _vera_row(spare=2),
    "vera fan_in_fan_out": _vera_row(spare=1, **_FAN),
    "pvera": _vera_row(2, "pvera", 2),
    "pvera fan_in_fan_out": _vera_row(2, "pvera", 2, **_FAN),
    "randlora": _randlora_row(),
    "randlora tall": _randlora_row((9, 6), spare=1),
    "randlora uneven": _randlora_row((5, 9), rank=3, spare=1),
    "randlora fan_in_fan_out": _randlora_row(**_FAN),
    "vblora": _vblora_row(),
    "vblora fan_in_fan_out": _vblora_row(3, **_FAN),
    "vblora saved topk": _vblora_row(3, only_topk=True),
    "unilora": _unilora_row(),
    "unilora fan_in_fan_out": _unilora_row(**_FAN),
    "tinylora": _tinylora_row(),
    "tinylora fan_in_fan_out": _tinylora_row(**_FAN),
}


SAMPLES: dict[str, Sample] = {
    "VeRA": Sample(_draw_vera, _peft_vera),
    "PVeRA": Sample(_draw_pvera, _peft_vera),
    "RandLoRA": Sample(_draw_randlora, _peft_randlora),
    "VBLoRA": Sample(_draw_vblora, _peft_vblora),
    "UniLoRA": Sample(_draw_unilora, _peft_unilora),
    "TinyLoRA": Sample(_draw_tinylora, _peft_tinylora),
}
