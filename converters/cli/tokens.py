"""Text as tokens: by a model's own tokenizer, or as bytes."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.untrusted.files import check_regular, local_path

__all__ = ["BYTES", "tokens_of", "windows_of"]

BYTES = "bytes"
# What the library `tokenizers` reads by itself; transformers reads all of them.
_FAST = "tokenizer.json"
_SLOW = ("tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def tokens_of(text: Path, base: Path, tokenizer: str | None, vocabulary: int) -> np.ndarray:
    """A text file as tokens.

    Args:
        text: the file.
        base: the model's folder, in which its tokenizer lies.
        tokenizer: another folder or tokenizer.json, or "bytes"; None for the model's own, and bytes
            where it has none and 256 tokens.
        vocabulary: how many tokens the model knows.

    Returns:
        The tokens (n,), int32.

    Raises:
        CheckpointError: if a file can't be read, or a token is none of the model's.
        UnsupportedError: if there is no tokenizer, or what reads it is not installed.
    """
    try:
        text = local_path(text, "text")
        check_regular(text)
        data = text.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the text {text} can't be read: {error.strerror}. Expected a file of plain text."
        ) from error
    place = base if tokenizer is None else local_path(tokenizer, "tokenizer")
    fast = place if place.is_file() else place / _FAST
    if tokenizer == BYTES:
        found = np.frombuffer(data, np.uint8)
    elif fast.is_file():
        found = np.asarray(_fast(fast, _decoded(data, text)))
    elif any((place / name).exists() for name in _SLOW):
        found = np.asarray(_slow(place, _decoded(data, text)))
    elif tokenizer is None and vocabulary == 256:
        found = np.frombuffer(data, np.uint8)
    else:
        raise UnsupportedError(
            f"{place} has no tokenizer, expected one of {_FAST}, {', '.join(_SLOW)} in it. Give "
            "the folder of one with --tokenizer, or say --tokenizer bytes if bytes are its tokens."
        )
    if found.size and int(found.max()) >= vocabulary:
        raise CheckpointError(
            f"{text} has the token {int(found.max())}, and the model in {base} knows {vocabulary}. "
            "Give its own tokenizer: --tokenizer FOLDER."
        )
    return found.astype(np.int32)


def _decoded(data: bytes, text: Path) -> str:
    """Bytes as text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the text {text} is not UTF-8: {error}. Convert it.") from error


def _fast(file: Path, text: str) -> list[int]:
    """By the library `tokenizers`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnsupportedError(_missing(file, "tokenizers")) from error
    return Tokenizer.from_file(str(file)).encode(text).ids


def _slow(folder: Path, text: str) -> list[int]:
    """By transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UnsupportedError(_missing(folder, "transformers")) from error
    made: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return made(text)["input_ids"]


def _missing(place: Path, package: str) -> str:
    return (
        f"the tokenizer {place} is read by {package}, which is not installed here. Install it: "
        f"pip install {package}."
    )


def windows_of(tokens: np.ndarray, length: int, text: Path) -> tuple[np.ndarray, np.ndarray]:
    """Windows to learn from, and every tenth, but one at least, to be measured on.

    Args:
        tokens: the text (n,).
        length: the tokens of a window.
        text: what it is called.

    Returns:
        Both, (windows, length).

    Raises:
        CheckpointError: if the text has not two windows.

    Example:
        >>> seen, held = windows_of(np.arange(8), 2, Path("text"))
        >>> seen.tolist(), held.tolist()
        ([[0, 1], [2, 3], [4, 5]], [[6, 7]])
    """
    count = tokens.size // length
    if count < 2:
        raise CheckpointError(
            f"{text} has {tokens.size:,} tokens, expected at least two windows of {length}. Give a "
            "longer text, or a smaller --length."
        )
    windows = tokens[: count * length].reshape(count, length)
    held = np.arange(count) % 10 == min(9, count - 1)
    return windows[~held], windows[held]
