"""Reads and checks mix.json, and writes it in a readable form."""

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.mixfile.coding import short_repr
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["FORMAT", "MIX_FILE", "TENSORS_FILE", "VERSION", "is_ours", "parse", "text"]

MIX_FILE = "mix.json"
TENSORS_FILE = "mix.safetensors"
FORMAT = "jaxmix"
VERSION = 1

_HASH = re.compile(r"[0-9a-f]{64}")
_HEAD = {"format", "version", "kind", "parts"}
_STORED = {"name", "strength", "source", "sha256", "updates"}
_LOCATION = ("revision", "subfolder", "filename", "format", "ignore")
_SOURCE = {"source", "name", "strength", "options", "sha256", *_LOCATION}


def text(head: Mapping[str, Any]) -> str:
    """Formats the file with one line per site, and one per field otherwise.

    Args:
        head: The object, with the updates of its parts.

    Returns:
        The JSON document.
    """
    parts = []
    for part in head["parts"]:
        sites = {site: _line(update) for site, update in part["updates"].items()}
        fields = {key: _line(value) for key, value in part.items()}
        parts.append(_block({**fields, "updates": _block(sites, 6)}, 4))
    listed = ",\n    ".join(parts)
    fields = {key: _line(value) for key, value in head.items()}
    return _block({**fields, "parts": f"[\n    {listed}\n  ]" if parts else "[]"}, 0) + "\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _block(fields: Mapping[str, str], depth: int) -> str:
    """Formats an object with one line per field, from values that are already JSON."""
    if not fields:
        return "{}"
    inner, outer = " " * (depth + 2), " " * depth
    lines = ",\n".join(f"{inner}{_line(key)}: {value}" for key, value in fields.items())
    return f"{{\n{lines}\n{outer}}}"


# ------------------------------------------------------------------------------------- reading


def is_ours(path: Path) -> bool:
    """Returns whether a file states that it is a mix of jaxmix, of any version.

    Args:
        path: The file.

    Returns:
        True if so; False if it can't be read.
    """
    try:
        return _parse(path).get("format") == FORMAT
    except CheckpointError:
        return False


def parse(path: Path) -> dict[str, Any]:
    """Reads mix.json, or a recipe under another name.

    Args:
        path: The file.

    Returns:
        The object, with ``kind`` and ``parts``, whose fields have valid types. The updates of a
        part are not checked.

    Raises:
        CheckpointError: If it is damaged or not a mix of jaxmix, or has unknown fields or fields of
            the wrong type; all are listed.
        UnsupportedError: If its version is newer.
    """
    head = _parse(path)
    if head.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a mix of jaxmix: its format is {short_repr(head.get('format'))}, "
            f"expected {FORMAT!r}. Pass a folder that jaxmix wrote, or a recipe."
        )
    version = head.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"{path}: version is {short_repr(version)}, expected an integer up to {VERSION}. Save "
            "the mix again."
        )
    if version > VERSION:
        raise UnsupportedError(
            f"{path} has version {version}, and this jaxmix reads versions up to {VERSION}. Update "
            "jaxmix, or save the mix with this version."
        )
    wrong = [f"{short_repr(key)} is not a field of a mix" for key in head if key not in _HEAD]
    if head.setdefault("kind", "mix") not in ("mix", "adapter"):
        wrong.append(f"kind is {short_repr(head['kind'])}, expected 'mix' or 'adapter'")
    parts = head.get("parts")
    if isinstance(parts, list):
        wrong += [
            f"part {i}: {problem}" for i, part in enumerate(parts, 1) for problem in _wrong(part)
        ]
    else:
        wrong.append(f"parts is {short_repr(parts)}, expected a list")
    if wrong:
        raise CheckpointError(
            f"{path}: not a valid mix:{listing(wrong)}\nExpected the file that jaxmix writes, "
            'or a recipe: {"format": "jaxmix", "version": 1, "parts": '
            '[{"source": "…", "strength": 1}]}.'
        )
    return head


def _wrong(part: Any) -> list[str]:
    """Describes the invalid fields of a part."""
    if not isinstance(part, dict):
        return [f"it is {short_repr(part)}, expected an object"]
    is_stored = "updates" in part
    known, needed = (_STORED | {"metadata"}, _STORED) if is_stored else (_SOURCE, {"source"})
    wrong = [f"{short_repr(key)} is not a field of a part" for key in part if key not in known]
    wrong += [f"{key} is missing" for key in sorted(needed) if key not in part]
    for key in ("name", "source", *_LOCATION):
        may_be_empty = is_stored or key not in ("source", "name")
        if key in part and not (isinstance(part[key], str) and (part[key] or may_be_empty)):
            wrong.append(f"{key} is {short_repr(part[key])}, expected a string")
    if "strength" in part and not _is_strength(part["strength"], is_stored):
        wrong.append(f"strength is {short_repr(part['strength'])}, expected a finite number")
    if not isinstance(part.get("metadata", {}), dict):
        wrong.append(f"metadata is {short_repr(part['metadata'])}, expected an object")
    options = part.get("options", {})
    if not isinstance(options, dict) or not all(map(_is_option, options, options.values())):
        wrong.append(
            f"options is {short_repr(options)}, expected an object of numbers, strings, true and "
            f"false; pass a base with {option('base', ..., of='jaxmix.load(…')}"
        )
    sha256 = part.get("sha256", "0" * 64)
    if not (isinstance(sha256, str) and _HASH.fullmatch(sha256)):
        wrong.append(f"sha256 is {short_repr(sha256)}, expected 64 hexadecimal digits")
    return wrong


def _is_option(key: str, value: Any) -> bool:
    """Whether it may be passed to a reader; a base may not, since a file can't contain it."""
    return key != "base" and isinstance(value, bool | int | float | str)


def _is_strength(value: Any, is_stored: bool) -> bool:
    """Whether it is a finite number, or a tensor with one."""
    if isinstance(value, dict):
        return is_stored and set(value) == {"tensor"} and isinstance(value["tensor"], str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not `isfinite`, which overflows for an integer larger than all floats.
    return is_number and abs(value) <= sys.float_info.max


def _parse(path: Path) -> dict[str, Any]:
    """Parses the file."""
    try:
        data = parse_json(
            read_small(path),
            object_pairs_hook=_unique,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror}. Expected a file that you may read."
        ) from error
    except CheckpointError:
        raise
    except ValueError as error:  # not text, not JSON, or too large
        raise CheckpointError(
            f"{path} is not JSON: {error}. Expected the file that jaxmix writes; copy, "
            "download or save it again."
        ) from error
    if isinstance(data, dict):
        return data
    raise CheckpointError(f"{path} contains a {type(data).__name__}, expected a JSON object.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object, and refuses duplicate fields, of which JSON would keep the last."""
    data = dict(pairs)
    if len(data) < len(pairs):
        duplicate = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"{short_repr(duplicate)} occurs twice in one object")
    return data


def _finite(text: str) -> float:
    """Parses a float; refuses NaN, and numbers that are too large, which json would accept."""
    number = float(text)
    if math.isfinite(number):
        return number
    raise ValueError(f"{text} is not a finite number")
