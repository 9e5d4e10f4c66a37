"""transformers' own operations on random tensors give the weights that the places read."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.names.rows import transform_of
from jaxmix.placement.assembly import assembled, assembled_shape
from jaxmix.placement.canonical import Holding
from jaxmix.placement.transforms import Transform, loaded_pieces

from ... import name_maps

torch = pytest.importorskip("torch")
mapping = pytest.importorskip("transformers.conversion_mapping")

FIELDS = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 2,
    "linear_num_value_heads": 2,
    "linear_value_head_dim": 2,
}
CONFIG = {**FIELDS, "vision_config": FIELDS}
# These mix experts of two stacks, or the numbers themselves.
OTHERS = ("Inkling", "Ernie")
RNG = np.random.default_rng(0)


def conversions() -> Iterator[tuple[Any, Transform]]:
    """Each of transformers' conversions once, and the transform that the table makes of it."""
    seen = set()
    for key, transforms in name_maps.mapping(mapping).items():
        for transform in transforms:
            row = name_maps.row_of(transform, key)
            if row is None or row[0] != "convert" or str(row) in seen:
                continue
            seen.add(str(row))
            if not any(name.startswith(OTHERS) for name, _ in row[3]):
                yield transform, transform_of(row, None, "", CONFIG, CONFIG)


def on_disk(transform: Any, sizes: tuple[int, ...]) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Random tensors with their names, by the pattern that they match."""
    first = transform.operations[0]
    is_stack = 1 in (getattr(first, "dim", 0), getattr(first, "dim0", 0))
    rows = sum(sizes) or 24
    tensors: dict[str, list[tuple[str, np.ndarray]]] = {}
    for source in transform.source_patterns:
        shape = (2, rows, 4) if is_stack else (rows,) if "bias" in source else (rows, 4)
        plain = re.sub(r"\(\?[^)]*\)|[\\^$]", "", source)
        names = [plain.replace("*", str(i)) for i in range(3 if "*" in plain else 1)]
        tensors[source] = [(n, RNG.normal(size=shape).astype(np.float32)) for n in names]
    return tensors


def by_transformers(transform: Any, inputs: dict[str, Any], sizes: tuple[int, ...]) -> Any:
    """The tensors that transformers makes of them; its operations ask the model for shapes."""
    outputs: Any = {
        source: [torch.from_numpy(t) for _, t in named] for source, named in inputs.items()
    }
    shapes = {t: (size,) for t, size in zip(transform.target_patterns, sizes, strict=False)}
    first = outputs[transform.source_patterns[0]][0].shape
    model = SimpleNamespace(get_parameter=lambda n: SimpleNamespace(shape=shapes.get(n, first)))
    vision = SimpleNamespace(**FIELDS)
    for operation in transform.operations:
        outputs = operation.convert(
            outputs,
            source_patterns=transform.source_patterns,
            target_patterns=transform.target_patterns,
            full_layer_name=transform.target_patterns[0],
            model=model,
            config=SimpleNamespace(**FIELDS, vision_config=vision),
        )
    return {
        name.replace("\\", ""): (tensor[0] if isinstance(tensor, list) else tensor).numpy()
        for name, tensor in outputs.items()
    }


def test_operations() -> None:
    """Renames, stacks, joins, splits, transposes and permutations, number by number."""
    count = 0
    for transform, ours in conversions():
        sizes = dict(ours.operations[0][1]).get("sizes", ())
        inputs = on_disk(transform, sizes)
        leaves = {name: tensor for named in inputs.values() for name, tensor in named}
        modules = {name.removesuffix(".weight"): tensor for name, tensor in leaves.items()}
        holdings_of: dict[str, list[Holding]] = {}
        for leaf, pieces in loaded_pieces(leaves, [ours]).items():
            for piece in pieces:
                holdings_of.setdefault(piece.name, []).append(Holding(leaf, piece))
        for name, truth in by_transformers(transform, inputs, sizes).items():
            holdings = sorted(holdings_of[name], key=lambda holding: holding.piece.memory)
            output = assembled(holdings, modules.__getitem__)
            assert np.array_equal(output, truth), (name, transform)
            shapes = {module: tensor.shape for module, tensor in modules.items()}
            assert assembled_shape(holdings, shapes) == truth.shape
        count += 1
    assert count > 60
