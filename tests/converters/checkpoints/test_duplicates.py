"""Files next to a checkpoint that duplicate its tensors, in any format, are recognized."""

import io
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.checkpoints.duplicates import is_copy
from jaxmix.converters.checkpoints.huggingface import Stored, read_checkpoint

RNG = np.random.default_rng(0)
TENSORS = {f"h.{i}.q.weight": RNG.normal(size=(6, 8)).astype(np.float32) for i in range(4)}
OTHERS = {name: tensor + 0.1 for name, tensor in TENSORS.items()}


@pytest.fixture
def original(tmp_path: Path) -> dict[str, Stored]:
    """Returns the tensors of a checkpoint."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    return dict(read_checkpoint(folder).tensors)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (TENSORS, True),
        ({name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in TENSORS.items()}, True),
        ({name: tensor.astype(np.int8) for name, tensor in TENSORS.items()}, True),
        (OTHERS, False),
        ({name: tensor.T.copy() for name, tensor in TENSORS.items()}, False),
        ({f"other.{name}": tensor for name, tensor in TENSORS.items()}, False),
        (dict(list(TENSORS.items())[:1]) | {f"new.{n}": x for n, x in TENSORS.items()}, False),
    ],
    ids=["same", "bfloat16", "quantized", "numbers", "shapes", "names", "a few"],
)
def test_safetensors_are_compared(tmp_path: Path, original, tensors, expected) -> None:
    save_file(tensors, tmp_path / "copy.safetensors")
    assert is_copy(tmp_path / "copy.safetensors", original) is expected


def test_damaged_file_counts_as_a_copy(tmp_path: Path, original) -> None:
    save_file(OTHERS, tmp_path / "copy.safetensors")
    data = (tmp_path / "copy.safetensors").read_bytes()
    (tmp_path / "copy.safetensors").write_bytes(data[:-1])
    assert is_copy(tmp_path / "copy.safetensors", original)


@pytest.mark.parametrize(("prefix", "expected"), [("", True), ("other.", False)])
def test_archives_are_compared_by_names(
    tmp_path: Path, original, prefix: str, expected: bool
) -> None:
    """NumPy's archives and both of PyTorch's formats; nothing is unpickled."""
    names = {f"{prefix}{name}": None for name in TENSORS}
    arrays = {f"{prefix}{name}": tensor for name, tensor in TENSORS.items()}
    np.savez(tmp_path / "copy.npz", allow_pickle=False, **arrays)
    with zipfile.ZipFile(tmp_path / "copy.pt", "w") as archive:
        archive.writestr("copy/data.pkl", pickle.dumps(names))
    legacy = io.BytesIO()
    for content in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, names):
        pickle.dump(content, legacy)
    (tmp_path / "copy.bin").write_bytes(legacy.getvalue())
    for suffix in ("npz", "pt", "bin"):
        assert is_copy(tmp_path / f"copy.{suffix}", original) is expected, suffix


@pytest.mark.parametrize("suffix", ["npz", "pt", "bin", "json"])
def test_other_files_are_no_copies(tmp_path: Path, original, suffix: str) -> None:
    (tmp_path / f"file.{suffix}").write_bytes(b"neither an archive nor a pickle")
    assert not is_copy(tmp_path / f"file.{suffix}", original)
