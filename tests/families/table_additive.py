"""Rows of the contract's table for the families that add a Δ of their own making."""

from typing import Any

import numpy as np

from jaxmix.families import (
    C3A,
    AdaMSS,
    DeLoRA,
    FourierFT,
    GraLoRA,
    KaSA,
    PVeRA,
    RandLoRA,
    SuperTuning,
    TinyLoRA,
    UniLoRA,
    VBLoRA,
    VeRA,
    WaveFT,
)
from jaxmix.families.wavelets import low_pass

from . import formulas_additive as formulas
from .row import Config, Factors, Row

__all__ = ["ROWS"]

_W = (6, 9)
_FAN = {"fan_in_fan_out": True}


def _fan(config: Config) -> bool:
    return bool(config.get("fan_in_fan_out"))


def _weight(config: Config, weight: tuple[int, int] = _W) -> tuple[int, int]:
    return (weight[1], weight[0]) if _fan(config) else weight


def _ints(below: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(below).integers(0, below, shape).astype(np.int32)


def _places(count: int, weight: tuple[int, int] = _W) -> np.ndarray:
    """Positions, none of them twice."""
    flat = np.random.default_rng(3).permutation(int(np.prod(weight)))[:count]
    return np.stack([flat // weight[1], flat % weight[1]]).astype(np.int32)


def _vera(f: Factors, config: Config) -> VeRA:
    make, name = (PVeRA, "pvera") if "pvera_A" in f else (VeRA, "vera")
    names = ("A", "B", "lambda_b", "lambda_d")
    return make(*(f[f"{name}_{n}"] for n in names), transposed=_fan(config))


def _vera_row(spare: int = 0, name: str = "vera", twice: int = 1, **config: Any) -> Row:
    shapes = {
        f"{name}_A": (3 * twice, 9 + spare),
        f"{name}_B": (6 + 2 * spare, 3),
        f"{name}_lambda_b": (6,),
        f"{name}_lambda_d": (3 * twice,),
    }
    formula, says = getattr(formulas, name), {"fits_in": bool(spare)}
    return Row(_vera, formula, _weight(config), shapes, "rank 3", config, says=says)


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
    # One more on the larger side fits where the bases have spare rows.
    says = {"fits_out": bool(spare) and weight[0] == large, "fits_in": False}
    says["fits_in"] = bool(spare) and weight[1] == large
    size, config = f"{bases} bases of rank {rank}", {"alpha": 5, **config}
    return Row(
        _randlora, formulas.randlora, _weight(config, weight), shapes, size, config, says=says
    )


def _delora(f: Factors, config: Config) -> DeLoRA:
    a, b, bound, norms = (f[f"delora_{name}"] for name in ("A", "B", "lambda", "w_norm"))
    return DeLoRA(a, b, bound, norms)


def _delora_row(**fixed: Any) -> Row:
    shapes = {"delora_A": (3, 9), "delora_B": (6, 3), "delora_lambda": (1,), "delora_w_norm": (9,)}
    shapes = {name: shape for name, shape in shapes.items() if name not in fixed}
    return Row(_delora, formulas.delora, _W, shapes, "rank 3", fixed=fixed)


def _vblora(f: Factors, config: Config) -> VBLoRA:
    def side(name: str) -> tuple[Any, ...]:
        name = f"vblora_logits_{name}"
        ends = ("_topk_weights", "_topk_indices")
        return (f[name],) if name in f else tuple(f[name + end] for end in ends)

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
    named = {f"tinylora_{name}": shape for name, shape in shapes.items()}
    size = "4 values at rank 2"
    return Row(_tinylora, formulas.tinylora, _weight(config), named, size, config)


def _supertuning(f: Factors, config: Config) -> SuperTuning:
    a, b = f.get("supertuning_lora_A"), f.get("supertuning_lora_B")
    scale = 1.0 if a is None else config["alpha"] / len(a)
    return SuperTuning(f["supertuning_values"], f["supertuning_indices"], scale, a, b)


def _supertuning_row(size: str, says: Any, **shapes: tuple[int, ...]) -> Row:
    named = {f"supertuning_{name}": shape for name, shape in shapes.items()}
    fixed = {"supertuning_indices": np.array([53, 7, 20, 7], np.int32)}
    config = {"alpha": 7}
    return Row(_supertuning, formulas.supertuning, _W, named, size, config, fixed=fixed, says=says)


def _c3a(f: Factors, config: Config) -> C3A:
    return C3A(f["c3a_kernel"])


def _c3a_row(block: int, weight: tuple[int, int] = _W) -> Row:
    shapes = {"c3a_kernel": (weight[0] // block, weight[1] // block, block)}
    return Row(_c3a, formulas.c3a, weight, shapes, f"block {block}")


def _fourierft(f: Factors, config: Config) -> FourierFT:
    spectrum, indices = f["fourierft_spectrum"], f["indices"]
    return FourierFT(spectrum, indices, config["scaling"], seed=777, transposed=_fan(config))


def _fourierft_row(count: int, **config: Any) -> Row:
    shapes, fixed = {"fourierft_spectrum": (count,)}, {"indices": _places(count)}
    size, config = f"{count} frequencies", {"scaling": 40.0, **config}
    says, weight = {"fits_out": True, "fits_in": True}, _weight(config)
    formula = formulas.fourierft
    return Row(_fourierft, formula, weight, shapes, size, config, fixed=fixed, says=says)


def _waveft(f: Factors, config: Config) -> WaveFT:
    spectrum, indices, scale = f["waveft_spectrum"], f["waveft_indices"], config["scaling"]
    return WaveFT(spectrum, indices, scale, config["wavelet"], 777, transposed=_fan(config))


def _waveft_row(
    wavelet: str | None, weight: tuple[int, int] = _W, count: int = 8, **config: Any
) -> Row:
    fixed = {"waveft_indices": _places(count, weight)}
    size = f"{count} coefficients of {wavelet or 'no wavelet'}"
    config = {"scaling": 3.0, "wavelet": wavelet, **config}
    config["filter"] = None if wavelet is None else low_pass(wavelet)
    shapes, says = {"waveft_spectrum": (count,)}, {"fits_out": True, "fits_in": True}
    weight = _weight(config, weight)
    return Row(_waveft, formulas.waveft, weight, shapes, size, config, fixed=fixed, says=says)


def _gralora(f: Factors, config: Config) -> GraLoRA:
    a, b = f["gralora_A"], f["gralora_B"]
    general = f.get("gralora_A_general"), f.get("gralora_B_general")
    rank = a.shape[2] + (0 if general[0] is None else len(general[0]))
    return GraLoRA(a, b, config["alpha"] / rank, *general, transposed=_fan(config))


def _gralora_row(size: str, hybrid: int = 0, k: int = 3, **config: Any) -> Row:
    shapes = {"gralora_A": (k, 9 // k, 6), "gralora_B": (k, 6, 6 // k)}
    if hybrid:
        shapes |= {"gralora_A_general": (hybrid, 9), "gralora_B_general": (6, hybrid)}
    config = {"alpha": 5, **config}
    return Row(_gralora, formulas.gralora, _weight(config), shapes, size, config)


def _adamss(f: Factors, config: Config) -> AdaMSS:
    a, b = ([f[f"adamss_{side}.{i}"] for i in range(2)] for side in "AB")
    whole = f["adamss_newB"]
    bias = whole[:, 9] if whole.shape[1] > 9 else None
    return AdaMSS(tuple(a), tuple(b), whole[:, :9], f["rows"], bias)


def _adamss_row(columns: int) -> Row:
    shapes = {"adamss_A.0": (2, 4), "adamss_A.1": (1, 4), "adamss_B.0": (4, 2)}
    shapes |= {"adamss_B.1": (2, 1), "adamss_newB": (4, columns)}
    fixed, says = {"rows": np.array([5, 0, 2, 3, 1, 4], np.int32)}, {"has_bias": columns > 9}
    size = "2 groups of rank 3 in total"
    return Row(_adamss, formulas.adamss, _W, shapes, size, fixed=fixed, says=says)


def _kasa(f: Factors, config: Config) -> KaSA:
    return KaSA(f["lora_A"], f["lora_B"], f["lora_diag"], config["alpha"] / 2)


_KASA = {"lora_A": (2, 9), "lora_B": (6, 2), "lora_diag": (2,)}
_READS = {"reads_base": True}

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
    "delora": _delora_row(),
    "delora short": _delora_row(delora_B=np.full((6, 3), 3e-5)),
    "vblora": _vblora_row(),
    "vblora fan_in_fan_out": _vblora_row(3, **_FAN),
    "vblora saved topk": _vblora_row(3, only_topk=True),
    "unilora": _unilora_row(),
    "unilora fan_in_fan_out": _unilora_row(**_FAN),
    "tinylora": _tinylora_row(),
    "tinylora fan_in_fan_out": _tinylora_row(**_FAN),
    "supertuning": _supertuning_row("4 entries", {"fits_out": True, "fits_in": True}, values=(4,)),
    "supertuning supra": _supertuning_row(
        "4 entries and rank 2", {}, values=(4,), lora_A=(2, 9), lora_B=(6, 2)
    ),
    "c3a": _c3a_row(3),
    "c3a square": _c3a_row(6, (6, 6)),
    "c3a blocks of one": _c3a_row(1),
    "fourierft": _fourierft_row(5),
    "fourierft few": _fourierft_row(1),
    "fourierft fan_in_fan_out": _fourierft_row(6, **_FAN),
    "waveft": _waveft_row("db1"),
    "waveft no idwt": _waveft_row(None),
    "waveft longer": _waveft_row("db3", (6, 8), 30),
    "waveft symlet": _waveft_row("sym4", (7, 5), 20),
    "waveft coiflet": _waveft_row("coif2", (5, 8), 20),
    "waveft fan_in_fan_out": _waveft_row("db2", **_FAN),
    "gralora": _gralora_row("rank 6 in 3 blocks"),
    "gralora hybrid": _gralora_row("rank 6 + 2 in 3 blocks", 2),
    "gralora one block": _gralora_row("rank 6 in 1 blocks", k=1),
    "gralora fan_in_fan_out": _gralora_row("rank 6 + 2 in 3 blocks", 2, **_FAN),
    "adamss": _adamss_row(9),
    "adamss bias": _adamss_row(10),
    "kasa": Row(_kasa, formulas.kasa, _W, _KASA, "rank 2", {"alpha": 5}, False, says=_READS),
}
