"""One row per family and form: how its factors are drawn, its update, and its formula.

To add a family to the tests, add a formula, its rows here or in the table of its kind, and one
sample there. The contract is tested on the rows, the laws on the samples.
"""

from typing import Any

import numpy as np

from jaxmix.families import OFT, Delta, Rebase, Replace, SHiRA, Together

from . import (
    formulas,
    table_additive,
    table_lora,
    table_lycoris,
    table_products,
    table_reading,
    table_shared,
    table_turning,
)
from .module import Module, Rng, normal
from .row import Config, Factors, Row
from .sample import Peft, Sample
from .table_lora import build_lora

__all__ = ["ROWS", "SAMPLES"]


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
    """Returns the update that a reader makes for a trained bias: leaves of the base come first."""
    return Together((Replace(bias=f["bias"]), build_lora(f, config)))


def _oft_row(
    weight: tuple[int, ...] = (5, 12),
    block: int = 4,
    blocks: int = 3,
    name: str = "oft_R",
    std: float = 0.7,
    **config: Any,
) -> Row:
    fields = {"terms": None, "block": block, **config}
    shapes = {name: (blocks, block * (block - 1) // 2)}
    return Row(_oft, formulas.oft, weight, shapes, f"block {block}", fields, False, std)


def _shira_row(indices: list[list[int]]) -> Row:
    positions = np.array(indices, np.int32)
    shapes, fixed = {"shira_weight": (positions.shape[1],)}, {"shira_indices": positions}
    size = f"{positions.shape[1]} entries"
    return Row(_shira, formulas.shira, (6, 9), shapes, size, fixed=fixed)


def _replace_row(leaf_shape: tuple[int, ...], size: str, **shapes: tuple[int, ...]) -> Row:
    return Row(_replace, formulas.replace, leaf_shape, shapes, size, additive=False)


def _delta_row(leaf_shape: tuple[int, ...], size: str, **shapes: tuple[int, ...]) -> Row:
    return Row(_delta, formulas.delta, leaf_shape, shapes, size)


def _draw_oft(rng: Rng, module: Module) -> OFT:
    size = module.matrix[1]
    b = next(n for n in rng.permutation([2, 3, 4, size]) if size % n == 0)
    blocks = 1 if rng.random() < 0.3 else size // int(b)
    terms = [None, 5, 3][rng.integers(3)]
    eps = 0.5 if rng.random() < 0.3 else None
    numbers = normal(rng, blocks, int(b * (b - 1) // 2), std=0.3)
    return OFT(numbers, terms=terms, eps=eps, embedding=module.kind == "embedding")


def _draw_shira(rng: Rng, module: Module) -> SHiRA:
    n = 5
    indices = np.stack([rng.integers(0, size, n) for size in module.matrix]).astype(np.int32)
    return SHiRA(normal(rng, n), indices)


def _draw_replace(rng: Rng, module: Module) -> Replace:
    choice = int(rng.integers(3)) if module.bias else 1
    weight = None if choice == 0 else normal(rng, *module.shape)
    return Replace(weight, normal(rng, module.shape[0]) if module.bias and choice != 1 else None)


def _draw_together(rng: Rng, module: Module) -> Together:
    """Returns a reader's update for trained leaves of the base, which come first."""
    return Together((_draw_replace(rng, module), table_lora.SAMPLES["LoRA"].draw(rng, module)))


def _draw_delta(rng: Rng, module: Module) -> Delta:
    bias = normal(rng, module.shape[0]) if module.bias else None
    return Delta(normal(rng, *module.shape), bias)


def _draw_rebase(rng: Rng, module: Module) -> Rebase:
    return Rebase(normal(rng, *module.matrix))


def _peft_oft(update: OFT) -> Peft:
    config: dict[str, Any] = {"terms": update.terms, "block": update.block_size}
    if update.eps is not None:
        config["eps"] = float(update.eps)
    name = "oft_embedding_R" if update.embedding else "oft_R"
    return formulas.oft, {name: update.generator}, config


def _peft_shira(update: SHiRA) -> Peft:
    return formulas.shira, {"shira_weight": update.values, "shira_indices": update.indices}, {}


_CONV2 = (6, 4, 3, 2)


ROWS: dict[str, Row] = {
    "oft": _oft_row(),
    "oft far": _oft_row(std=4.0),
    "oft odd": _oft_row((7, 9), block=3),
    "oft one block": _oft_row(block=12, blocks=1),
    "oft blocks of one": _oft_row(block=1, blocks=12),
    "oft shared": _oft_row(blocks=1),
    "oft shared series": _oft_row(blocks=1, terms=5),
    **{f"oft {n} terms": _oft_row(terms=n, std=0.3) for n in range(1, 8)},
    # Norms range from 1 to 3.5: some of the three blocks are projected and some are not.
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
    **table_lora.ROWS,
    **table_products.ROWS,
    **table_reading.ROWS,
    **table_turning.ROWS,
    **table_additive.ROWS,
    **table_shared.ROWS,
    **table_lycoris.ROWS,
}


# The kinds of which the laws draw updates: the families, and DoRA.
SAMPLES: dict[str, Sample] = {
    **table_lora.SAMPLES,
    **table_products.SAMPLES,
    "OFT": Sample(_draw_oft, _peft_oft),
    "SHiRA": Sample(_draw_shira, _peft_shira),
    "Replace": Sample(_draw_replace),
    "Together": Sample(_draw_together),
    **table_additive.SAMPLES,
    **table_shared.SAMPLES,
    **table_turning.SAMPLES,
    **table_reading.SAMPLES,
    **table_lycoris.SAMPLES,
    "Delta": Sample(_draw_delta),
    "Rebase": Sample(_draw_rebase),
}
