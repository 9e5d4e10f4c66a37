"""Two processes with four devices each: what each of them reads, computes and saves."""

import json
import math
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.sharded_reading import load_params, read_slice
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError
from jaxmix.families import OFT, LoRA, Replace

from ..house.sources import ROOT
from ..messages import full_text
from .spying import grid

# Rows in several places, adjacent columns, replicated, and halves.
SPECS: dict[str, list[Any]] = {
    "up.weight": [["x", "host"], None],
    "down.weight": [None, ["host", "x"]],
    "down.bias": [],
    "norm.weight": ["host"],
}
SHAPES = {"up.weight": (4096, 256), "down.weight": (256, 4096), "down.bias": (256,)} | {
    "norm.weight": (4096,)
}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32) / 16


def mixed() -> jaxmix.Mix:
    """Returns a LoRA, a rotation that spans the parts, and a bias."""
    lora = Adapter({"up": LoRA(normal(4, 256), normal(4096, 4), 0.5)}, 0.7, "lora")
    oft = Adapter({"down": OFT(normal(1, 64 * 63 // 2))}, 0.5, "oft")
    bias = Adapter({"down": Replace(bias=normal(256))}, 1.0, "bias")
    return jaxmix.mix(lora, oft, bias)


def forward(params: Any, x: np.ndarray) -> np.ndarray:
    h = np.tanh(x @ np.asarray(params["up.weight"]).T)
    return h @ np.asarray(params["down.weight"]).T + np.asarray(params["down.bias"])


@pytest.fixture(scope="module")
def reports(tmp_path_factory: Any) -> list[dict[str, Any]]:
    """Returns the results of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "base").mkdir()
    base = {name: normal(*shape) for name, shape in SHAPES.items()}
    save_file(base, folder / "base" / "model.safetensors")
    jaxmix.save(mixed(), folder / "mix")
    truth = {name: np.asarray(leaf) for name, leaf in jaxmix.compose(base, mixed()).items()}
    x = normal(16, 256)
    np.savez(folder / "truth.npz", x=x, y=forward(truth, x), **truth)
    (folder / "specs.json").write_text(json.dumps(SPECS))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags}
    program = [sys.executable, "-m", "tests.devices.process"]
    started = [
        subprocess.Popen(
            [*program, str(i), str(port), str(folder)], cwd=ROOT, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    ended = [one.communicate(timeout=240) for one in started]
    assert [one.returncode for one in started] == [0, 0], [err[-3000:] for _, err in ended]
    lines = [[line for line in out.splitlines() if line.startswith("{")] for out, _ in ended]
    # Gloo's threads print too, sometimes before this line has ended.
    return [json.JSONDecoder().raw_decode(found[-1])[0] for found in lines]


def test_each_reads_what_it_holds(reports: list[dict[str, Any]]) -> None:
    """Each process reads its slices of a tensor once, even if several of its devices hold them."""
    for one in reports:
        half = {name: 4 * math.prod(shape) // 2 for name, shape in SHAPES.items()}
        wanted = {**half, "down.bias": 2 * half["down.bias"]}
        assert one["counted"] == wanted
        # On four devices each: the norm's half, and the bias.
        assert one["held"]["norm.weight"] == 4 * wanted["norm.weight"]
        # The system's count includes headers of a few hundred bytes, read a few times.
        assert one["read"] == 0 or 0 <= one["read"] - sum(wanted.values()) < 20_000
    assert sum(reports[0]["counted"].values()) < 0.51 * 4 * sum(map(math.prod, SHAPES.values()))


def test_what_they_make_is_what_one_makes(reports: list[dict[str, Any]]) -> None:
    """Composing, running unmerged, a loss, and an Orbax checkpoint keep each part on its device."""
    for one in reports:
        assert one["kept"] and one["restored kept"]
        for array in ("off", "factored off", "restored off"):
            assert one[array] < 1e-5, array
    assert reports[0]["loss"] == reports[1]["loss"]


# ---------------------------------------------------------------- reading slices, in one process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes a base with a tensor of each kind."""
    tensors = {
        "matrix": np.arange(64 * 3000, dtype=np.float32).reshape(64, 3000) % 99,
        "conv": np.arange(8 * 4 * 3 * 2, dtype=np.float16).reshape(8, 4, 3, 2),
        "scalar": np.asarray(3.0),
        "ids": np.arange(5),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "index", "numbers"),
    [
        ("matrix", (slice(3, 9),), 6 * 3000),
        ("matrix", (slice(3, 9), slice(0, 1500)), 6 * 1500),
        ("matrix", (slice(0, 64), slice(10, 20)), 64 * 3000),  # short gaps are read too
        ("matrix", (slice(5, 5), slice(None)), 0),
        ("matrix", (), 64 * 3000),
        ("conv", (slice(2, 4), slice(1, 3), slice(0, 3), slice(1, 2)), 2 * 24),
        ("scalar", (), 1),
    ],
)
def test_slices(folder: Path, name: str, index: Any, numbers: int) -> None:
    """A slice has the right numbers, and the count of numbers read for it is right."""
    stored = read_checkpoint(folder).tensors[name]
    counter: Counter[str] = Counter()
    got = read_slice(stored, index, counter)
    np.testing.assert_array_equal(got, stored.read()[index])
    assert counter[name] == numbers * got.dtype.itemsize


def test_where_tensors_go(folder: Path) -> None:
    """One sharding, a mapping, a function or none; floats are cast, integers are not."""
    mesh = grid()
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    names = ["matrix", "ids"]
    by_name = load_params(folder, {"matrix": cut}, dtype=np.float16, names=names)
    assert by_name["matrix"].sharding == cut and by_name["matrix"].dtype == np.float16
    assert by_name["ids"].sharding.is_fully_replicated and by_name["ids"].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    reports = load_params(folder, lambda name, like: cut, names=["matrix"])
    alone = load_params(folder, names=names)["matrix"]
    assert reports["matrix"].sharding == cut and len(alone.devices()) == 1
    np.testing.assert_array_equal(reports["matrix"], alone)
    assert load_params(folder, cut, names=["matrix"])["matrix"].sharding == cut


def test_what_is_refused(folder: Path) -> None:
    """One error lists all offenders."""
    cut = jax.sharding.NamedSharding(grid(), jax.sharding.PartitionSpec("y"))
    message = f"{folder} has no tensors with these names:\n  other\nExpected names such as ids."
    with pytest.raises(CheckpointError, match=full_text(message)):
        load_params(folder, names=["other"])
    message = (
        f"these shardings do not divide their tensors evenly:\n  ids (5,): {cut}\nReplicate such "
        "an axis over the devices: use None for it in the PartitionSpec."
    )
    with pytest.raises(ShapeError, match=full_text(message)):
        load_params(folder, cut, names=["ids"])
    advice = "Use an unquantized checkpoint, or pass dtype=jnp.float32."
    message = (
        "tensors with unsupported dtypes:\n  scalar would be float64, which JAX rounds unless "
        f"jax_enable_x64 is set\n{advice}"
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        load_params(folder, names=["scalar"])
    save_file({"q": np.zeros(3, np.uint16)}, folder / "model.safetensors")
    message = (
        "tensors with unsupported dtypes:\n  q is U16, expected one of F64, F32, F16, BF16, BOOL, "
        f"U8, I8, I16, I32, I64\n{advice}"
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        load_params(folder)


def test_a_file_that_ends_early(folder: Path) -> None:
    """A file that changes while it is read."""
    stored = read_checkpoint(folder).tensors["matrix"]
    stored.file.write_bytes(stored.file.read_bytes()[: stored.start + 100])
    message = (
        f"{stored.file} ends within the tensor matrix. Was the file changed while it was being "
        "read? Download or save it again."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        read_slice(stored)
