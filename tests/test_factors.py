"""Arrays that users pass into updates: any byte order, lists, tensors; and invalid values."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.core import Tracer

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError
from jaxmix.factors import checked_factors
from jaxmix.families import LoHa, LoKr, LoRA, Normed, Replace, SHiRA, Together, Update

from .messages import full_text

A, B = (
    np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in [(2, 4), (6, 2)]
)
PARAMS = {"q.weight": np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)}
TRUTH = PARAMS["q.weight"] + B @ A


def composed(update: Update) -> np.ndarray:
    """Returns the weight with an update applied."""
    return np.asarray(jaxmix.compose(PARAMS, Adapter({"q": update}))["q.weight"])


SPELLED: dict[str, dict[str, Any]] = {
    "big-endian": {"a": A.astype(">f4"), "b": B.astype(">f8"), "scale": np.asarray(1, ">f4")},
    "little-endian": {"a": A.astype("<f4"), "b": B.astype("<f8")},
    "lists": {"a": A.tolist(), "b": [tuple(row) for row in B.tolist()]},
    "lists of arrays": {"a": list(A), "b": [jnp.asarray(row) for row in B]},
    "memory": {"a": memoryview(A)},
    "a number of NumPy's": {"scale": np.int64(1)},
    "a bool": {"scale": np.bool_(True)},
}


@pytest.mark.parametrize("kind", SPELLED)
def test_equivalent_arrays_give_the_same_result(kind: str) -> None:
    """Each way to pass the same numbers gives the same result."""
    np.testing.assert_allclose(
        composed(LoRA(**{"a": A, "b": B, "scale": 1.0, **SPELLED[kind]})), TRUTH, rtol=1e-5
    )


@pytest.mark.parametrize("scale", [2**31, 2**40, -(2**63), 2**100])
def test_scales_beyond_32_bits(scale: int) -> None:
    """Integers that JAX does not accept as arguments of compiled functions work as scales."""
    np.testing.assert_allclose(composed(LoRA(A, B, scale)), float(scale) * (B @ A), rtol=1e-4)


def test_integers_in_place_of_floats() -> None:
    """Integers work in place of floats under strict promotion."""
    integers = np.arange(8).reshape(2, 4)
    np.testing.assert_allclose(
        composed(LoRA(integers, B, 1)), PARAMS["q.weight"] + B @ integers, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_pytorch_tensors_are_copied(dtype: str) -> None:
    """Tensors work, also trainable ones; the results are copies."""
    torch = pytest.importorskip("torch")
    tensors = A.astype(getattr(ml_dtypes, dtype, dtype))
    tensor = torch.tensor(
        tensors.astype(np.float64), dtype=getattr(torch, dtype), requires_grad=True
    )
    update: Any = checked_factors({"q": LoRA(tensor, B, 1.0)})["q"]
    assert update.a.dtype == tensors.dtype and update.a.tobytes() == tensors.tobytes()
    with torch.no_grad():
        tensor.zero_()
    assert update.a.tobytes() == tensors.tobytes()
    truth = PARAMS["q.weight"] + B @ tensors.astype(np.float32)
    np.testing.assert_allclose(composed(update), truth, rtol=1e-5, atol=1e-6)


def test_valid_updates_are_returned_unchanged() -> None:
    """A valid update is returned as the same object, also outlines and tracers."""
    lora = LoRA(A, jnp.asarray(B), 1.0, bias=None)
    outline = LoRA(jax.ShapeDtypeStruct((2, 4), np.float32), B, 1.0)  # pyright: ignore[reportArgumentType]
    updates = {
        "a": lora,
        "b": Together((Replace(bias=B[:, 0]), lora)),
        "c": outline,
        "d": LoKr((A,), (A, B), 1.0),
        "e": Normed(lora, B[:, 0]),
    }
    checked = checked_factors(updates)
    assert all(checked[site] is updates[site] for site in updates)
    traced: list[Any] = []
    jax.jit(lambda a: traced.append(checked_factors({"q": LoRA(a, B, 1.0)})["q"]) or a)(A)
    assert isinstance(traced[0].a, Tracer)


def test_nested_factors_are_converted() -> None:
    """Parts of nested updates and tuples of factors are converted too."""
    swapped = A.astype(">f4")
    updates = {
        "together": Together((LoRA(swapped, B, 1.0), Replace(bias=B[:, 0]))),
        "normed": Normed(LoRA(swapped, B, 1.0), B[:, 0]),
        "lokr": LoKr([swapped], (A, swapped), 1.0),  # pyright: ignore[reportArgumentType]
    }
    for update in checked_factors(updates).values():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(update)]
        assert all(leaf.dtype.isnative for leaf in leaves)
        assert sum(leaf.tobytes() == A.tobytes() for leaf in leaves) >= 1
    lokr: Any = checked_factors(updates)["lokr"]
    assert isinstance(lokr.x, tuple)


def test_static_numpy_numbers_become_python_numbers() -> None:
    """A file can't store NumPy's numbers in static fields."""
    update: Any = checked_factors({"q": SHiRA(A[0], np.zeros((2, 4), np.int32), np.int64(3))})["q"]  # pyright: ignore[reportArgumentType]
    assert type(update.rank) is int


LORA = LoRA(A, B, 1.0)
WRONG: dict[str, tuple[Any, str]] = {
    "masked": (
        replace(LORA, a=np.ma.masked_array(A, A > 0)),
        "a is a masked array; fill it: np.ma.filled(array, 0)",
    ),
    "no scale": (replace(LORA, scale=None), "scale is None, expected a number"),
    "no factor": (replace(LORA, b=None), "b is None, expected an array"),
    "text": (replace(LORA, scale="1"), "scale is a str, expected an array"),
    "NaN": (replace(LORA, scale=float("nan")), "scale is nan, expected a finite number"),
    "infinite": (replace(LORA, scale=np.float32(np.inf)), "scale is inf, expected a finite number"),
    "a huge integer": (
        replace(LORA, scale=10**400),
        "scale is an integer beyond all floats, expected a finite number",
    ),
    "complex": (replace(LORA, a=A + 1j), "a has dtype complex64, expected float64, float32, "),
    "objects": (replace(LORA, a=A.astype(object)), "a has dtype object, expected float64"),
    "dates": (replace(LORA, a=np.zeros((2, 4), "M8[s]")), "a has dtype datetime64[s], expected"),
    "ragged": (
        replace(LORA, a=[[1.0, 2.0], [3.0]]),
        "a is a list whose rows have several lengths, expected an array",
    ),
    "a dict": (replace(LORA, a={"a": A}), "a is a dict, expected an array"),
    "no tuple": (LoKr(A, (A, B), 1.0), "x is one array (2, 4), expected a tuple of arrays"),  # pyright: ignore[reportArgumentType]
    "inside": (Together((replace(LORA, b=None), LORA)), "b is None, expected an array"),
}  # fmt: skip


@pytest.mark.parametrize(("update", "text"), WRONG.values(), ids=WRONG)
def test_invalid_factors_are_listed(update: Any, text: str) -> None:
    """One error lists all invalid factors with their sites."""
    with pytest.raises(AdapterError) as caught:
        Adapter({"k": LORA, "q": update, "v": LoHa(B, A, B, A, None)})  # pyright: ignore[reportArgumentType]
    message = str(caught.value)
    assert message.startswith(f"factors that are not arrays of numbers:\n  q: {text}"), message
    assert message.endswith(
        "\n  v: scale is None, expected a number\nExpected NumPy or JAX arrays of floats, and a "
        "finite number or an array without axes as scale."
    )


def test_sparse_tensor_is_refused() -> None:
    """A tensor that NumPy can't represent is refused."""
    torch = pytest.importorskip("torch")
    sparse = torch.eye(4)[:2].to_sparse()
    # The reason in parentheses is PyTorch's.
    with pytest.raises(
        AdapterError,
        match=r"\Afactors that are not arrays of numbers:\n"
        r"  q: a is a PyTorch tensor that NumPy can't hold \(.*\)\n"
        r"Expected NumPy or JAX arrays of floats, and a finite number or an array without axes as "
        r"scale\.\Z",
    ):
        Adapter({"q": LoRA(sparse, B, 1.0)})


@pytest.mark.parametrize("rank", [np.int64(2), np.uint8(2), np.asarray(2), jnp.int32(2)])
def test_numpy_integers_are_valid_ranks(rank: Any) -> None:
    """Every function that takes a rank accepts NumPy's integers."""
    adapter, key = Adapter({"q": LORA}), jax.random.key(0)
    adapters = {
        "to_lora": jaxmix.to_lora(adapter, PARAMS, rank=rank),
        "combine": jaxmix.combine([adapter], PARAMS, method="svd", rank=rank),
    }
    if isinstance(rank, np.integer):
        adapters["init"] = jaxmix.init("lora", PARAMS, key, target_modules=["q"], rank=rank)  # pyright: ignore[reportArgumentType]
    for factors in adapters.values():
        assert factors.updates["q"].a.shape == (2, 4)  # pyright: ignore[reportAttributeAccessIssue]
    share = jaxmix.to_lora(adapter, PARAMS, rank=np.float32(0.9999))  # pyright: ignore[reportArgumentType]
    assert share.updates["q"].a.shape == (2, 4)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("rank", [2.0, True, "2", None])
def test_invalid_ranks_are_refused(rank: Any) -> None:
    """Invalid ranks of a new adapter are refused; None means the kind's default."""
    if rank is None:
        rank = np.float64(2)
    with pytest.raises(jaxmix.errors.ShapeError) as caught:
        jaxmix.init("lora", PARAMS, jax.random.key(0), target_modules=["q"], rank=rank)
    assert f"q: rank is {rank!r}, expected a positive integer" in str(caught.value)


def test_masked_strength_is_refused() -> None:
    """NumPy would convert it to 0 or NaN."""
    with pytest.raises(
        AdapterError,
        match=full_text(
            "a strength is masked, expected a real number or an array "
            "without axes. For one strength per adapter write mix(a, b, "
            "strength=[…])."
        ),
    ):
        Adapter({}, np.ma.masked)
