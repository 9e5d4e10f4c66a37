"""Files that `torch.save` wrote: read with torch, without running code, and refused without it."""

import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..adapters.formats.files import BASE, kohya
from ..adapters.peft.folders import FORMS, SITE, factors, keyed, refused, save

torch = pytest.importorskip("torch")
BIN = "adapter_model.bin"


def pickled(folder: Path, content: Any, **options: Any) -> Path:
    """Writes a PEFT folder whose tensors torch wrote."""
    save(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / BIN, **options)
    return folder


def tensors(dtype: Any = torch.float32) -> dict[str, Any]:
    """Returns LoRA's factors under PEFT's keys."""
    content = keyed(factors(FORMS["lora"]))
    return {key: torch.from_numpy(array).to(dtype) for key, array in content.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_bin_file_keeps_dtype_and_bits(dtype: str, tmp_path: Path) -> None:
    """The tensors are bit for bit those of the same file in safetensors."""
    content = tensors(getattr(torch, dtype))
    loaded = jaxmix.load(pickled(tmp_path / "bin", content)).updates[SITE]
    expected_arrays = {
        key: np.asarray(x.double()).astype(getattr(ml_dtypes, dtype, dtype))
        for key, x in content.items()
    }
    expected: Any = jaxmix.load(save(tmp_path / "safe", tensors=expected_arrays)).updates[SITE]
    for name in ("a", "b"):
        left, right = getattr(loaded, name), getattr(expected, name)
        assert left.dtype == right.dtype == dtype and left.tobytes() == right.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"state_dict": x, "epoch": 3},
        lambda x: OrderedDict(x),
        lambda x: {key: torch.nn.Parameter(v) for key, v in x.items()},
        lambda x: {key: v.t().contiguous().t() for key, v in x.items()},
    ],
    ids=["state_dict", "ordered", "parameters", "strided"],
)
def test_other_contents_of_a_bin_file(change: Any, tmp_path: Path) -> None:
    """A trainer's checkpoint, parameters with gradients, tensors with other strides."""
    loaded: Any = jaxmix.load(pickled(tmp_path / "x", change(tensors()))).updates[SITE]
    np.testing.assert_array_equal(loaded.a, factors(FORMS["lora"])["lora_A.weight"])


def test_bin_file_of_old_torch(tmp_path: Path) -> None:
    """Before version 1.6 the file was no zip."""
    folder = pickled(tmp_path, tensors(), _use_new_zipfile_serialization=False)
    loaded: Any = jaxmix.load(folder).updates[SITE]
    np.testing.assert_array_equal(loaded.a, factors(FORMS["lora"])["lora_A.weight"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1], "holds a list, expected a dict of tensors by name. Save the model's"),
        ({"a": 3}, "holds entries that are not named tensors:\n  a: int\nExpected a state dict."),
        ({"a": {"b": torch.ones(1)}}, "\n  a: dict\n"),
        ({3: torch.ones(1)}, "\n  3: Tensor\n"),
        ({"a": torch.ones(2).to_sparse()}, "\n  a: Tensor\n"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "tensors of a dtype that factors can't"),
        ({"a": torch.ones(2).to(torch.complex64)}, "\n  a: complex64\n"),
        ({}, "contains no tensors, expected an adapter's factors"),
    ],
    ids=["list", "number", "nested", "key", "sparse", "float8", "complex", "empty"],
)
def test_contents_other_than_tensors_are_refused(
    content: Any, expected: str, tmp_path: Path
) -> None:
    """The error names each such entry."""
    folder = pickled(tmp_path, content)
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{folder / BIN}") and expected in message


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    """As in PEFT, safetensors takes precedence; the other copy is read if its path is passed."""
    folder = save(tmp_path)
    torch.save({key: 2 * x for key, x in tensors().items()}, folder / BIN)
    safe: Any = jaxmix.load(folder).updates[SITE]
    other: Any = jaxmix.load(folder / BIN).updates[SITE]
    assert jaxmix.load(folder, filename=BIN).name == jaxmix.load(folder).name
    np.testing.assert_array_equal(2 * np.asarray(safe.a), other.a)


def test_kohya_file_written_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd-scripts wrote .pt and .ckpt; without torch the error has the instructions."""
    path = tmp_path / "x.pt"
    torch.save({key: torch.from_numpy(x.copy()) for key, x in kohya("lora").items()}, path)
    assert jaxmix.load(path, base=list(BASE)).sites == ("proj",)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused(CheckpointError, path) == (
        f"{path} is a pickle, which jaxmix reads only if torch is installed (pip install "
        "'jaxmix-peft[torch]'). jaxmix does not read pickles. With torch:\n"
        f"  tensors = torch.load({str(path)!r}, map_location='cpu', weights_only=True)\n"
        f"  safetensors.torch.save_file(tensors, {str(tmp_path / 'x.safetensors')!r})"
    )


def test_missing_torch_file_is_reported(tmp_path: Path) -> None:
    """A reader that is called directly reports it too."""
    from jaxmix.converters.adapters.common.tensors import read_tensors

    for name, advice in (
        ("x.bin", "Check the path."),
        ("x.safetensors", "Pass the path of a file."),
    ):
        message = f"{tmp_path / name} does not exist. {advice}"
        with pytest.raises(CheckpointError, match=full_text(message)):
            read_tensors(tmp_path / name)


def test_expanded_tensor_is_refused(tmp_path: Path) -> None:
    """The file holds one number of it; a small one is read as it is."""
    content = tensors()
    (key, first), *_ = content.items()
    small = {**content, key: torch.full((1, 1), 2.0).expand(first.shape)}
    (update,) = jaxmix.load(pickled(tmp_path / "small", small)).updates.values()
    assert np.unique(np.asarray(update.a)).tolist() == [2.0]  # pyright: ignore
    large = {**content, key: torch.zeros(1).expand(2**40)}
    text = refused(CheckpointError, pickled(tmp_path / "large", large))
    assert f"but its tensors have 4,398,046,511,{4 * content_size(content, key) + 104:03}" in text
    assert f"the largest are:\n  {key} (1099511627776,)\n" in text
    assert text.endswith("Were they expanded? Save them with .contiguous().")


def content_size(content: dict[str, Any], key: str) -> int:
    """Returns the number of elements of the other tensors."""
    return sum(x.numel() for name, x in content.items() if name != key)


def test_compressed_zip_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch reads it, so it is read up to a limit."""
    from jaxmix.converters.files import torch_files

    folder = pickled(tmp_path / "zip", {**tensors(), "x": torch.zeros(200_000)})
    path, packed = folder / BIN, folder / "packed"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    packed.replace(path)
    torch_files.torch_tensors(path)
    # The compressed size depends on the version of zlib.
    size = path.stat().st_size
    monkeypatch.setattr(torch_files, "ALWAYS", 0)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/zip/adapter_model.bin has {size:,} bytes and unpacks to "
            "800,502, expected a zip written by torch.save, which is not "
            "compressed. Download it again."
        ),
    ):
        torch_files.torch_tensors(path)
