"""Errors of the command line name the wrong input, with remedies in its own options."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

import jaxmix
from jaxmix.converters.cli.console import print_lines
from jaxmix.converters.files import hub_connection, path_suggestions
from jaxmix.converters.files.terminal import escape, printable
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import Adapters
from .running import Captured, main


@pytest.fixture
def folder(base: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, and adapters under several names."""
    place = tmp_path / "folder"
    shutil.copytree(base, place / "base")
    for name in ("lora", "run:2", "my-adapter/final"):
        shutil.copytree(adapters["lora"], place / name)
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "lora:abc",
            "lora:abc: 'abc' is not a strength, expected ADAPTER:STRENGTH with a number such ",
        ),
        (
            "lora:0,5",
            "'0,5' is not a strength, expected ADAPTER:STRENGTH with a number such as lora:0.5",
        ),
        (
            "lora:−2",
            "'−2' is not a strength, expected ADAPTER:STRENGTH with a number such as lora:-2.",
        ),
        ("lora:", "the strength after the colon is missing"),
        ("lora:nan", "'nan' is not a strength"),
        ("lora=0.5", "lora=0.5: a strength must follow a colon, expected ADAPTER:STRENGTH with a "),
        ("lora x 0,7", "a number such as lora:0.7."),
        ("lora@2", "such as lora:2."),
        ("lora:0.5:0.6", "lora:0.5:0.6 has two strengths"),
        ("owner/name=0.5", "such as owner/name:0.5."),
        ("owner/name:abc", "'abc' is not a strength"),
        (
            "run:2",
            "run:2 is ambiguous: it is an existing path, and could mean run at strength 2. "
            "Write run:2:1 ",
        ),
        ("run:2", "Write run:2:1 for the path, or run:2.0 for the strength."),
    ],
)
def test_strengths(folder: Path, arg: str, message: str, capsys: Captured) -> None:
    assert main("merge", "base", "-a", arg, "-o", "out") == 2
    assert message in capsys.readouterr().err
    assert main("convert", arg, "--to", "recipe", "-o", "x.json") == 2


def test_valid_strengths_are_accepted(folder: Path) -> None:
    for arg in ("lora:.5", "run:2:1", "my-adapter/final:-1"):
        assert main("inspect", arg) == 0


def test_swapped_base_and_adapter_are_reported(folder: Path, capsys: Captured) -> None:
    assert main("merge", "lora", "-a", "base", "-o", "out") == 2
    message = capsys.readouterr().err
    assert (
        "lora is an adapter, and base is a model. The model comes first: jaxmix merge base"
        in message
    )
    assert main("merge", "base", "-a", "base", "-o", "out") == 1
    assert "base is a model, not an adapter. Use the folder" in capsys.readouterr().err
    assert main("merge", "lora", "-a", "lora", "-o", "out") == 1
    assert "lora is an adapter (adapter_config.json), not a model." in capsys.readouterr().err


def test_gguf(folder: Path, capsys: Captured) -> None:
    (folder / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    shutil.copytree(folder / "lora", folder / "quantized")
    for file in (folder / "quantized").iterdir():
        file.unlink()
    (folder / "quantized" / "y.gguf").write_bytes(b"GGUF")
    for name, description in (("x.gguf", "is a GGUF file"), ("quantized", "holds GGUF files")):
        assert main("merge", "base", "-a", name, "-o", "out") == 1
        message = capsys.readouterr().err
        assert (
            f"{name} {description}, which jaxmix does not read. "
            "Use the original adapter in safetensors" in message
        )
        assert main("merge", name, "-a", "lora", "-o", "out") == 1
        assert (
            f"{name} {description}, which jaxmix does not read. Use the original Hugging"
            in capsys.readouterr().err
        )


def test_truncated_files_are_reported(folder: Path, capsys: Captured) -> None:
    for place in (
        folder / "lora" / "adapter_model.safetensors",
        folder / "base" / "model.safetensors",
    ):
        data = place.read_bytes()
        place.write_bytes(data[:-9])
        assert main("merge", "base", "-a", "lora", "-o", "out") == 1
        size = len(data)
        message = capsys.readouterr().err
        assert (
            f"it ends after {size - 9:,} of {size:,} bytes. Was the download interrupt" in message
        )
        place.write_bytes(data)


def test_errors_name_the_command_lines_options(folder: Path, capsys: Captured) -> None:
    assert main("inspect", "my-adapter") == 1
    message = capsys.readouterr().err
    assert "There is one in final: pass --subfolder final." in message
    assert main("inspect", "my-adapter", "--subfolder", "final") == 0
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "my-adapter has no adapter_config.json; found final. Pass "
            "the folder that PEFT's save_pretrained wrote. There is one "
            "in final: pass subfolder='final'."
        ),
    ):
        jaxmix.load("my-adapter")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The requests to a hub that does not answer."""
    made: list[bool] = []

    def unreachable() -> bool:
        made.append(True)
        return False

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_connection, "is_reachable", unreachable)
    return made


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("inspect", "my-adaptre/final:0.5"),
            "'my-adaptre/final' does not exist. Did you mean my-adapter/final? If it is on the "
            "hub, pass --revision main.\nTry: jaxmix inspect my-adapter/final:0.5",
        ),
        (
            ("inspect", "my-adapter/finale", "--json"),
            "'my-adapter/finale' does not exist. Did you mean my-adapter/final? If it is on the "
            "hub, pass --revision main.\nTry: jaxmix inspect my-adapter/final --json",
        ),
        (
            ("inspect", "./lorra"),
            "'./lorra' does not exist. Did you mean lora?\nTry: jaxmix inspect lora",
        ),
        (
            ("merge", "bsae", "-a", "lora", "-o", "out"),
            "'bsae' does not exist. Did you mean base?\nTry: jaxmix merge base -a lora -o out",
        ),
        (
            ("merge", "./my-adapter/finale", "-a", "./lorra", "-o", "out"),  # the base comes first
            "'./my-adapter/finale' does not exist. Did you mean my-adapter/final?\nTry: jaxmix "
            "merge my-adapter/final -a ./lorra -o out",
        ),
        (
            ("merge", "my-adapter/finale", "-a", "lora", "-o", "out"),
            "'my-adapter/finale' does not exist. Did you mean my-adapter/final? If it is on the "
            "hub, write my-adapter/finale@main.\nTry: jaxmix merge my-adapter/final -a lora -o out",
        ),
        (
            ("merge", "./modle", "-a", "lora", "-o", "out"),
            "./modle does not exist, expected a Hugging Face folder with safetensors, or the id of "
            "a repository on the hub, 'owner/name'.",
        ),
        (
            ("inspect", "my-adapter/x.safetensors"),
            "'my-adapter/x.safetensors' does not exist. The folder my-adapter has no "
            "x.safetensors.\nExpected a folder with adapter_config.json and "
            "adapter_model.safetensors, or the id of a repository on the hub, 'owner/name'.",
        ),
    ],
)
def test_mistyped_path_is_reported_at_once(
    folder: Path, args: tuple[str, ...], message: str, capsys: Captured, requests: list[bool]
) -> None:
    """The error names the similar path and the command to type; the hub is not asked."""
    assert main(*args) == 1
    captured = capsys.readouterr()
    if "--json" in args:
        expected = {"error": message, "kind": "CheckpointError"}
        assert (json.loads(captured.out), captured.err) == (expected, "")
    else:
        assert captured.err == f"error: {message}\n"
    assert not requests


@pytest.mark.parametrize(
    ("args", "place"),
    [
        (("my-adaptre/final", "--revision", "main"), "my-adaptre/final on the hub at revision 'm"),
        (("owner/name",), "owner/name on the hub: "),
        (("my-adaptre/nothing",), "my-adaptre/nothing on the hub: "),
        (("models/llama-3b",), "models/llama-3b on the hub: "),  # not a misspelling of llama-1b
    ],
)
def test_other_ids_are_requested_from_the_hub(
    folder: Path, args: tuple[str, ...], place: str, capsys: Captured, requests: list[bool]
) -> None:
    """With one request, which is reported; without a network the error is short."""
    (folder / "models" / "llama-1b").mkdir(parents=True)
    assert main("inspect", *args) == 1
    message = capsys.readouterr().err
    assert message.startswith(
        f"requesting {args[0]} from the Hugging Face hub …\n"
        "the hub does not answer; using its local cache …\n"
        f"error: {place}"
    )
    assert (
        "adapter_config.json is not in the local cache, and the hub can't be reached. Connect to "
        "the internet to download it, or use the path of a folder." in message
    )
    assert len(requests) == 1 and constants.HF_HUB_OFFLINE is False
    assert main("inspect", *args, "--json") == 1
    assert capsys.readouterr().err == "" and not logging.getLogger("jaxmix.hub").handlers


def test_similar_names_are_suggested(folder: Path) -> None:
    assert path_suggestions.suggest_paths("my-adapter/finale") == " Did you mean my-adapter/final?"
    assert (
        path_suggestions.suggest_paths("my-adapter/other") == " The folder my-adapter has no other."
    )
    assert (
        path_suggestions.suggest_paths("nothing/like/it")
        == path_suggestions.suggest_paths("a\0b")
        == ""
    )


def test_names_are_escaped_for_the_terminal(folder: Path, capsys: Captured) -> None:
    evil = "a\x1b[2J\x9b1m\u202e\u2066\r\ud800:smile:[red]"
    assert printable(evil) == "a\\x1b[2J\\x9b1m\\u202e\\u2066\\r\\ud800:smile:[red]"
    print_lines(escape(evil))
    shown = capsys.readouterr().out
    assert shown == printable(evil) + "\n"
    assert main("inspect", evil.replace("\ud800", "")) == 1
    message = capsys.readouterr().err
    assert not set("\x1b\x9b\u202e\u2066\r") & set(message) and ":smile:[red]" in message
