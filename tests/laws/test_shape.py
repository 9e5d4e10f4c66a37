"""Law 6: the structure is kept, and 16-bit weights are rounded once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmix
from jaxmix import Adapter

from ..uncompiled import uncompiled
from .draws import KINDS, adapters, draw_update, few, tree, trees
from .truth import fold_tree

DTYPES = (np.float64, np.float32, jnp.bfloat16, np.float16)


@few()
@given(
    data=st.data(), drawn=trees(), dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6)
)
def test_structure_is_kept(data: st.DataObject, drawn: Any, dtypes: list[Any]) -> None:
    """Treedef, shapes and dtypes are kept, even if dtypes of leaves and factors differ."""
    modules, flat = drawn
    params = {n: x.astype(d) for (n, x), d in zip(flat.items(), dtypes, strict=False)}
    params |= {n: x for n, x in flat.items() if n not in params}
    dtype = data.draw(st.sampled_from(DTYPES))
    mixed = jax.tree.map(
        lambda x: x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x,
        data.draw(adapters(modules)),
    )
    nested = {"params": [params, {"other": np.arange(3)}], "none": None}
    with jax.enable_x64(True), uncompiled():
        layout = jaxmix.Layout(
            "mine",
            tuple(
                jaxmix.Rule(r"(.+)", rf"params.0.\1.{part}", part=part)
                for part in ("weight", "bias")
            ),
        )
        out = jaxmix.compose(nested, mixed, layout=layout)
    assert jax.tree.structure(out) == jax.tree.structure(nested)
    for result, leaf in zip(jax.tree.leaves(out), jax.tree.leaves(nested), strict=True):
        assert result.shape == leaf.shape and result.dtype == leaf.dtype


def rounded_once(actual: Any, expected: np.ndarray, noise: float) -> bool:
    """Whether `actual` is the float64 result rounded once, up to noise before the rounding."""
    scale = noise * np.abs(expected).max()
    low, high = ((expected + d).astype(actual.dtype) for d in (-scale, scale))
    return bool(((low <= actual) & (actual <= high)).all())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_16_bit_weights_are_rounded_once(dtype: Any) -> None:
    """Arithmetic is in float32, by passes and as one function, so there is one rounding."""
    module, kinds = KINDS["wide"], ("LoRA", "OFT", "LoHa", "DoRA")
    params = {n: x.astype(dtype) for n, x in tree({"a": module}, 0).items()}
    mixed = [
        Adapter({"a": draw_update(k, module, 4 + i)}, 0.9, f"{i}") for i, k in enumerate(kinds)
    ]
    truth = fold_tree({n: np.asarray(x, np.float64) for n, x in params.items()}, mixed)
    for out in (jaxmix.compose(params, mixed), jax.jit(jaxmix.compose)(params, mixed)):
        for name, expected in truth.items():
            result = np.asarray(out[name])
            assert result.dtype == np.dtype(dtype) and rounded_once(result, expected, 2e-6)


def test_double_rounding_is_detected() -> None:
    """The check above can fail: it detects a result that was rounded after each adapter."""
    module = KINDS["wide"]
    params = {n: x.astype(jnp.bfloat16) for n, x in tree({"a": module}, 0).items()}
    a, b = (Adapter({"a": draw_update("LoRA", module, i)}, name=str(i)) for i in range(2))
    truth = fold_tree({n: np.asarray(x, np.float64) for n, x in params.items()}, [a, b])["a.weight"]
    in_two_steps = jaxmix.compose(jaxmix.compose(params, a), b)["a.weight"]
    in_one_step = jaxmix.compose(params, [a, b])["a.weight"]
    assert rounded_once(np.asarray(in_one_step), truth, 2e-6)
    assert not rounded_once(np.asarray(in_two_steps), truth, 2e-6)


def test_sums_of_16_bit_factors_are_exact_to_float32() -> None:
    """Factors in bfloat16 are widened before they are multiplied."""
    module = KINDS["wide"]
    params = tree({"a": module}, 0, np.float32)
    lora = jax.tree.map(
        lambda x: np.asarray(x).astype(jnp.bfloat16) if np.ndim(x) else x,
        Adapter({"a": draw_update("LoKr", module, 0)}),
    )
    truth = fold_tree(params, [lora])["a.weight"]
    out = jaxmix.compose(params, lora)["a.weight"]
    np.testing.assert_allclose(out, truth, rtol=1e-5, atol=1e-5)
