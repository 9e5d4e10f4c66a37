"""Formats of adapters: forced by name, recognized, with options of their own."""

from pathlib import Path
from typing import Any

import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.adapters import loading
from jaxmix.converters.adapters.format import Format, LocatedAdapter
from jaxmix.errors import CheckpointError, UnsupportedError

from ...messages import full_text
from .peft.folders import refused, save
from .test_finding import EXPECTED

KNOWN = ", ".join(repr(reader.name) for reader in loading.FORMATS)


def test_format_by_name(tmp_path):
    """A format can be forced; an unknown one is refused."""
    folder = save(tmp_path / "style")
    assert jaxmix.load(folder, format="peft").name == "style"
    message = refused(UnsupportedError, folder, format="pickle")
    assert message == f"format 'pickle' is unknown, expected one of {KNOWN}."


def test_unknown_options(tmp_path):
    """No unknown option is ignored."""
    folder = save(tmp_path / "style")
    message = refused(UnsupportedError, folder, rank=3, colour="red")
    assert message.startswith("style has the format 'peft', whose reader takes ")
    assert message.endswith(
        ", not colour=…, rank=…. Leave it out, or read another format: format='…'."
    )


def test_file_of_unknown_format(tmp_path):
    """Refused, and so is such a file with a subfolder."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    message = refused(CheckpointError, path)
    assert message.startswith(f"{path} is a file, expected a folder with adapter_config.json and ")
    message = refused(CheckpointError, path, subfolder="a")
    # The path is shortened if pytest's folder is long.
    assert message.startswith(f"'{str(path)[:20]}")
    assert message.endswith(f"' is a file, which has no subfolder.\n{EXPECTED}")


def test_new_format_is_a_row_of_the_table(tmp_path, monkeypatch):
    """It reads files that it recognizes, unless another format is forced."""
    new_format = Format(
        name="mine",
        description="a file .mine",
        recognizes=lambda path: path.suffix == ".mine",
        read=lambda path, name, strength, *, rank=1: Adapter({}, strength, f"{name} {rank}"),
        options=("rank",),
    )
    monkeypatch.setattr(loading, "FORMATS", (new_format, *loading.FORMATS))
    folder = save(tmp_path / "style")
    path = tmp_path / "x.mine"
    path.write_bytes(b"")
    assert jaxmix.load(folder).name == "style"
    assert jaxmix.load(path, rank=3, strength=0.5).name == "x 3"
    assert jaxmix.load(folder, format="mine").name == "style 1"
    assert "has no adapter_config.json" in refused(CheckpointError, path, format="peft")


def located(tmp_path: Path, **fields: Any) -> LocatedAdapter:
    """Returns an adapter of a format whose reader returns its arguments."""
    rows: dict[str, Any] = {"options": ("rank",), **fields}
    mine = Format(
        "mine", "a file .mine", lambda path: True, lambda *args, **how: Adapter({}, 1.0, f"{how}"),
        **rows,
    )  # fmt: skip
    return LocatedAdapter(tmp_path / "x.mine", mine, "x", "owner/name", ("b.bin", "a.pt"))


def test_options_that_no_reader_takes_are_listed(tmp_path: Path) -> None:
    """In order, with what the reader takes."""
    expected = (
        "owner/name has the format 'mine', whose reader takes {}, not colour=…, size=…. Leave it "
        "out, or read another format: format='…'."
    )
    for options, takes in ((("rank", "beta"), "rank, beta"), ((), "no options")):
        with pytest.raises(UnsupportedError, match=full_text(expected.format(takes))):
            located(tmp_path, options=options).read(None, 1.0, size=2, colour="red")


def test_reader_that_takes_extra_weights_gets_their_names(tmp_path: Path) -> None:
    """Any other format must not ignore them."""
    adapter: Any = located(tmp_path, takes_extra_weights=True).read(None, 1.0, rank=2)
    assert adapter.name == "{'rank': 2, 'beside': ('b.bin', 'a.pt')}"
    with pytest.raises(CheckpointError) as caught:
        located(tmp_path).read(None, 1.0)
    assert "a.pt" in str(caught.value) and "b.bin" in str(caught.value)


def test_format_that_names_its_parts_keeps_their_sources(tmp_path: Path) -> None:
    """It gets an empty name if the user gives none; others get the default name and the source."""
    for names_parts, name, source in ((True, "", ""), (False, "x", "owner/name")):
        calls: list[str] = []

        def read(path: Path, name: str, strength: Any, calls: list[str] = calls) -> Adapter:
            calls.append(name)
            return Adapter({}, strength, "part")

        mine = Format("mine", "", lambda path: True, read, names_parts=names_parts)
        found = LocatedAdapter(tmp_path, mine, "x", "owner/name")
        assert found.read(None, 0.5).source == source  # pyright: ignore
        assert found.read("given", 0.5).source == source  # pyright: ignore
        assert calls == [name, "given"]
