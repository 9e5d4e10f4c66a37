"""One row a family and form: how its factors are drawn, its update, and the formula it equals."""

from typing import Any

import numpy as np

from jaxmix.families import (
    OFT,
    AdaLoRA,
    Delta,
    LoHa,
    LoKr,
    LoRA,
    Rebase,
    Replace,
    SHiRA,
    Together,
)

from . import formulas
from .formulas import Leaves
from .row import Config, Factors, Row
from .table_additive import ROWS as ADDITIVE
from .table_lora import ROWS as LORA
from .table_lycoris import ROWS as LYCORIS
from .table_reading import ROWS as READING
from .table_turning import ROWS as TURNING

__all__ = ["ROWS"]


def _lora(f: Factors, config: Config) -> LoRA:
    a, b = f["lora_A"], f["lora_B"]
    rank = len(a)
    magnitude = f.get("lora_magnitude_vector")
    return LoRA(
        a.reshape(rank, -1),
        b.reshape(-1, rank),
        config["alpha"] / (rank**0.5 if config.get("rslora") else rank),
        magnitude=None if magnitude is None else magnitude.reshape(-1),
        bias=f.get("lora_B.bias"),
        kernel=a.shape[2:],
        transposed=bool(config.get("fan_in_fan_out")),
    )


def _lora_embedding(f: Factors, config: Config) -> LoRA:
    a, b = f["lora_embedding_A"], f["lora_embedding_B"]
    magnitude = f.get("lora_magnitude_vector")
    return LoRA(b.T, a.T, config["alpha"] / len(a), magnitude=magnitude, embedding=True)


def _adalora(f: Factors, config: Config) -> AdaLoRA:
    alpha = config["alpha"] if config["alpha"] > 0 else config["init_r"]
    scale = alpha / (config["init_r"] + 1e-5)
    fan = bool(config.get("fan_in_fan_out"))
    return AdaLoRA(f["lora_A"], f["lora_B"], f["lora_E"][:, 0], scale, transposed=fan)


def _loha(f: Factors, config: Config) -> LoHa:
    b1, a1, b2, a2 = (f[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    return LoHa(b1, a1, b2, a2, config["alpha"] / 2, f.get("hada_t1"), f.get("hada_t2"))


def _lokr(f: Factors, config: Config) -> LoKr:
    def side(name: str) -> tuple[Any, ...]:
        return (f[name],) if name in f else (f[name + "_a"], f[name + "_b"])

    scale = config["alpha"] / config["r"]
    return LoKr(side("lokr_w1"), side("lokr_w2"), scale, f.get("lokr_t2"))


def _oft(f: Factors, config: Config) -> OFT:
    embedding = "oft_embedding_R" in f
    numbers = f["oft_embedding_R" if embedding else "oft_R"]
    return OFT(numbers, config["terms"], config.get("eps"), embedding)


def _shira(f: Factors, config: Config) -> SHiRA:
    return SHiRA(f["shira_weight"], f["shira_indices"])


def _replace(f: Factors, config: Config) -> Replace:
    return Replace(f.get("weight"), f.get("bias"))


def _delta(f: Factors, config: Config) -> Delta:
    return Delta(f.get("weight"), f.get("bias"))


def _together(f: Factors, config: Config) -> Together:
    """What the reader makes of a trained bias: first what lies in the base."""
    return Together((Replace(bias=f["bias"]), _lora(f, config)))


def _lora_row(weight: tuple[int, ...] = (6, 9), more: Any = None, **config: Any) -> Row:
    fan = config.get("fan_in_fan_out")
    out, n = weight[:2] if not fan else weight[1::-1]
    points = (1,) * (len(weight) - 2)
    shapes = {"lora_A": (3, n, *weight[2:]), "lora_B": (out, 3, *points), **(more or {})}
    is_dora = "lora_magnitude_vector" in shapes
    formula = formulas.dora if is_dora else formulas.lora
    size = "rank 3 DoRA" if is_dora else "rank 3"
    return Row(_lora, formula, weight, shapes, size, {"alpha": 5, **config}, not is_dora)


def _embedding_row(more: Any = None) -> Row:
    shapes = {"lora_embedding_A": (3, 11), "lora_embedding_B": (6, 3), **(more or {})}
    formula = formulas.dora_embedding if more else formulas.lora_embedding
    size = "rank 3 DoRA" if more else "rank 3"
    return Row(_lora_embedding, formula, (11, 6), shapes, size, {"alpha": 5}, not more)


def _adalora_row(weight: tuple[int, ...] = (6, 9), rank: int = 3, **config: Any) -> Row:
    fan = config.get("fan_in_fan_out")
    rows, cols = (weight[1], weight[0]) if fan else (weight[0], int(np.prod(weight[1:])))
    shapes = {"lora_A": (rank, cols), "lora_B": (rows, rank), "lora_E": (rank, 1)}
    whole = {"alpha": 7, "init_r": 4, **config}
    formula = _adalora_fan if fan else formulas.adalora
    return Row(_adalora, formula, weight, shapes, f"rank {rank}", whole)


def _adalora_fan(f: Any, config: Config, leaves: Leaves, s: float) -> tuple[np.ndarray, np.ndarray]:
    turned = Leaves(leaves.weight.T, leaves.bias, leaves.base_weight.T, leaves.base_bias)
    weight, bias = formulas.adalora(f, config, turned, s)
    return weight.T, bias


def _loha_row(weight: tuple[int, ...] = (6, 9), effective: bool = False) -> Row:
    out, n, *kernel = weight
    if effective:
        points = (*kernel, 1) if len(kernel) == 1 else tuple(kernel)
        one = {"hada_w{}_a": (2, out), "hada_w{}_b": (2, n), "hada_t{}": (2, 2, *points)}
    else:
        one = {"hada_w{}_a": (out, 2), "hada_w{}_b": (2, int(np.prod(weight[1:])))}
    shapes = {name.format(i): shape for i in (1, 2) for name, shape in one.items()}
    return Row(_loha, formulas.loha, weight, shapes, "rank 2", {"alpha": 3})


def _lokr_row(size: str, weight: tuple[int, ...] = (6, 12), **shapes: tuple[int, ...]) -> Row:
    named = {f"lokr_{name}": shape for name, shape in shapes.items()}
    return Row(_lokr, formulas.lokr, weight, named, size, {"alpha": 3, "r": 2})


def _oft_row(
    weight: tuple[int, ...] = (5, 12),
    block: int = 4,
    blocks: int = 3,
    name: str = "oft_R",
    std: float = 0.7,
    **config: Any,
) -> Row:
    whole = {"terms": None, "block": block, **config}
    shapes = {name: (blocks, block * (block - 1) // 2)}
    return Row(_oft, formulas.oft, weight, shapes, f"block {block}", whole, False, std)


def _shira_row(indices: list[list[int]]) -> Row:
    places = np.array(indices, np.int32)
    shapes, fixed = {"shira_weight": (places.shape[1],)}, {"shira_indices": places}
    size = f"{places.shape[1]} entries"
    return Row(_shira, formulas.shira, (6, 9), shapes, size, fixed=fixed)


def _replace_row(whole: tuple[int, ...], size: str, **shapes: tuple[int, ...]) -> Row:
    return Row(_replace, formulas.replace, whole, shapes, size, additive=False)


def _delta_row(whole: tuple[int, ...], size: str, **shapes: tuple[int, ...]) -> Row:
    return Row(_delta, formulas.delta, whole, shapes, size)


_CONV1, _CONV2, _CONV3 = (6, 4, 3), (6, 4, 3, 2), (4, 3, 2, 2, 2)
_M = {"lora_magnitude_vector": (6,)}
_BIAS = {"lora_B.bias": (6,)}

ROWS: dict[str, Row] = {
    "lora": _lora_row(),
    "lora rslora": _lora_row(rslora=True),
    "lora fan_in_fan_out": _lora_row((9, 6), fan_in_fan_out=True),
    "lora bias": _lora_row(more=_BIAS),
    "lora conv1d": _lora_row(_CONV1),
    "lora conv2d": _lora_row(_CONV2, _BIAS),
    "lora conv3d": _lora_row(_CONV3),
    "lora embedding": _embedding_row(),
    "dora": _lora_row(more=_M),
    "dora fan_in_fan_out": _lora_row((9, 6), _M, fan_in_fan_out=True),
    "dora bias": _lora_row(more={**_M, **_BIAS}),
    "dora conv2d": _lora_row(_CONV2, {"lora_magnitude_vector": (1, 6, 1, 1)}),
    "dora embedding": _embedding_row(_M),
    "adalora": _adalora_row(),
    "adalora pruned": _adalora_row(rank=1, alpha=0),
    "adalora conv2d": _adalora_row(_CONV2),
    "adalora fan_in_fan_out": _adalora_row((9, 6), fan_in_fan_out=True),
    "loha": _loha_row(),
    "loha conv2d": _loha_row(_CONV2),
    "loha conv1d": _loha_row(_CONV1),
    "loha effective conv2d": _loha_row(_CONV2, effective=True),
    "loha effective conv1d": _loha_row(_CONV1, effective=True),
    "lokr full": _lokr_row("full", w1=(2, 3), w2=(3, 4)),
    "lokr second factored": _lokr_row("rank 2", w1=(2, 3), w2_a=(3, 2), w2_b=(2, 4)),
    "lokr first factored": _lokr_row("rank 2", w1_a=(2, 2), w1_b=(2, 3), w2=(3, 4)),
    "lokr both factored": _lokr_row("rank 2", w1_a=(2, 2), w1_b=(2, 3), w2_a=(3, 2), w2_b=(2, 4)),
    "lokr conv2d full": _lokr_row("full", _CONV2, w1=(2, 2), w2=(3, 2, 3, 2)),
    "lokr conv2d factored": _lokr_row("rank 2", _CONV2, w1=(2, 2), w2_a=(3, 2), w2_b=(2, 12)),
    "lokr conv2d core": _lokr_row(
        "rank 2", _CONV2, w1=(2, 2), w2_a=(2, 3), w2_b=(2, 2), t2=(2, 2, 3, 2)
    ),
    "lokr conv2d core, first factored": _lokr_row(
        "rank 2", _CONV2, w1_a=(2, 2), w1_b=(2, 2), w2_a=(2, 3), w2_b=(2, 2), t2=(2, 2, 3, 2)
    ),
    # torch.kron pads w1 (2, 2) to (1, 2, 2): the weight comes out scrambled, and so it is trained.
    "lokr conv1d full": _lokr_row("full", _CONV1, w1=(2, 2), w2=(3, 2, 3)),
    "lokr conv1d full, first factored": _lokr_row(
        "rank 2", _CONV1, w1_a=(2, 2), w1_b=(2, 2), w2=(3, 2, 3)
    ),
    "lokr conv1d factored": _lokr_row("rank 2", _CONV1, w1=(2, 2), w2_a=(3, 2), w2_b=(2, 6)),
    "lokr conv1d core": _lokr_row(
        "rank 2", _CONV1, w1=(2, 2), w2_a=(2, 3), w2_b=(2, 2), t2=(2, 2, 3, 1)
    ),
    "oft": _oft_row(),
    "oft far": _oft_row(std=4.0),
    "oft odd": _oft_row((7, 9), block=3),
    "oft one block": _oft_row(block=12, blocks=1),
    "oft blocks of one": _oft_row(block=1, blocks=12),
    "oft shared": _oft_row(blocks=1),
    "oft shared series": _oft_row(blocks=1, terms=5),
    **{f"oft {n} terms": _oft_row(terms=n, std=0.3) for n in range(1, 8)},
    # Norms go from 1 to 3.5: of three blocks some are projected and some are not.
    "oft coft": _oft_row(eps=4.0),
    "oft coft all": _oft_row(eps=6e-5, terms=5),
    "oft coft shared": _oft_row(blocks=1, eps=0.5, terms=5),
    "oft conv2d": _oft_row(_CONV2, block=6, blocks=4),
    "oft embedding": _oft_row((11, 12), name="oft_embedding_R"),
    "oft embedding series": _oft_row((11, 12), name="oft_embedding_R", terms=5),
    "shira": _shira_row([[0, 5, 2], [8, 0, 3]]),
    "shira twice": _shira_row([[0, 5, 2, 5, 5], [8, 0, 3, 0, 0]]),
    "rebase": Row(
        lambda f, config: Rebase(f["base_weight"]),
        formulas.rebase,
        (6, 9),
        {"base_weight": (6, 9)},
        "base's own weight",
        additive=False,
    ),
    "replace weight": _replace_row((6, 9), "weight", weight=(6, 9)),
    "replace conv2d": _replace_row(_CONV2, "weight", weight=_CONV2),
    "replace norm": _replace_row((6,), "weight and bias", weight=(6,), bias=(6,)),
    "replace bias": _replace_row((6, 9), "bias", bias=(6,)),
    "replace both": _replace_row((6, 9), "weight and bias", weight=(6, 9), bias=(6,)),
    "delta weight": _delta_row((6, 9), "weight", weight=(6, 9)),
    "delta conv2d": _delta_row(_CONV2, "weight and bias", weight=_CONV2, bias=(6,)),
    "delta norm": _delta_row((6,), "weight and bias", weight=(6,), bias=(6,)),
    "delta bias": _delta_row((6, 9), "bias", bias=(6,)),
    "bias and dora": Row(
        _together,
        formulas.replace_then_dora,
        (6, 9),
        {"lora_A": (3, 9), "lora_B": (6, 3), "lora_magnitude_vector": (6,), "bias": (6,)},
        "bias + rank 3 DoRA",
        {"alpha": 5},
        additive=False,
    ),
    **LORA,
    **READING,
    **TURNING,
    **ADDITIVE,
    **LYCORIS,
}
