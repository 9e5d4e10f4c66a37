"""Rows and samples of the families that read the base's weight."""

from typing import Any

import numpy as np

from jaxmix.families import DEFT, PSOFT, FRoD, GLoRA, HiRA, MiSS, PEANuT

from . import formulas_reading as formulas
from .module import Module, Rng, divisor, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample

__all__ = ["ROWS", "SAMPLES"]

_CONV2 = (6, 4, 3, 2)


def _miss(f: Factors, config: Config) -> MiSS:
    return MiSS(f["miss_block"], bool(config.get("bat")))


def _miss_row(size: str, block: tuple[int, ...], **properties: bool) -> Row:
    is_bat = len(block) == 3
    formula = formulas.miss_bat if is_bat else formulas.miss
    fields = {"reads_base": is_bat, "fits_in": not is_bat, **properties}
    shapes = {"miss_block": block}
    return Row(_miss, formula, (6, 9), shapes, size, {"bat": is_bat}, properties=fields)


def _hira(f: Factors, config: Config) -> HiRA:
    a, b = f["hira_A"], f["hira_B"]
    if config.get("embedding"):
        return HiRA(b.T, a.T, embedding=True)
    kernel, fan = a.shape[2:], bool(config.get("fan_in_fan_out"))
    return HiRA(a.reshape(len(a), -1), b.reshape(len(b), -1), kernel, transposed=fan)


def _hira_row(a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...], **kw: Any) -> Row:
    shapes, properties = {"hira_A": a, "hira_B": b}, {"reads_base": True}
    return Row(_hira, formulas.hira, weight, shapes, "rank 3", kw, properties=properties)


def _glora(f: Factors, config: Config) -> GLoRA:
    def path(name: str) -> tuple[Any, ...]:
        keys = [f"glora_{name}.{end}" for end in ("Xd", "Xu", "X")]
        return tuple(f[key] for key in keys if key in f)

    return GLoRA(*map(path, "ABCDE"), on_input=bool(config.get("on_input")))


def _glora_row(size: str, weight: tuple[int, ...] = (6, 9), **paths: Any) -> Row:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in "ABCDE":
        path = paths.get(name)
        if path and isinstance(path[0], tuple):
            shapes |= {f"glora_{name}.Xd": path[0], f"glora_{name}.Xu": path[1]}
        elif path:
            shapes[f"glora_{name}.X"] = path
    on_input = bool(paths.get("on_input"))
    reads = {name for name in "ACD" if name in paths} - ({"A"} if on_input else set())
    properties = {
        "reads_base": bool(reads),
        "has_bias": bool(set("CDE") & set(paths)),
        "reads_bias_alone": "A" not in reads,
        **paths.get("properties", {}),
    }
    config = {"on_input": on_input}
    return Row(
        _glora, formulas.glora, weight, shapes, size, config, not on_input, properties=properties
    )


_COLUMN, _NUMBER = (6, 1), (1,)
_LORA = ((6, 3), (3, 9))


def _psoft(f: Factors, config: Config) -> PSOFT:
    return PSOFT(
        f["A"],
        f["B"],
        f["psoft_R.weight"],
        config["scale"],
        f.get("psoft_R.vector_b"),
        f.get("psoft_R.vector_a"),
        config["terms"],
        config.get("eps"),
    )


def _psoft_row(
    *vectors: str, weight: tuple[int, ...] = (6,), std: float = 0.7, **config: Any
) -> Row:
    shapes = {"A": (4, 9), "B": (6, 4), "psoft_R.weight": weight}
    shapes |= {f"psoft_R.{name}": (4,) for name in vectors}
    fields = {"scale": 1.5, "terms": None, **config}
    return Row(_psoft, formulas.psoft, (6, 9), shapes, "rank 4", fields, std=std)


def _deft(f: Factors, config: Config) -> DEFT:
    fan = bool(config.get("fan_in_fan_out"))
    return DEFT(f["deft_P"], f.get("deft_R"), config["scale"], config["method"], fan)


def _deft_row(size: str, *names: str, weight: tuple[int, ...] = (6, 9), **config: Any) -> Row:
    shapes = {"deft_P": (6, 3), **{name: (3, 9) for name in names}}
    fields = {"scale": 1.5, "method": "relu", **config}
    properties = {"reads_base": True, "reads_bias_alone": True, "fits_in": not names}
    return Row(_deft, formulas.deft, weight, shapes, size, fields, False, properties=properties)


def _peanut(f: Factors, config: Config) -> PEANuT:
    encoders, decoders = (
        tuple(f[f"{name}{i}"] for i in range(config["depth"])) for name in ("encoder", "decoder")
    )
    scale, act = config["scaling"], config["act_fn"]
    return PEANuT(f["peanut_A"], f["peanut_B"], encoders, decoders, scale, act)


def _peanut_row(size: str, depth: int, act: str) -> Row:
    shapes = {"peanut_A": (3, 6), "peanut_B": (6, 3)}
    shapes |= {f"{name}{i}": (3, 3) for name in ("encoder", "decoder") for i in range(depth)}
    config = {"depth": depth, "act_fn": act, "scaling": 1.5}
    properties = {"reads_base": True, "fits_in": True}
    return Row(_peanut, formulas.peanut, (6, 9), shapes, size, config, properties=properties)


def _frod(f: Factors, config: Config) -> FRoD:
    names = ("frod_V", "frod_lambda_s_values", "frod_s_indices", "frod_lambda_l")
    return FRoD(*(f[name] for name in names), transposed=bool(config.get("fan_in_fan_out")))


def _frod_row(weight: tuple[int, ...], **config: Any) -> Row:
    indices = np.array([[0, 5, 2], [8, 0, 3]], np.int32)
    v = np.eye(9) + 0.1 * np.random.default_rng(7).normal(size=(9, 9))
    shapes = {"frod_lambda_s_values": (3,), "frod_lambda_l": (9,)}
    properties, fixed = (
        {"reads_base": True, "fits_out": True},
        {"frod_s_indices": indices, "frod_V": v},
    )
    return Row(
        _frod,
        formulas.frod,
        weight,
        shapes,
        "3 entries",
        config,
        fixed=fixed,
        properties=properties,
    )


def _draw_miss(rng: Rng, module: Module) -> MiSS:
    out, size = module.matrix
    form = rng.integers(3)
    if form == 0 and out % 2 == 0 and size % 2 == 0:
        return MiSS(normal(rng, out // 2, 2, 2), bat=True)
    return MiSS(normal(rng, 3, out if form == 1 else divisor(rng, out, 1, 2)))


def _draw_hira(rng: Rng, module: Module) -> HiRA:
    out, size = module.matrix
    return HiRA(normal(rng, 2, size), normal(rng, out, 2), module.kernel)


def _draw_glora(rng: Rng, module: Module) -> GLoRA:
    out, size = module.matrix
    a = (normal(rng, out, 2), normal(rng, 2, size))
    b = [(normal(rng, out, 1),), (normal(rng, 1),), (normal(rng, out, 2), a[1])][rng.integers(3)]
    if not module.bias:
        return GLoRA(a, b)
    return GLoRA(a, b, (normal(rng, size, 1),), (normal(rng, out),), (normal(rng, 1),))


def _draw_psoft(rng: Rng, module: Module) -> PSOFT:
    out, size = module.matrix
    a, b, vector = normal(rng, 3, size), normal(rng, out, 3), normal(rng, 3)
    return PSOFT(a, b, normal(rng, 3), 0.7, vector, terms=[None, 5][rng.integers(2)])


def _draw_deft(rng: Rng, module: Module) -> DEFT:
    out, size = module.matrix
    p, injected = normal(rng, out, 2), normal(rng, 2, size)
    return DEFT(p, injected, 0.5, "qr" if rng.random() < 0.5 else "relu")


def _draw_peanut(rng: Rng, module: Module) -> PEANuT:
    out = module.matrix[0]
    levels = (normal(rng, 2, 2),), (normal(rng, 2, 2),)
    return PEANuT(normal(rng, 2, out), normal(rng, out, 2), *levels, 0.5, "tanh")


def _draw_frod(rng: Rng, module: Module) -> FRoD:
    size = module.matrix[1]
    indices: Any = np.stack([rng.integers(0, size, 3) for _ in range(2)]).astype(np.int32)
    v = np.eye(size) + normal(rng, size, size, std=0.1)
    return FRoD(v, normal(rng, 3), indices, normal(rng, size))


def _peft_miss(update: MiSS) -> Peft:
    return (formulas.miss_bat if update.bat else formulas.miss), {"miss_block": update.block}, {}


def _peft_hira(update: HiRA) -> Peft:
    return formulas.hira, {"hira_A": update.a, "hira_B": update.b}, {}


def _peft_glora(update: GLoRA) -> Peft:
    paths = {"A": update.a, "B": update.b, "C": update.c, "D": update.d, "E": update.e}
    ends = {1: ("X",), 2: ("Xd", "Xu"), 0: ()}
    factors = {
        f"glora_{name}.{end}": x
        for name, path in paths.items()
        for end, x in zip(ends[len(path)], path, strict=True)
    }
    return formulas.glora, factors, {}


def _peft_psoft(update: PSOFT) -> Peft:
    factors = {"A": update.a, "B": update.b, "psoft_R.weight": update.rotation}
    factors |= {"psoft_R.vector_b": update.outputs, "psoft_R.vector_a": update.inputs}
    return formulas.psoft, factors, {"scale": update.scale, "terms": update.terms}


def _peft_deft(update: DEFT) -> Peft:
    factors = {"deft_P": update.p, "deft_R": update.injected}
    return formulas.deft, factors, {"scale": update.scale, "method": update.method}


def _peft_peanut(update: PEANuT) -> Peft:
    factors = {"peanut_A": update.a, "peanut_B": update.b}
    factors |= {f"encoder{i}": x for i, x in enumerate(update.encoders)}
    factors |= {f"decoder{i}": x for i, x in enumerate(update.decoders)}
    config = {"depth": len(update.encoders), "act_fn": update.activation, "scaling": update.scale}
    return formulas.peanut, factors, config


def _peft_frod(update: FRoD) -> Peft:
    factors = {"frod_V": update.v, "frod_lambda_s_values": update.values}
    factors |= {"frod_s_indices": update.indices, "frod_lambda_l": update.lengths}
    return formulas.frod, factors, {}


ROWS: dict[str, Row] = {
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
        "ABDE",
        A=_NUMBER,
        B=_NUMBER,
        D=_NUMBER,
        E=_NUMBER,
        properties={"fits_out": True, "fits_in": True},
    ),
    "glora weight alone": _glora_row("rank 3 AB", A=_LORA, B=_LORA),
    "glora bias alone": _glora_row("CE", C=(9, 1), E=(6,)),
    "glora on_input": _glora_row("rank 3 AB", A=((9, 3), (3, 9)), B=_LORA, on_input=True),
    "glora on_input conv": _glora_row(
        "rank 3 A", _CONV2, A=((4, 3), (3, 4)), on_input=True, properties={"fits_out": True}
    ),
    "psoft": _psoft_row(),
    "psoft both vectors": _psoft_row("vector_a", "vector_b"),
    "psoft one vector": _psoft_row("vector_b"),
    "psoft free": _psoft_row("vector_a", weight=(4, 4)),
    **{f"psoft {n} terms": _psoft_row(terms=n, std=0.3) for n in (2, 3, 5, 6)},
    "psoft bound": _psoft_row(terms=5, eps=0.9),
    "deft": _deft_row("rank 3", "deft_R"),
    "deft qr": _deft_row("rank 3", "deft_R", method="qr"),
    "deft para": _deft_row("rank 3 PaRa"),
    "deft para qr": _deft_row("rank 3 PaRa", method="qr"),
    "deft fan_in_fan_out": _deft_row("rank 3", "deft_R", weight=(9, 6), fan_in_fan_out=True),
    "peanut": _peanut_row("rank 3", 0, "relu"),
    "peanut deep": _peanut_row("rank 3, depth 2", 2, "tanh"),
    "frod": _frod_row((6, 9)),
    "frod tall": _frod_row((12, 9)),
    "frod fan_in_fan_out": _frod_row((9, 6), fan_in_fan_out=True),
}


SAMPLES: dict[str, Sample] = {
    "MiSS": Sample(_draw_miss, _peft_miss),
    "HiRA": Sample(_draw_hira, _peft_hira),
    "GLoRA": Sample(_draw_glora, _peft_glora),
    "PSOFT": Sample(_draw_psoft, _peft_psoft),
    "DEFT": Sample(_draw_deft, _peft_deft),
    "PEANuT": Sample(_draw_peanut, _peft_peanut),
    "FRoD": Sample(_draw_frod, _peft_frod),
}
