"""Rows and samples of the families that only LyCORIS and PEFT before 0.16 have."""

from typing import Any

from jaxmix.families import DiagOFT, LoHa, LoKr, LoRA, Normed, Update

from . import formulas_lycoris as formulas
from .module import Module, Rng, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample
from .table_products import SAMPLES as PRODUCTS

__all__ = ["ROWS", "SAMPLES"]

_CONV2 = (6, 4, 3, 2)
_FACTORS: dict[str, Any] = {"lycoris": 1.0, "peft 0.13": -0.5, "peft 0.15": 0.5}


def _added(f: Factors, config: Config) -> Update:
    if config["over"] == "loha":
        b1, a1, b2, a2 = (f[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return LoHa(b1, a1, b2, a2, config["alpha"] / 2)
    if config["over"] == "lokr":
        return LoKr((f["lokr_w1"],), (f["lokr_w2"],), config["alpha"] / config["r"])
    a, b = f["lora_A"], f["lora_B"]
    return LoRA(a.reshape(len(a), -1), b.reshape(-1, len(a)), config["alpha"] / len(a))


def _normed(f: Factors, config: Config) -> Normed:
    return Normed(_added(f, config), f["dora_scale"], config["eps"], axis=config["axis"])


def _normed_row(
    over: str, size: str, axis: str, shapes: dict[str, Any], weight: tuple[int, ...] = (6, 9)
) -> Row:
    count = weight[0 if axis == "out" else 1]
    factor_shapes = {**shapes, "dora_scale": (count,)}
    config = {"over": over, "axis": axis, "eps": 0.1, "alpha": 3, "r": 2}
    size_name = f"{size} normed by {axis}put"
    properties = {"reads_base": True}
    return Row(
        _normed,
        formulas.normed,
        weight,
        factor_shapes,
        size_name,
        config,
        False,
        properties=properties,
    )


def _diag_oft(f: Factors, config: Config) -> DiagOFT:
    written_by = config["written_by"]
    return DiagOFT(
        f.get("oft_blocks"),
        f.get("rescale"),
        config.get("bound"),
        factor=_FACTORS[written_by],
        side="in" if written_by == "peft 0.15" else "out",
        by_block=written_by != "lycoris",
    )


def _diag_oft_row(
    written_by: str,
    blocks: tuple[int, ...] | None,
    weight: tuple[int, ...] = (12, 9),
    rescale: bool = False,
    fitting: str = "",
    **config: Any,
) -> Row:
    shapes: dict[str, tuple[int, ...]] = {} if blocks is None else {"oft_blocks": blocks}
    if rescale:
        shapes["rescale"] = (weight[0],)
    size = f"{weight[0]} outputs" if blocks is None else f"block {blocks[1]}"
    fields = {"written_by": written_by, **config}
    side = "in" if written_by == "peft 0.15" else "out"
    properties = {"fits_in": side == "out", "fits_out": side == "in" and not rescale}
    properties = {**properties, **({fitting: True} if fitting else {})}
    return Row(
        _diag_oft, formulas.diag_oft, weight, shapes, size, fields, False, properties=properties
    )


_LORA = {"lora_A": (3, 9), "lora_B": (6, 3)}
_LORA_CONV = {"lora_A": (3, 4, 3, 2), "lora_B": (6, 3, 1, 1)}
_LOHA = {f"hada_w{i}_a": (6, 2) for i in "12"} | {f"hada_w{i}_b": (2, 24) for i in "12"}
_LOKR = {"lokr_w1": (2, 3), "lokr_w2": (3, 3)}


def _draw_normed(rng: Rng, module: Module) -> Normed:
    out, size = module.matrix
    inner = LoHa(normal(rng, out, 2), normal(rng, 2, size), normal(rng, out, 2),
                 normal(rng, 2, size), 0.3)  # fmt: skip
    return Normed(inner, 1 + rng.random(out))


def _draw_diag_oft(rng: Rng, module: Module) -> DiagOFT:
    written_by = ("lycoris", "peft 0.13", "peft 0.15")[rng.integers(3)]
    side = "in" if written_by == "peft 0.15" else "out"
    size = module.matrix[0 if side == "out" else 1]
    b = next(n for n in (2, 3, size) if size % n == 0)
    count = 1 if rng.random() < 0.3 else size // b
    rescale = 1 + normal(rng, module.matrix[0], std=0.3) if rng.random() < 0.5 else None
    bound = 0.5 if rng.random() < 0.5 else None
    blocks, by_block = normal(rng, count, b, b, std=0.4), written_by != "lycoris"
    return DiagOFT(blocks, rescale, bound, _FACTORS[written_by], side, by_block)


def _peft_diag_oft(update: DiagOFT) -> Peft:
    (written_by,) = (name for name, factor in _FACTORS.items() if factor == update.factor)
    config: dict[str, Any] = {"written_by": written_by}
    if update.bound is not None:
        config["bound"] = float(update.bound)
    return formulas.diag_oft, {"oft_blocks": update.blocks, "rescale": update.rescale}, config


def _peft_normed(update: Normed) -> Peft:
    inner: Any = update.update
    _, factors, config = PRODUCTS["LoHa"].peft(inner)  # pyright: ignore[reportOptionalCall]
    config |= {"over": "loha", "axis": update.axis, "eps": float(update.eps)}
    return formulas.normed, {**factors, "dora_scale": update.magnitude}, config


ROWS: dict[str, Row] = {
    "normed lora": _normed_row("lora", "LoRA rank 3", "out", _LORA),
    "normed lora by input": _normed_row("lora", "LoRA rank 3", "in", _LORA),
    "normed lora conv2d": _normed_row("lora", "LoRA rank 3", "out", _LORA_CONV, _CONV2),
    "normed lora conv2d by input": _normed_row("lora", "LoRA rank 3", "in", _LORA_CONV, _CONV2),
    "normed loha conv2d by input": _normed_row("loha", "LoHa rank 2", "in", _LOHA, _CONV2),
    "normed lokr": _normed_row("lokr", "LoKr full", "out", _LOKR),
    "diag-oft": _diag_oft_row("lycoris", (3, 4, 4)),
    "diag-oft rescaled": _diag_oft_row("lycoris", (3, 4, 4), rescale=True),
    "diag-oft bound": _diag_oft_row("lycoris", (3, 4, 4), bound=1.5),
    "diag-oft bound far": _diag_oft_row("lycoris", (3, 4, 4), bound=99.0),
    "diag-oft conv2d": _diag_oft_row("lycoris", (2, 3, 3), _CONV2),
    "diag-oft rescaled alone": _diag_oft_row("lycoris", None, rescale=True),
    "oft of peft 0.13": _diag_oft_row("peft 0.13", (3, 4, 4)),
    "oft of peft 0.13 coft": _diag_oft_row("peft 0.13", (3, 4, 4), bound=2.6),
    "oft of peft 0.13 shared": _diag_oft_row("peft 0.13", (1, 4, 4), fitting="fits_out"),
    # 11 outputs in three blocks of ⌈11 / 3⌉: the last block is cut.
    "oft of peft 0.13 cut": _diag_oft_row("peft 0.13", (3, 4, 4), (11, 9), fitting="fits_out"),
    "oft of peft 0.15": _diag_oft_row("peft 0.15", (3, 4, 4), (5, 12), rescale=True),
    "oft of peft 0.15 shared coft": _diag_oft_row(
        "peft 0.15", (1, 4, 4), (5, 12), rescale=True, bound=1.0
    ),
}


SAMPLES: dict[str, Sample] = {
    "DiagOFT": Sample(_draw_diag_oft, _peft_diag_oft),
    "Normed": Sample(_draw_normed, _peft_normed),
}
