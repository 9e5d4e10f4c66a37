"""The modules of a tree: their names, types and shapes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.placement.layout import NAMES, Layout, Rule
from jaxmix.placement.tree import Tree
from jaxmix.training.modules import is_head, modules_of, target

from .samples import normal

_CONV1D = Layout("gpt", (Rule(r"(.+)", r"\1.weight"),), conv1d=r"c_attn")


def test_modules_are_parents_and_whole_leaves() -> None:
    """Each once; Flax's root and leaves of a module without a name are no modules."""
    tree = Tree.of(
        {
            "params": {"h": {"0": {"q": {"kernel": 1.0, "bias": 1.0}}, "1": {"scale": 1.0}}},
            "moe.experts": 1.0,
            "weight": 1.0,
        }
    )
    assert modules_of(tree) == ["moe", "moe.experts", "h", "h.0", "h.0.q", "h.1"]


def test_heads_are_outside_of_numbered_layers() -> None:
    """The last part of the name decides, as a whole."""
    heads = ["lm_head", "model.lm_head", "embed_out"]
    others = ["my_lm_head", "lm_head.proj", "h.0.lm_head", ""]
    assert all(map(is_head, heads)) and not any(map(is_head, others))


@pytest.mark.parametrize(
    ("name", "shape", "layer"),
    [
        ("lin.weight", (6, 4), "linear"),
        ("norm.weight", (6,), "norm"),
        ("conv.weight", (6, 4, 3, 2), "convolution"),
        ("embed_tokens.weight", (6, 4), "embedding"),
        ("experts", (3, 6, 4), "parameter"),
    ],
)
def test_types_of_pytorch_modules(name: str, shape: tuple[int, ...], layer: str) -> None:
    """Sizes are those of a matrix (out, in)."""
    found = target(Tree.of({name: normal(0, *shape)}), NAMES, name.removesuffix(".weight"))
    assert found is not None
    assert (found.layer, found.shape) == (layer, shape)
    assert (found.outputs, found.inputs) == (shape[0], int(np.prod(shape[1:])))
    assert found.kernel == shape[2:] and not found.is_transposed


def test_conv1d_is_stored_transposed() -> None:
    """Shape and matrix are (out, in), the stored weight is (in, out)."""
    weight = normal(0, 4, 6)
    found = target(Tree.of({"c_attn.weight": weight}), _CONV1D, "c_attn")
    assert found is not None and found.layer == "conv1d" and found.shape == (6, 4)
    np.testing.assert_array_equal(found.stored, weight)
    np.testing.assert_array_equal(found.matrix, weight.T)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_new_arrays_have_at_least_float32(dtype: Any) -> None:
    """Without x64, JAX has no float64."""
    params = {"lin.weight": np.ones((3, 2), dtype), "lin.bias": np.ones(3, dtype)}
    found = target(Tree.of(params), NAMES, "lin")
    assert found is not None and found.dtype == found.matrix.dtype == jnp.float32
    assert found.bias_vector.shape == (3,) and found.bias_vector.dtype == jnp.float32


def test_modules_without_floats_are_no_targets() -> None:
    """A missing weight, a bias alone, integers, and a number."""
    params = {"a.bias": np.ones(3), "b.weight": np.ones((3, 2), np.int8), "c.weight": 1.0}
    assert [target(Tree.of(params), NAMES, site) for site in "abcd"] == [None] * 4
