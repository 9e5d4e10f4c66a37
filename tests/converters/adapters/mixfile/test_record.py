"""The fields of mix.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.adapters.mixfile import VERSION, record
from jaxmix.errors import CheckpointError, UnsupportedError

from .saved import Data, edited, refused

RECIPE = (
    '\nExpected the file that jaxmix writes, or a recipe: {"format": '
    '"jaxmix", "version": 1, "parts": [{"source": "…", "strength": 1}]}.'
)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not JSON: Expecting value: line 1 column 1 (char 0). "),
    "no text": (b"\xff{}", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: "),
    "cut": (b'{"format": "jaxmix"', "is not JSON: Expecting ',' delimiter: line 1 column 20"),
    "a list": (b"[]", "contains a list, expected a JSON object."),
    "twice": (b'{"a": 1, "b": 2, "a": 1}', "is not JSON: 'a' occurs twice in one object. "),
    "NaN": (
        b'{"a": NaN}',
        "is not JSON: NaN is not a finite number. Expected the file that jaxmix writes; ",
    ),
    "infinite": (b'{"a": [-Infinity]}', "is not JSON: -Infinity is not a finite number. "),
    "deep": (b"[" * 100_000, "is not JSON: "),
    "no mix": (
        b'{"peft_type": "LORA"}',
        "is not a mix of jaxmix: its format is None, expected 'jaxmix'. Pass a "
        "folder that jaxmix wrote, or a recipe.",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_invalid_json_is_refused(name: str, folder: Path) -> None:
    """Invalid JSON, and JSON of another format, are refused."""
    data, expected = DAMAGED[name]
    path = folder / "mix.json"
    path.write_bytes(data)
    assert refused(CheckpointError, folder).startswith(f"{path} {expected}")


def test_unreadable_json_gives_the_system_error(folder: Path) -> None:
    """The error contains the system's reason."""
    (folder / "mix.json").unlink()
    (folder / "mix.json").mkdir()
    assert refused(CheckpointError, folder) == (
        f"{folder / 'mix.json'} can't be read: Is a directory. Expected a file that you may read."
    )


def test_newer_and_invalid_versions_are_refused(folder: Path) -> None:
    """A newer or invalid version is refused regardless of the other fields."""
    path = folder / "mix.json"
    edited(folder, lambda data: data.update(version=VERSION + 1, more=[], parts={}))
    assert refused(UnsupportedError, folder) == (
        f"{path} has version {VERSION + 1}, and this jaxmix reads versions up to "
        f"{VERSION}. Update jaxmix, or save the mix with this version."
    )
    for version in (0, -1, 1.0, "1", None, True, [1]):
        edited(folder, lambda data, version=version: data.update(version=version))
        assert refused(CheckpointError, folder) == (
            f"{path}: version is {version!r}, expected an integer up to {VERSION}. "
            f"Save the mix again."
        )


HASH = "expected 64 hexadecimal digits"
FIELDS: dict[str, tuple[Callable[[Data], Any], list[str]]] = {
    "unknown": (lambda d: d.update(more=1), ["'more' is not a field of a mix"]),
    "kind": (lambda d: d.update(kind=["mix"]), ["kind is ['mix'], expected 'mix' or 'adapter'"]),
    "parts": (lambda d: d.update(parts={}), ["parts is {}, expected a list"]),
    "no parts": (lambda d: d.pop("parts"), ["parts is None, expected a list"]),
    "a part": (lambda d: d["parts"].append(3), ["part 3: it is 3, expected an object"]),
    "a part's field": (
        lambda d: d["parts"][0].update(revision="main"),
        ["part 1: 'revision' is not a field of a part"],
    ),
    "a part's fields": (
        lambda d: [d["parts"][1].pop(key) for key in ("name", "sha256")],
        ["part 2: name is missing", "part 2: sha256 is missing"],
    ),
    "texts": (
        lambda d: d["parts"][0].update(name=None, source=7),
        ["part 1: name is None, expected a string", "part 1: source is 7, expected a string"],
    ),
    "strength": (
        lambda d: [p.update(strength=s) for p, s in zip(d["parts"], (True, 10**400), strict=True)],
        [
            "part 1: strength is True, expected a finite number",
            f"part 2: strength is {str(10**400)[:57]}…, expected a finite number",
        ],
    ),
    "infinite": (
        lambda d: [p.update(strength=s) for p, s in zip(d["parts"], ({}, "1"), strict=True)],
        [
            "part 1: strength is {}, expected a finite number",
            "part 2: strength is '1', expected a finite number",
        ],
    ),
    "hash": (
        lambda d: d["parts"][0].update(sha256="A" * 64),
        [f"part 1: sha256 is '{'A' * 56}…, {HASH}"],
    ),
    "no hash": (lambda d: d["parts"][0].update(sha256=1), [f"part 1: sha256 is 1, {HASH}"]),
    "of a recipe": (
        lambda d: d.update(parts=[{"source": "", "strength": {"tensor": "x"}, "name": ""}, {}]),
        [
            "part 1: source is '', expected a string",
            "part 1: name is '', expected a string",
            "part 1: strength is {'tensor': 'x'}, expected a finite number",
            "part 2: source is missing",
        ],
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_invalid_fields_are_listed(name: str, folder: Path) -> None:
    """Unknown, missing and invalid fields are listed in one error."""
    change, lines = FIELDS[name]
    message = refused(CheckpointError, edited(folder, change))
    listed = "".join(f"\n  {line}" for line in sorted(lines))
    head, *found_lines = message.removesuffix(RECIPE).split("\n  ")
    assert head == f"{folder / 'mix.json'}: not a valid mix:" and message.endswith(RECIPE)
    assert "".join(f"\n  {line}" for line in sorted(found_lines)) == listed


def test_number_beyond_floats_is_refused(folder: Path) -> None:
    """JSON reads such a number as infinity."""
    text = (folder / "mix.json").read_text()
    for field in ('"strength": 1.0', '"scale": 0.5'):
        changed = field.split(":")[0] + ": -1e999"
        (folder / "mix.json").write_text(text.replace(field, changed, 1))
        assert "is not JSON: -1e999 is not a finite number." in refused(CheckpointError, folder)


def test_saved_mix_is_recognised_by_content(folder: Path) -> None:
    """A saved mix is recognised by its content, not by its name."""
    assert record.is_ours(folder / "mix.json") and not record.is_ours(folder / "mix.safetensors")
