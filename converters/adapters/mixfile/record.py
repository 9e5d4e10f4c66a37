"""mix.json: read and looked at, and written so that people can read it."""

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.mixfile.coding import shown
from jaxmix.errors import CheckpointError, UnsupportedError, listing
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["FORMAT", "MIX_FILE", "TENSORS_FILE", "VERSION", "is_ours", "parse", "text"]

MIX_FILE = "mix.json"
TENSORS_FILE = "mix.safetensors"
FORMAT = "jaxmix"
VERSION = 1

_HASH = re.compile(r"[0-9a-f]{64}")
_HEAD = {"format", "version", "kind", "parts"}
_STORED = {"name", "strength", "source", "sha256", "updates"}
_PLACE = ("revision", "subfolder", "filename", "format", "ignore")
_TOLD = {"source", "name", "strength", "options", "sha256", *_PLACE}


def text(head: Mapping[str, Any]) -> str:
    """The file's text: a line a site, all else a line a field.

    Args:
        head: the object, its parts with their updates.

    Returns:
        JSON.
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
    """An object with a line a field, of values that are JSON already."""
    if not fields:
        return "{}"
    inner, outer = " " * (depth + 2), " " * depth
    lines = ",\n".join(f"{inner}{_line(key)}: {value}" for key, value in fields.items())
    return f"{{\n{lines}\n{outer}}}"


# ------------------------------------------------------------------------------------- back


def is_ours(path: Path) -> bool:
    """Whether a file says that it is a mix of jaxmix, of whatever version.

    Args:
        path: the file.

    Returns:
        Whether it does; False if it can't be read.
    """
    try:
        return _parse(path).get("format") == FORMAT
    except CheckpointError:
        return False


def parse(path: Path) -> dict[str, Any]:
    """Reads mix.json, or a recipe under another name.

    Args:
        path: the file.

    Returns:
        The object, with ``kind`` and ``parts``, each part of them with fields of the right kinds.
        What the updates of a part are is not looked at.

    Raises:
        CheckpointError: if it is damaged, or no mix of jaxmix, or has fields that mean nothing or
            are of the wrong kind; all such listed together.
        UnsupportedError: if it is of a newer version.
    """
    head = _parse(path)
    if head.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no mix of jaxmix: its format is {shown(head.get('format'))}, expected "
            f"{FORMAT!r}. Give a folder that jaxmix.save wrote, or a recipe."
        )
    version = head.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"{path}: version is {shown(version)}, expected a whole number up to {VERSION}. Save "
            "the mix again."
        )
    if version > VERSION:
        raise UnsupportedError(
            f"{path} is of version {version}, and this jaxmix reads up to {VERSION}. Update "
            "jaxmix, or save the mix with this one."
        )
    wrong = [f"{shown(key)} is no field of it" for key in head if key not in _HEAD]
    if head.setdefault("kind", "mix") not in ("mix", "adapter"):
        wrong.append(f"kind is {shown(head['kind'])}, expected 'mix' or 'adapter'")
    parts = head.get("parts")
    if isinstance(parts, list):
        wrong += [f"part {i}: {said}" for i, one in enumerate(parts, 1) for said in _wrong(one)]
    else:
        wrong.append(f"parts is {shown(parts)}, expected a list")
    if wrong:
        raise CheckpointError(
            f"{path}: what makes no mix:{listing(wrong)}\nExpected what jaxmix.save writes, or a "
            'recipe: {"format": "jaxmix", "version": 1, "parts": [{"source": "…", "strength": 1}]}.'
        )
    return head


def _wrong(part: Any) -> list[str]:
    """What is wrong with a part's fields, in words."""
    if not isinstance(part, dict):
        return [f"it is {shown(part)}, expected an object"]
    is_stored = "updates" in part
    known, needed = (_STORED | {"metadata"}, _STORED) if is_stored else (_TOLD, {"source"})
    wrong = [f"{shown(key)} is no field of it" for key in part if key not in known]
    wrong += [f"{key} is missing" for key in sorted(needed) if key not in part]
    for key in ("name", "source", *_PLACE):
        may_be_empty = is_stored or key not in ("source", "name")
        if key in part and not (isinstance(part[key], str) and (part[key] or may_be_empty)):
            wrong.append(f"{key} is {shown(part[key])}, expected a text")
    if "strength" in part and not _is_strength(part["strength"], is_stored):
        wrong.append(f"strength is {shown(part['strength'])}, expected a finite number")
    if not isinstance(part.get("metadata", {}), dict):
        wrong.append(f"metadata is {shown(part['metadata'])}, expected an object")
    options = part.get("options", {})
    if not isinstance(options, dict) or not all(map(_is_option, options, options.values())):
        wrong.append(
            f"options is {shown(options)}, expected an object of numbers, texts, true and false; "
            "a base is given to jaxmix.load(…, base=…)"
        )
    told = part.get("sha256", "0" * 64)
    if not (isinstance(told, str) and _HASH.fullmatch(told)):
        wrong.append(f"sha256 is {shown(told)}, expected 64 hexadecimal digits")
    return wrong


def _is_option(key: str, value: Any) -> bool:
    """Whether a reader may be given it: no model, which a file can't hold but as a path."""
    return key != "base" and isinstance(value, bool | int | float | str)


def _is_strength(value: Any, is_stored: bool) -> bool:
    """Whether it is a finite number, or the tensor that holds one."""
    if isinstance(value, dict):
        return is_stored and set(value) == {"tensor"} and isinstance(value["tensor"], str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A comparison and no `isfinite`, which overflows for an integer beyond all floats.
    return is_number and abs(value) <= sys.float_info.max


def _parse(path: Path) -> dict[str, Any]:
    """The file as a dict."""
    try:
        data = parse_json(
            read_small(path),
            object_pairs_hook=_once,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror}. Expected a file that you may read."
        ) from error
    except CheckpointError:
        raise
    except ValueError as error:  # no text, no JSON, or beyond its limits
        raise CheckpointError(
            f"{path} is not JSON: {error}. Expected what jaxmix.save writes; copy, download or "
            "save it again."
        ) from error
    if isinstance(data, dict):
        return data
    raise CheckpointError(f"{path} holds a {type(data).__name__}, expected a JSON object.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object none of whose fields is there twice, of which JSON would keep the last."""
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"{shown(twice)} is there twice in one object")
    return data


def _finite(text: str) -> float:
    """A float; JSON itself would take NaN, and read one that is too large as infinite."""
    number = float(text)
    if math.isfinite(number):
        return number
    raise ValueError(f"{text} is no finite number")
