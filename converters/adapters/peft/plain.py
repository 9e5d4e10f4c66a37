"""Converts keys that training loops save to those that ``save_pretrained`` writes.

The keys of a training model's state dict contain more than those of PEFT's files: the names of
wrappers (`placement.names`), the adapter's name (``lora_A.default.weight``), and the parts of
PEFT's own wrappers around fully trained modules (``modules_to_save.default.weight``) and around
embeddings with trained tokens (``token_adapter.base_layer.weight``).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.errors import CheckpointError, listing
from jaxmix.placement.names import unwrapped, without_wrappers

__all__ = ["PlainKey", "any_of", "plain_keys", "plain_values"]

_PREFIX = "base_model.model."
# Not names of adapters: other types have these at the same position.
_NO_NAMES = ("weight", "bias")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<rest>.+)")
_ORIGINAL = re.compile(r"(?P<module>.+)\.original_module\.(?P<rest>.+)")
_TOKENS = re.compile(
    r"(?P<module>.+)\.token_adapter\.(?P<part>trainable_tokens_delta|trainable_tokens_original"
    r"|base_layer\.\w+)(?:\.[^.]+)?"
)


class PlainKey(NamedTuple):
    """A key without its prefix, wrappers and the adapter's name.

    Args:
        path: ``<module>.<parameter>``.
        is_saved: Whether the key itself states that its module is fully trained.
    """

    path: str
    is_saved: bool = False


def plain_keys(
    keys: Collection[str], config: Config, path: Path, modules: Collection[str] = ()
) -> dict[str, PlainKey]:
    """Maps a file's keys to those that PEFT would have written.

    Args:
        keys: The file's keys.
        config: The adapter's config.
        path: The file, for messages.
        modules: The names of the base's modules, if known. In a key that contains one of them,
            parts that look like a wrapper's name are kept.

    Returns:
        ``{key: plain key}``. Copies that PEFT itself does not read are left out.

    Raises:
        CheckpointError: If the file contains several adapters.
    """
    known = set(map(without_wrappers, modules))
    paths: dict[str, str] = {}
    names: dict[str, str] = {}
    for key, short in unwrapped(keys, is_peft=True).items():
        literal = without_wrappers(key).removeprefix(_PREFIX)
        paths[key] = literal if short != literal and _is_below(known, literal) else short
        if split := _split_name(paths[key], config.family):
            paths[key], name = split
            names.setdefault(name, key)
    if len(names) > 1:
        lines = (f"{name!r}, as in {key}" for name, key in names.items())
        raise CheckpointError(
            f"{path} contains several adapters, expected one:{listing(lines)}\nSave each in its "
            "own folder with save_pretrained, or remove the keys of the others."
        )
    return dict(_read_keys(paths, names))


def plain_values(config: Config) -> dict[str, Any]:
    """Removes the names of wrappers from the module names in a config's values.

    Args:
        config: The adapter's config.

    Returns:
        All of its values.
    """
    return {field: _plain_value(field, value) for field, value in config.values.items()}


def _plain_value(field: str, value: Any) -> Any:
    """Removes wrappers from a list of names, or the keys of an object; keeps any other value."""
    if isinstance(value, str) and field in ("target_modules", "exclude_modules"):
        return _plain_name(value)
    if isinstance(value, dict):
        names = {key: _plain_name(key) for key in value}
        # Names that would become equal are kept: no module has them.
        unique = {name for name, count in Counter(names.values()).items() if count == 1}
        return {names[key] if names[key] in unique else key: item for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_name(item) if isinstance(item, str) else item for item in value]
    return value


def _plain_name(text: str) -> str:
    """Removes wrappers from a name or regular expression; AdaLoRA's masks have the whole key."""
    if match := re.fullmatch(r"(.+\.lora_E)(?:\.[^.]+)?", text):
        return next(iter(unwrapped([match[1]], is_peft=True).values()))
    return without_wrappers(text)


def _is_below(modules: Collection[str], path: str) -> bool:
    """Whether a path is in one of these modules."""
    parts = path.split(".") if modules else ()
    return any(".".join(parts[:n]) in modules for n in range(1, len(parts)))


def _split_name(path: str, family: str) -> tuple[str, str] | None:
    """Splits the adapter's name off a path; None if it has none."""
    peft_type = PEFT_TYPES[family]
    names = (*peft_type.parameters, *peft_type.shared)
    if re.fullmatch(rf"(?:.+\.)?{any_of(names).pattern}", path):
        return None
    for pattern in _with_name(names):
        match = pattern.fullmatch(path)
        if match and match["name"] not in _NO_NAMES:
            return match["before"] + (match["after"] or ""), match["name"]
    return None


@cache
def _with_name(parameters: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Compiles expressions for parameters that contain the adapter's name."""
    patterns = []
    for parameter in parameters:
        stem, _, rest = parameter.partition(".")
        after = rf"(?P<after>\.{any_of((rest,)).pattern})" if rest else r"(?P<after>)"
        if "#" in rest:  # one tensor per kind of module, in a dictionary of the adapter
            stem, after = rf"{stem}\.[^.]+", r"(?P<after>)"
        if stem == "lora_magnitude_vector":  # a module with a weight during training
            after += r"(?:\.weight)?"
        patterns.append(re.compile(rf"(?P<before>(?:.+\.)?{stem})\.(?P<name>[^.]+){after}"))
    return patterns


@cache
def any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """Compiles an expression that matches any of the names; ``*`` is a number, ``#`` a word."""
    texts = (re.escape(name).replace(r"\*", r"\d+").replace(r"\#", r"[^.]+") for name in names)
    return re.compile(rf"({'|'.join(texts)})")


def _read_keys(paths: Mapping[str, str], names: Collection[str]) -> Iterator[tuple[str, PlainKey]]:
    """Yields the keys that PEFT reads, without the names of its wrappers around whole modules."""
    all_paths = set(paths.values())
    saved_modules = {match["module"] for path in all_paths if (match := _SAVED.fullmatch(path))}
    for key, path in paths.items():
        if match := _SAVED.fullmatch(path):
            plain = f"{match['module']}.{_without_name(match, names, all_paths)}"
            # With new tokens PEFT writes an embedding under both keys and reads the plain one.
            if plain not in all_paths:
                yield key, PlainKey(plain, is_saved=True)
        elif match := _ORIGINAL.fullmatch(path):
            if (
                match["module"] not in saved_modules
                and f"{match['module']}.{match['rest']}" not in all_paths
            ):
                yield key, PlainKey(path)
        elif match := _TOKENS.fullmatch(path):
            module, part = match["module"], match["part"]
            if part == "trainable_tokens_delta":
                yield key, PlainKey(f"{module}.token_adapter.{part}")
            elif part != "trainable_tokens_original":
                yield key, PlainKey(f"{module}.{part}")
        else:
            yield key, PlainKey(path)


def _without_name(match: re.Match[str], names: Collection[str], all_paths: Collection[str]) -> str:
    """The part after ``modules_to_save``, without the adapter's name.

    During training the name comes first. Another tool may have removed it: then the first word is
    not the name in the keys of the factors, and the original module has the same parts.
    """
    first, _, rest = match["rest"].partition(".")
    if not rest or first in names or first == "default":
        return rest or first
    is_part = bool(names) or f"{match['module']}.original_module.{match['rest']}" in all_paths
    return match["rest"] if is_part else rest
