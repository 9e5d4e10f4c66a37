"""Texts as tokens, with any tokenizer library, and windows of them."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.cli.tokens import read_text, split_windows, tokenized
from jaxmix.errors import CheckpointError, UnsupportedError

from ...messages import full_text


def test_every_tenth_window_is_held_out() -> None:
    """Every tenth window is held out, at least one; no window is in both sets."""
    for count, held in ((2, [1]), (5, [4]), (10, [9]), (25, [9, 19])):
        seen, kept = split_windows(np.arange(3 * count + 2), 3, Path("x"))
        assert (kept[:, 0] // 3).tolist() == held
        assert sorted([*seen[:, 0], *kept[:, 0]]) == [3 * i for i in range(count)]
    with pytest.raises(CheckpointError) as caught:
        split_windows(np.arange(7), 4, Path("x"))
    assert str(caught.value) == (
        "x has 7 tokens, expected at least two windows of 4. Use a longer text, or a smaller "
        "--length."
    )


def test_bytes_are_the_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    """Without a tokenizer, or by option, bytes are the tokens of a model of 256 tokens."""
    text = tmp_path / "x"
    text.write_bytes(b"\x00\xff")
    assert tokenized(read_text(text), text, tmp_path, None, 256).tolist() == [0, 255]
    assert tokenized(read_text(text), text, tmp_path, "bytes", 300).tolist() == [0, 255]
    with pytest.raises(UnsupportedError) as caught:
        tokenized(read_text(text), text, tmp_path, None, 300)
    assert str(caught.value) == (
        f"{tmp_path} has no tokenizer, expected one of tokenizer.json, tokenizer_config.json, "
        "tokenizer.model, vocab.json, spiece.model. Pass the folder of a tokenizer with "
        "--tokenizer, or --tokenizer bytes if its tokens are bytes."
    )
    with pytest.raises(CheckpointError) as caught:
        tokenized(read_text(text), text, tmp_path, "bytes", 200)
    assert str(caught.value) == (
        f"{text} has the token 255, but the model in {tmp_path} has 200 tokens. Use the model's "
        "own tokenizer: --tokenizer FOLDER."
    )


def test_each_library_reads_its_tokenizer_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each library reads its own files; a missing library is named in the error."""

    class Words:
        """A tokenizer whose tokens are the words' lengths."""

        from_file = from_pretrained = classmethod(lambda cls, *_, **how: cls())

        def encode(self, text: str) -> Any:
            """Encodes like `tokenizers`."""
            return SimpleNamespace(ids=[len(part) for part in text.split()])

        def __call__(self, text: str) -> Any:
            return {"input_ids": self.encode(text).ids[::-1]}

    text = tmp_path / "text"
    text.write_text("three is ä")
    for library, name, kind, expected in (
        ("tokenizers", "tokenizer.json", "Tokenizer", [5, 2, 1]),
        ("transformers", "tokenizer.model", "AutoTokenizer", [1, 2, 5]),
    ):
        folder = tmp_path / library
        folder.mkdir()
        (folder / name).write_text("{}")
        module = ModuleType(library)
        setattr(module, kind, Words)
        monkeypatch.setitem(sys.modules, library, module)
        assert tokenized(read_text(text), text, folder, None, 9).tolist() == expected
        assert tokenized(read_text(text), text, tmp_path, str(folder), 9).tolist() == expected
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UnsupportedError) as caught:
            tokenized(read_text(text), text, folder, None, 9)
        where = folder / name if library == "tokenizers" else folder
        assert str(caught.value) == (
            f"the tokenizer {where} needs the package {library}, which is not installed. Install "
            f"it: pip install {library}."
        )
    text.write_bytes(b"\xff")
    message = (
        f"the text {text} is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte. Convert it to UTF-8."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        tokenized(read_text(text), text, tmp_path / "tokenizers", None, 9)
