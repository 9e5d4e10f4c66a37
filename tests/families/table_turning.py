"""Rows of the contract's table for families that turn or rescale a weight, or read it."""

from typing import Any

import numpy as np

from jaxmix.families import BOFT, HRA, IA3, GLoRA, HiRA, MiSS, RoAd, Tokens
from jaxmix.families.boft import butterfly

from . import formulas_turning as formulas
from .row import Config, Factors, Row

__all__ = ["ROWS"]

_CONV2 = (6, 4, 3, 2)


def _ia3(f: Factors, config: Config) -> IA3:
    return IA3(
        f["ia3_l"].reshape(-1),
        on_input=bool(config.get("feedforward")),
        axes=max(f["ia3_l"].ndim - 2, 0),
        transposed=bool(config.get("fan_in_fan_out")),
    )


def _ia3_row(
    shape: tuple[int, ...], weight: tuple[int, ...] = (6, 9), size: str = "6 outputs", **config: Any
) -> Row:
    is_feedforward = bool(config.get("feedforward"))
    says = {"fits_out": is_feedforward, "fits_in": not is_feedforward}
    shapes = {"ia3_l": shape}
    return Row(_ia3, formulas.ia3, weight, shapes, size, config, False, says=says)


def _boft(f: Factors, config: Config) -> BOFT:
    r = f["boft_R"]
    orders = butterfly(*r.shape[:3]) if len(r) > 1 else None
    return BOFT(r, f["boft_s"].reshape(-1), orders)


def _boft_row(
    size: str, r: tuple[int, ...], weight: tuple[int, ...] = (5, 16), std: float = 0.7
) -> Row:
    shapes = {"boft_R": r, "boft_s": (weight[0], 1)}
    says = {"reads_base": True, "reads_bias_alone": True}
    return Row(_boft, formulas.boft, weight, shapes, size, {}, False, std, says=says)


def _hra(f: Factors, config: Config) -> HRA:
    return HRA(f["hra_u"], bool(config.get("apply_GS")))


def _hra_row(rank: int, weight: tuple[int, ...] = (6, 9), **config: Any) -> Row:
    shapes, size = {"hra_u": (int(np.prod(weight[1:])), rank)}, f"{rank} reflections"
    return Row(_hra, formulas.hra, weight, shapes, size, config, False, says={"fits_out": True})


def _road(f: Factors, config: Config) -> RoAd:
    return RoAd(f["road_theta"], f["road_alpha"], config["variant"], config["group"])


def _road_row(variant: int, group: int) -> Row:
    shapes = {name: (12 * variant // 2,) for name in ("road_theta", "road_alpha")}
    size, config = f"variant {variant}, {6 * variant} angles", {"variant": variant, "group": group}
    says = {"fits_in": True}
    return Row(_road, formulas.road, (12, 5), shapes, size, config, False, says=says)


def _tokens(f: Factors, config: Config) -> Tokens:
    return Tokens(f["trainable_tokens_delta"], f["token_indices"])


def _miss(f: Factors, config: Config) -> MiSS:
    return MiSS(f["miss_block"], bool(config.get("bat")))


def _miss_row(size: str, block: tuple[int, ...], **says: bool) -> Row:
    is_bat = len(block) == 3
    formula = formulas.miss_bat if is_bat else formulas.miss
    told = {"reads_base": is_bat, "fits_in": not is_bat, **says}
    shapes = {"miss_block": block}
    return Row(_miss, formula, (6, 9), shapes, size, {"bat": is_bat}, says=told)


def _hira(f: Factors, config: Config) -> HiRA:
    a, b = f["hira_A"], f["hira_B"]
    if config.get("embedding"):
        return HiRA(b.T, a.T, embedding=True)
    kernel, fan = a.shape[2:], bool(config.get("fan_in_fan_out"))
    return HiRA(a.reshape(len(a), -1), b.reshape(len(b), -1), kernel, transposed=fan)


def _hira_row(a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...], **kw: Any) -> Row:
    shapes, says = {"hira_A": a, "hira_B": b}, {"reads_base": True}
    return Row(_hira, formulas.hira, weight, shapes, "rank 3", kw, says=says)


def _glora(f: Factors, config: Config) -> GLoRA:
    def path(name: str) -> tuple[Any, ...]:
        keys = [f"glora_{name}.{end}" for end in ("Xd", "Xu", "X")]
        return tuple(f[key] for key in keys if key in f)

    return GLoRA(*map(path, "ABCDE"), on_input=bool(config.get("on_input")))


def _glora_row(size: str, weight: tuple[int, ...] = (6, 9), **paths: Any) -> Row:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in "ABCDE":
        found = paths.get(name)
        if found and isinstance(found[0], tuple):
            shapes |= {f"glora_{name}.Xd": found[0], f"glora_{name}.Xu": found[1]}
        elif found:
            shapes[f"glora_{name}.X"] = found
    on_input = bool(paths.get("on_input"))
    reads = {name for name in "ACD" if name in paths} - ({"A"} if on_input else set())
    says = {
        "reads_base": bool(reads),
        "has_bias": bool(set("CDE") & set(paths)),
        "reads_bias_alone": "A" not in reads,
        **paths.get("says", {}),
    }
    config = {"on_input": on_input}
    return Row(_glora, formulas.glora, weight, shapes, size, config, not on_input, says=says)


_COLUMN, _NUMBER = (6, 1), (1,)
_LORA = ((6, 3), (3, 9))

ROWS: dict[str, Row] = {
    "ia3": _ia3_row((6, 1)),
    "ia3 feedforward": _ia3_row((1, 9), size="9 inputs", feedforward=True),
    "ia3 fan_in_fan_out": _ia3_row((6, 1), (9, 6), fan_in_fan_out=True),
    "ia3 feedforward fan_in_fan_out": _ia3_row(
        (1, 9), (9, 6), "9 inputs", feedforward=True, fan_in_fan_out=True
    ),
    "ia3 conv2d": _ia3_row((1, 6, 1, 1), _CONV2),
    "ia3 feedforward conv2d": _ia3_row((1, 4, 1, 1), _CONV2, "4 inputs", feedforward=True),
    "boft": _boft_row("block 4", (1, 4, 4, 4)),
    "boft odd": _boft_row("block 3", (1, 3, 3, 3), (7, 9)),
    "boft two factors": _boft_row("block 4 × 2", (2, 4, 4, 4)),
    "boft three factors": _boft_row("block 2 × 3", (3, 8, 2, 2)),
    "boft conv2d": _boft_row("block 2 × 2", (2, 12, 2, 2), _CONV2),
    "hra": _hra_row(4),
    "hra odd": _hra_row(3),
    "hra one": _hra_row(1),
    "hra more than inputs": _hra_row(11),
    "hra apply_GS": _hra_row(4, apply_GS=True),
    "hra conv2d": _hra_row(4, _CONV2),
    **{f"road_{v} in groups of {g}": _road_row(v, g) for v in (1, 2, 4) for g in (2, 4, 12)},
    "tokens": Row(
        _tokens,
        formulas.tokens,
        (11, 6),
        {"trainable_tokens_delta": (3, 6)},
        "3 rows",
        additive=False,
        fixed={"token_indices": np.array([7, 0, 10], np.int32)},
        says={"fits_out": True},
    ),
    "miss": _miss_row("rank 3", (3, 6)),
    "miss cut": _miss_row("rank 4", (4, 6)),
    "miss whole": _miss_row("rank 9", (9, 6)),
    "miss mini": _miss_row("rank 3", (3, 2)),
    "miss mini of one": _miss_row("rank 4", (4, 1), fits_out=True),
    "miss bat": _miss_row("rank 3 bat", (2, 3, 3)),
    "hira": _hira_row((3, 9), (6, 3), (6, 9)),
    "hira fan_in_fan_out": _hira_row((3, 9), (6, 3), (9, 6), fan_in_fan_out=True),
    "hira conv2d": _hira_row((3, 4, 3, 2), (6, 3, 1, 1), _CONV2),
    "hira embedding": _hira_row((3, 11), (6, 3), (11, 6), embedding=True),
    "glora": _glora_row("rank 3 ABCDE", A=_LORA, B=_LORA, C=((9, 3), (3, 1)), D=_NUMBER, E=_NUMBER),
    "glora vectors": _glora_row("ABCDE", A=_COLUMN, B=_COLUMN, C=(9, 1), D=(6,), E=(6,)),
    "glora numbers": _glora_row(
        "ABDE", A=_NUMBER, B=_NUMBER, D=_NUMBER, E=_NUMBER, says={"fits_out": True, "fits_in": True}
    ),
    "glora weight alone": _glora_row("rank 3 AB", A=_LORA, B=_LORA),
    "glora bias alone": _glora_row("CE", C=(9, 1), E=(6,)),
    "glora on_input": _glora_row("rank 3 AB", A=((9, 3), (3, 9)), B=_LORA, on_input=True),
    "glora on_input conv": _glora_row(
        "rank 3 A", _CONV2, A=((4, 3), (3, 4)), on_input=True, says={"fits_out": True}
    ),
}
