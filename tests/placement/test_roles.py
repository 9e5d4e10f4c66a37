"""The role of each weight of a tree without classes: by names, siblings, biases and shapes."""

from typing import Any

import numpy as np
import pytest

from jaxmix.placement.roles import Role, Roles, depth
from jaxmix.placement.tree import Tree

Shapes = dict[str, tuple[int, ...]]


def roles(shapes: Shapes, dtype: Any = np.float32) -> dict[str, Role]:
    """The roles in a flat tree of these shapes."""
    return Roles(Tree.of({name: np.zeros(shape, dtype) for name, shape in shapes.items()})).by_leaf


# The weight's name, its shape, other leaves of the tree, and the expected kind, rows and columns.
CASES: dict[str, tuple[str, tuple[int, ...], Shapes, str, tuple[int, ...], tuple[int, ...]]] = {
    "a Flax kernel": ("a.up.kernel", (4, 5), {}, "linear", (1,), (0,)),
    "a PyTorch weight": ("a.up.weight", (5, 4), {}, "linear", (0,), (1,)),
    "a norm": ("a.norm.scale", (4,), {}, "norm", (), ()),
    "a vector": ("a.b.weight", (4,), {}, "norm", (), ()),
    "an embedding": ("a.embed_tokens.weight", (7, 4), {}, "embedding", (), ()),
    "a table by its leaf": ("a.x.embedding", (7, 4), {}, "embedding", (), ()),
    "a LoRA's factor": ("a.q.lora_A.kernel", (4, 2), {}, "other", (), ()),
    "a PyTorch convolution": ("a.x.weight", (5, 4, 3), {}, "convolution", (), ()),
    "a Flax convolution": (
        *("a.x.kernel", (3, 4, 5)),
        *({"a.x.bias": (5,)}, "convolution", (), ()),
    ),
    "a convolution by its name": ("a.conv1.kernel", (3, 4, 5), {}, "convolution", (), ()),
    "a square convolution": ("a.x.kernel", (3, 3, 4, 5), {}, "convolution", (), ()),
    "heads by the bias": (
        *("a.x.kernel", (8, 2, 3)),
        *({"a.x.bias": (2, 3), "b.up.kernel": (8, 2)}, "linear", (1, 2), (0,)),
    ),
    "heads of a query": (
        *("a.query.kernel", (8, 2, 3)),
        *({"a.key.kernel": (8, 2, 3), "a.value.kernel": (8, 2, 3)}, "linear", (1, 2), (0,)),
    ),
    "heads of an output": (
        *("a.out.kernel", (2, 3, 8)),
        *({f"a.{x}.kernel": (8, 2, 3) for x in ("query", "key", "value")}, "linear"),
        *((2,), (0, 1)),
    ),
    "three axes without a sign": ("a.x.kernel", (8, 2, 3), {}, "unclear", (), ()),
    "a gate of a recurrent cell": (
        *("a.hr.kernel", (4, 5)),
        *({"a.ir.kernel": (4, 5), "a.iz.kernel": (4, 5), "a.hz.kernel": (4, 5)}, "recurrent"),
        *((1,), (0,)),
    ),
    "an unusual name": ("a.q_einsum", (8, 2, 3), {}, "unclear", (), ()),
    "a name without a meaning": ("a.table", (8, 2), {}, "other", (), ()),
}


@pytest.mark.parametrize(
    ("leaf", "shape", "others", "kind", "rows", "cols"), CASES.values(), ids=CASES
)
def test_role_of_a_weight(
    leaf: str,
    shape: tuple[int, ...],
    others: Shapes,
    kind: str,
    rows: tuple[int, ...],
    cols: tuple[int, ...],
) -> None:
    role = roles({leaf: shape, **others})[leaf]
    assert (role.kind, role.rows, role.cols) == (kind, rows, cols)
    assert role.is_matrix == bool(rows) and role.shape == shape and not role.stack


def test_biases_and_integers_have_no_role() -> None:
    assert set(roles({"a.up.kernel": (4, 5), "a.up.bias": (5,), "a.b": (5,)})) == {"a.up.kernel"}
    assert roles({"a.up.kernel": (4, 5)}, np.int32) == {}


def test_layers_of_a_stack_are_sites() -> None:
    """The number of a layer follows the name of the stacked module."""
    shapes: Shapes = {
        "m.layers.up.kernel": (2, 4, 5),
        "m.layers.up.bias": (2, 5),
        "m.norm.scale": (4,),
    }
    role = roles(shapes)["m.layers.up.kernel"]
    assert (role.kind, role.rows, role.cols) == ("linear", (2,), (1,))
    assert role.sites == dict.fromkeys(("m.layers.0.up", "m.layers.1.up"), "m.layers.up")
    assert not role.is_plain


def test_layers_of_nested_stacks_are_sites() -> None:
    shapes: Shapes = {
        "blocks.layers.up.kernel": (2, 3, 4, 5),
        "blocks.layers.up.bias": (2, 3, 5),
        "blocks.norm.scale": (2, 4),
    }
    sites = roles(shapes)["blocks.layers.up.kernel"].sites
    assert list(sites) == [f"blocks.{i}.layers.{j}.up" for i in range(2) for j in range(3)]


@pytest.mark.parametrize(
    ("leaf", "shape", "is_plain"),
    [
        ("a.up.kernel", (4, 5), True),
        ("params.a.up.kernel", (4, 5), True),
        ("a.base_module.kernel", (4, 5), False),
        ("a.up.w", (4, 5), False),
        ("a.up.weight", (5, 4), True),
    ],
)
def test_names_may_be_sufficient(leaf: str, shape: tuple[int, ...], is_plain: bool) -> None:
    """Wrappers and unusual names need a rule of their own."""
    role = roles({leaf: shape})[leaf]
    assert role.is_plain is is_plain and role.kind == "linear"


def test_depth_counts_parts_of_the_site() -> None:
    """Wrappers and Linen's collection are no parts of a site's name."""
    assert [depth(root) for root in ("", "a", "a.b", "params.a.b", "a.base_module.b")] == [
        *(0, 1, 2, 2, 2)
    ]
