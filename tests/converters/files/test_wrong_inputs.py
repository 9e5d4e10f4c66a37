"""What a path is, where an adapter or a base was expected."""

from pathlib import Path

import pytest

from jaxmix.converters.files.wrong_inputs import (
    describe_non_adapter,
    describe_non_base,
    is_adapter,
    is_model,
)

_MODEL = (
    "is a model, not an adapter. Use the folder of an adapter here, and pass the model as the base."
)
_ADAPTER = (
    "is an adapter (adapter_config.json), not a model. Use the model that it was trained on, a "
    "Hugging Face folder with safetensors."
)
_GGUF = "which jaxmix does not read. Use the original"


def folder(place: Path, *names: str) -> Path:
    """Writes a folder of files."""
    place.mkdir()
    for name in names:
        (place / name).write_bytes(b"GGUF")
    return place


@pytest.mark.parametrize(
    ("names", "non_adapter", "non_base"),
    [
        (("model.safetensors",), _MODEL, None),
        (("config.json",), _MODEL, None),
        (("model_index.json",), _MODEL, None),
        (("adapter_config.json",), None, _ADAPTER),
        # transformers keeps an adapter with the model that it belongs to.
        (("adapter_config.json", "model.safetensors"), _MODEL, None),
        (("x.txt",), None, None),
        ((), None, None),
    ],
)
def test_folders_are_described_by_their_files(
    names: tuple[str, ...], non_adapter: str | None, non_base: str | None, tmp_path: Path
) -> None:
    """None if the folder may be what was expected, or is unknown."""
    place = folder(tmp_path / "x", *names)
    assert (describe_non_adapter(place), describe_non_base(place)) == (non_adapter, non_base)


def test_gguf_is_recognized_by_name_or_content(tmp_path: Path) -> None:
    """A folder by its files, unless it has safetensors too."""
    place = folder(tmp_path / "x", "a.gguf", "b")
    (place / "c.gguf").write_bytes(b"")
    (place / "d").write_bytes(b"GGU")
    for name in ("a.gguf", "b", "c.gguf"):
        assert describe_non_adapter(place / name) == (
            f"is a GGUF file, {_GGUF} adapter in safetensors."
        )
    assert describe_non_base(place) == (
        f"holds GGUF files, {_GGUF} Hugging Face folder with safetensors."
    )
    assert describe_non_base(place / "d") is None
    (place / "x.safetensors").write_bytes(b"")
    assert describe_non_adapter(place) is None


def test_paths_that_can_not_exist_are_nothing() -> None:
    """Callers report them."""
    for path in (Path("no/such/folder"), Path("x" * 5000), Path("a\0b")):
        assert not is_adapter(path) and not is_model(path)
    assert describe_non_adapter(Path("no/such/folder")) is None
    assert describe_non_base(Path("x" * 5000)) is None
