"""`load_params`: dtypes, names, shardings, and the bytes that are read."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from jaxmix.converters.checkpoints.sharded_reading import load_params
from jaxmix.errors import CheckpointError, LayoutError, ShapeError, UnsupportedError

from ...messages import full_text

UP = np.arange(24, dtype=np.float32).reshape(8, 3)
TENSORS: dict[str, Any] = {
    "up.weight": UP,
    "half": np.arange(3).astype(ml_dtypes.bfloat16),
    "count": np.arange(2),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes a checkpoint."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def rows(devices: int = 4) -> NamedSharding:
    """Returns a sharding of the first axis."""
    axis = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices], axis_types=(axis,))
    return NamedSharding(mesh, PartitionSpec("x"))


def test_dtype_is_that_of_floats(folder: Path) -> None:
    """Integers have JAX's default dtype with and without it; the default device is the first."""
    for dtype, expected in ((None, jnp.bfloat16), (np.float32, jnp.float32)):
        params = load_params(folder, dtype=dtype)
        assert {*params} == {*TENSORS}
        assert params["half"].dtype == expected and params["count"].dtype == jnp.int32
        assert all(leaf.devices() == {jax.local_devices()[0]} for leaf in params.values())
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(params[name], tensor)


def test_named_tensors_alone_are_read(folder: Path) -> None:
    """In the order of the call; absent names are reported with one that exists."""
    counter: Counter[str] = Counter()
    assert list(load_params(folder, names=["half", "count"], counter=counter)) == ["half", "count"]
    assert counter == {"half": 6, "count": 16}
    message = (
        f"{folder} has no tensors with these names:\n  down\n  up\nExpected names such as "
        f"{next(iter(load_params(folder)))}."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        load_params(folder, names=["half", "up", "down"])


def test_tensors_that_a_mapping_leaves_out_are_replicated(folder: Path) -> None:
    """Over the mesh of the others; a slice that several devices hold is read once."""
    counter: Counter[str] = Counter()
    params = load_params(folder, {"up.weight": rows()}, counter=counter)
    assert params["up.weight"].sharding == rows()
    assert params["half"].sharding == NamedSharding(rows().mesh, PartitionSpec())
    for shard in params["up.weight"].addressable_shards:
        np.testing.assert_array_equal(shard.data, UP[shard.index])
    assert counter == {"up.weight": UP.nbytes, "half": 6, "count": 16}


def test_all_wrong_shardings_are_listed(folder: Path) -> None:
    """Those that do not divide a tensor, and what is no sharding."""
    message = (
        "these shardings do not divide their tensors evenly:\n"
        f"  count (2,): {rows()}\n  half (3,): {rows()}\n"
        "Replicate such an axis over the devices: use None for it in the PartitionSpec."
    )
    with pytest.raises(ShapeError, match=full_text(message)):
        load_params(folder, rows(), names=["count", "half", "up.weight"])
    message = (
        "expected a jax.sharding.Sharding for every tensor, found:\n"
        f"  half: {PartitionSpec('x')!r}\n  count: None\n"
        "Pass shardings such as NamedSharding(mesh, PartitionSpec('x')), or a function of (name, "
        "outline) that returns them."
    )
    wrong: Any = {"half": PartitionSpec("x"), "count": None}
    with pytest.raises(LayoutError, match=full_text(message)):
        load_params(folder, lambda name, outline: wrong[name], names=["half", "count"])


def test_float64_is_not_rounded(tmp_path: Path) -> None:
    """Unless a dtype is given."""
    save_file({"a": np.ones(2), "b": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    message = (
        "tensors with unsupported dtypes:\n"
        "  a would be float64, which JAX rounds unless jax_enable_x64 is set\n"
        "Use an unquantized checkpoint, or pass dtype=jnp.float32."
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        load_params(tmp_path)
    assert load_params(tmp_path, dtype=jnp.float32)["a"].dtype == jnp.float32
