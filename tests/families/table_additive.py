"""Rows and samples of the families that add a Δ."""

from typing import Any

import numpy as np

from jaxmix.families import (
    C3A,
    AdaMSS,
    DeLoRA,
    FourierFT,
    GraLoRA,
    KaSA,
    SuperTuning,
    WaveFT,
)
from jaxmix.families.wavelets import low_pass

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


def _places(count: int, weight: tuple[int, int] = _W) -> np.ndarray:
    """Distinct positions."""
    flat = np.random.default_rng(3).permutation(int(np.prod(weight)))[:count]
    return np.stack([flat // weight[1], flat % weight[1]]).astype(np.int32)


def _delora(f: Factors, config: Config) -> DeLoRA:
    a, b, bound, norms = (f[f"delora_{name}"] for name in ("A", "B", "lambda", "w_norm"))
    return DeLoRA(a, b, bound, norms)


def _delora_row(**fixed: Any) -> Row:
    shapes = {"delora_A": (3, 9), "delora_B": (6, 3), "delora_lambda": (1,), "delora_w_norm": (9,)}
    shapes = {name: shape for name, shape in shapes.items() if name not in fixed}
    return Row(_delora, formulas.delora, _W, shapes, "rank 3", fixed=fixed)


def _supertuning(f: Factors, config: Config) -> SuperTuning:
    a, b = f.get("supertuning_lora_A"), f.get("supertuning_lora_B")
    scale = 1.0 if a is None else config["alpha"] / len(a)
    return SuperTuning(f["supertuning_values"], f["supertuning_indices"], scale, a, b)


def _supertuning_row(size: str, properties: Any, **shapes: tuple[int, ...]) -> Row:
    factor_shapes = {f"supertuning_{name}": shape for name, shape in shapes.items()}
    fixed = {"supertuning_indices": np.array([53, 7, 20, 7], np.int32)}
    config = {"alpha": 7}
    return Row(
        _supertuning,
        formulas.supertuning,
        _W,
        factor_shapes,
        size,
        config,
        fixed=fixed,
        properties=properties,
    )


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
    properties, weight = {"fits_out": True, "fits_in": True}, _weight(config)
    formula = formulas.fourierft
    return Row(
        _fourierft, formula, weight, shapes, size, config, fixed=fixed, properties=properties
    )


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
    shapes, properties = {"waveft_spectrum": (count,)}, {"fits_out": True, "fits_in": True}
    weight = _weight(config, weight)
    return Row(
        _waveft, formulas.waveft, weight, shapes, size, config, fixed=fixed, properties=properties
    )


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
    new_b = f["adamss_newB"]
    bias = new_b[:, 9] if new_b.shape[1] > 9 else None
    return AdaMSS(tuple(a), tuple(b), new_b[:, :9], f["rows"], bias)


def _adamss_row(columns: int) -> Row:
    shapes = {"adamss_A.0": (2, 4), "adamss_A.1": (1, 4), "adamss_B.0": (4, 2)}
    shapes |= {"adamss_B.1": (2, 1), "adamss_newB": (4, columns)}
    fixed, properties = {"rows": np.array([5, 0, 2, 3, 1, 4], np.int32)}, {"has_bias": columns > 9}
    size = "2 groups of rank 3 in total"
    return Row(_adamss, formulas.adamss, _W, shapes, size, fixed=fixed, properties=properties)


def _kasa(f: Factors, config: Config) -> KaSA:
    return KaSA(f["lora_A"], f["lora_B"], f["lora_diag"], config["alpha"] / 2)


_KASA = {"lora_A": (2, 9), "lora_B": (6, 2), "lora_diag": (2,)}
_READS = {"reads_base": True}


def _positions(rng: Rng, module: Module, count: int = 5) -> Any:
    """Distinct positions."""
    out, size = module.matrix
    flat = rng.permutation(out * size)[:count]
    return np.stack([flat // size, flat % size]).astype(np.int32)


def _draw_delora(rng: Rng, module: Module) -> DeLoRA:
    out, size = module.matrix
    a, b = normal(rng, RANK, size), normal(rng, out, RANK)
    return DeLoRA(a, b, normal(rng, 1), 1 + rng.random(size))


def _draw_supertuning(rng: Rng, module: Module) -> SuperTuning:
    (out, size), count = module.matrix, 5
    positions = rng.integers(0, out * size, count).astype(np.int32)
    if rng.random() < 0.5:
        return SuperTuning(normal(rng, count), positions)
    a, b = normal(rng, RANK, size), normal(rng, out, RANK)
    return SuperTuning(normal(rng, count), positions, 0.5, a, b)


def _draw_c3a(rng: Rng, module: Module) -> C3A:
    block = common_divisor(*module.matrix)
    return C3A(normal(rng, *(size // block for size in module.matrix), block))


def _draw_fourierft(rng: Rng, module: Module) -> FourierFT:
    count = 1 if rng.random() < 0.5 else 5
    return FourierFT(normal(rng, count), _positions(rng, module, count), 9.0)


def _draw_waveft(rng: Rng, module: Module) -> WaveFT:
    wavelet = [None, "db1", "db2", "sym4"][rng.integers(4)]
    return WaveFT(normal(rng, 5), _positions(rng, module), 2.0, wavelet)


def _draw_gralora(rng: Rng, module: Module) -> GraLoRA:
    (out, size), k = module.matrix, common_divisor(*module.matrix)
    a, b = normal(rng, k, size // k, 2 * k), normal(rng, k, 2 * k, out // k)
    if rng.random() < 0.5:
        return GraLoRA(a, b, 0.3)
    return GraLoRA(a, b, 0.3, normal(rng, RANK, size), normal(rng, out, RANK))


def _draw_adamss(rng: Rng, module: Module) -> AdaMSS:
    (out, size), rows = module.matrix, rng.permutation(module.matrix[0]).astype(np.int32)
    a = (normal(rng, 1, 3), normal(rng, 2, 3))
    b = (normal(rng, 1, 1), normal(rng, out - 1, 2))
    bias = normal(rng, 3) if module.bias else None
    return AdaMSS(a, b, normal(rng, 3, size), rows, bias)


def _draw_kasa(rng: Rng, module: Module) -> KaSA:
    out, size = module.matrix
    return KaSA(normal(rng, RANK, size), normal(rng, out, RANK), normal(rng, RANK), 0.6)


def _peft_delora(update: DeLoRA) -> Peft:
    factors = {"A": update.a, "B": update.b, "lambda": update.bound, "w_norm": update.norms}
    return formulas.delora, {f"delora_{key}": x for key, x in factors.items()}, {}


def _peft_supertuning(update: SuperTuning) -> Peft:
    factors = {"values": update.values, "indices": update.positions}
    factors |= {"lora_A": update.a, "lora_B": update.b}
    alpha = float(update.scale) * (1 if update.a is None else len(update.a))
    tensors = {f"supertuning_{key}": x for key, x in factors.items()}
    return formulas.supertuning, tensors, {"alpha": alpha}


def _peft_c3a(update: C3A) -> Peft:
    return formulas.c3a, {"c3a_kernel": update.kernels}, {}


def _peft_fourierft(update: FourierFT) -> Peft:
    factors = {"fourierft_spectrum": update.spectrum, "indices": update.indices}
    return formulas.fourierft, factors, {"scaling": float(update.scale)}


def _peft_waveft(update: WaveFT) -> Peft:
    factors = {"waveft_spectrum": update.spectrum, "waveft_indices": update.indices}
    low = None if update.wavelet is None else low_pass(update.wavelet)
    return formulas.waveft, factors, {"scaling": float(update.scale), "filter": low}


def _peft_gralora(update: GraLoRA) -> Peft:
    factors = {"A": update.a, "B": update.b}
    factors |= {"A_general": update.a_general, "B_general": update.b_general}
    rank = update.a.shape[2] + (0 if update.a_general is None else len(update.a_general))
    tensors = {f"gralora_{key}": x for key, x in factors.items()}
    return formulas.gralora, tensors, {"alpha": float(update.scale) * rank}


def _peft_adamss(update: AdaMSS) -> Peft:
    new_b = np.asarray(update.projection)
    if update.bias is not None:
        new_b = np.concatenate([new_b, np.asarray(update.bias)[:, None]], 1)
    factors: dict[str, Any] = {"adamss_newB": new_b, "rows": update.rows}
    for name, side in (("A", update.a), ("B", update.b)):
        factors |= {f"adamss_{name}.{i}": x for i, x in enumerate(side)}
    return formulas.adamss, factors, {}


def _peft_kasa(update: KaSA) -> Peft:
    factors = {"lora_A": update.a, "lora_B": update.b, "lora_diag": update.d}
    return formulas.kasa, factors, {"alpha": float(update.scale) * len(update.a)}


ROWS: dict[str, Row] = {
    "delora": _delora_row(),
    "delora short": _delora_row(delora_B=np.full((6, 3), 3e-5)),
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
    "kasa": Row(_kasa, formulas.kasa, _W, _KASA, "rank 2", {"alpha": 5}, False, properties=_READS),
}


SAMPLES: dict[str, Sample] = {
    "DeLoRA": Sample(_draw_delora, _peft_delora),
    "SuperTuning": Sample(_draw_supertuning, _peft_supertuning),
    "C3A": Sample(_draw_c3a, _peft_c3a),
    "FourierFT": Sample(_draw_fourierft, _peft_fourierft),
    "WaveFT": Sample(_draw_waveft, _peft_waveft),
    "GraLoRA": Sample(_draw_gralora, _peft_gralora),
    "AdaMSS": Sample(_draw_adamss, _peft_adamss),
    "KaSA": Sample(_draw_kasa, _peft_kasa),
}
