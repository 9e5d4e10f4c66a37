"""Converts text to tokens with a model's own tokenizer, or as bytes."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.untrusted.files import check_regular, local_path

__all__ = ["BYTES", "read_text", "split_windows", "tokenized"]

BYTES = "bytes"
# The file that the library `tokenizers` reads; transformers reads all of them.
_FAST = "tokenizer.json"
_SLOW = ("tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def read_text(text: Path) -> bytes:
    """Reads a text file.

    Raises:
        CheckpointError: If it can't be read.
    """
    try:
        text = local_path(text, "text")
        check_regular(text)
        return text.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the text {text} can't be read: {error.strerror}. Expected a plain text file."
        ) from error


def tokenized(
    data: bytes, text: Path, base: Path, tokenizer: str | None, vocabulary: int
) -> np.ndarray:
    """Converts a text to tokens.

    Args:
        data: The file's contents.
        text: The file's name, for messages.
        base: The model's folder, which holds its tokenizer.
        tokenizer: Another folder or tokenizer.json, or "bytes"; None for the model's own, or for
            bytes if it has none and a vocabulary of 256 tokens.
        vocabulary: The number of tokens of the model.

    Returns:
        The tokens (n,), int32.

    Raises:
        CheckpointError: If the text is not UTF-8, or the model lacks a token.
        UnsupportedError: If there is no tokenizer, or the package that reads it is not installed.
    """
    path = base if tokenizer is None else local_path(tokenizer, "tokenizer")
    fast = path if path.is_file() else path / _FAST
    if tokenizer == BYTES:
        tokens = np.frombuffer(data, np.uint8)
    elif fast.is_file():
        tokens = np.asarray(_fast(fast, _decoded(data, text)))
    elif any((path / name).exists() for name in _SLOW):
        tokens = np.asarray(_slow(path, _decoded(data, text)))
    elif tokenizer is None and vocabulary == 256:
        tokens = np.frombuffer(data, np.uint8)
    else:
        raise UnsupportedError(
            f"{path} has no tokenizer, expected one of {_FAST}, {', '.join(_SLOW)}. Pass the "
            "folder of a tokenizer with --tokenizer, or --tokenizer bytes if its tokens are bytes."
        )
    if tokens.size and int(tokens.max()) >= vocabulary:
        raise CheckpointError(
            f"{text} has the token {int(tokens.max())}, but the model in {base} has {vocabulary} "
            "tokens. Use the model's own tokenizer: --tokenizer FOLDER."
        )
    return tokens.astype(np.int32)


def _decoded(data: bytes, text: Path) -> str:
    """Decodes a text file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"the text {text} is not UTF-8: {error}. Convert it to UTF-8."
        ) from error


def _fast(file: Path, text: str) -> list[int]:
    """Tokenizes with the library `tokenizers`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UnsupportedError(_missing(file, "tokenizers")) from error
    return Tokenizer.from_file(str(file)).encode(text).ids


def _slow(folder: Path, text: str) -> list[int]:
    """Tokenizes with transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UnsupportedError(_missing(folder, "transformers")) from error
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer(text)["input_ids"]


def _missing(path: Path, package: str) -> str:
    return (
        f"the tokenizer {path} needs the package {package}, which is not installed. Install it: "
        f"pip install {package}."
    )


def split_windows(tokens: np.ndarray, length: int, text: Path) -> tuple[np.ndarray, np.ndarray]:
    """Splits a text into windows to learn from, and every tenth (at least one) held out.

    Args:
        tokens: The text (n,).
        length: The number of tokens of a window.
        text: The file's name, for messages.

    Returns:
        The windows to learn from and the held-out windows, each (windows, length).

    Raises:
        CheckpointError: If the text has fewer than two windows.

    Example:
        >>> train, held_out = split_windows(np.arange(8), 2, Path("text"))
        >>> train.tolist(), held_out.tolist()
        ([[0, 1], [2, 3], [4, 5]], [[6, 7]])
    """
    count = tokens.size // length
    if count < 2:
        raise CheckpointError(
            f"{text} has {tokens.size:,} tokens, expected at least two windows of {length}. Use a "
            "longer text, or a smaller --length."
        )
    windows = tokens[: count * length].reshape(count, length)
    is_held_out = np.arange(count) % 10 == min(9, count - 1)
    return windows[~is_held_out], windows[is_held_out]
