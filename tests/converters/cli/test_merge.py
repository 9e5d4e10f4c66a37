"""``jaxmix merge`` writes the folder of `merge_checkpoint` and reports it as text or JSON."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest

import jaxmix
from jaxmix.converters import merging
from jaxmix.converters.adapters.peft import peft_stack
from jaxmix.converters.cli.adapters import load_mix
from jaxmix.converters.merging import merge, merge_checkpoint
from jaxmix.converters.merging.verifying import Verdict, Verified

from ..bases import Adapters, contents, load, save_base
from .running import Captured, main, run, run_json


def test_merge_uses_strengths_and_order(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The command line's strengths and order are those of the merge."""
    (sharded / "pytorch_model.bin").write_text("x")
    args = ("-a", adapters["lora"], "-a", f"{adapters['oft']}:0.5", "-a", f"{adapters['lora']}:-1")
    done = run("merge", sharded, *args, "--out", tmp_path / "out", module="jaxmix.converters")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{tmp_path}/out: lora × 1, then oft × 0.5, then lora-2 × -1",
            "6 tensors changed, 4 copied unchanged, 2,656 bytes in 3 files",
            "left out pytorch_model.bin: weights that are still the base's",
        ],
    )
    assert "model-00003-of-00003.safetensors" in done.stderr and "2.7/2.7 kB" in done.stderr
    lora, oft = jaxmix.load(adapters["lora"]), jaxmix.load(adapters["oft"])
    (sharded / "pytorch_model.bin").unlink()
    merge_checkpoint(sharded, [lora, 0.5 * oft, -lora.renamed("2")], tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_saved_mix_and_recipe_are_merged_part_by_part(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """The parts of a saved mix and of a recipe are merged in order, at their strengths."""
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    saved = jaxmix.save(jaxmix.mix(0.5 * lora, oft), tmp_path / "saved")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        '{"format": "jaxmix", "version": 1, "parts": [{"source": "saved", "strength": 2}]}'
    )
    args = ("-a", f"{saved}:0.5", "--adapter", recipe)
    assert main("merge", base, *args, "-o", tmp_path / "out") == 0
    parts = (0.25 * lora, 0.5 * oft, lora.renamed("lora-2"), (2 * oft).renamed("oft-2"))
    merge_checkpoint(base, parts, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_peft_order_reorders_oft(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """`--peft-order` reverses two consecutive OFT adapters."""
    args = [str(adapters["oft"]), f"{adapters['oft']}:0.5", str(adapters["lora"])]
    options = [part for arg in args for part in ("-a", arg)]
    for i, flag in enumerate(["--peft-order", "--force"]):
        assert main("merge", base, *options, "-o", tmp_path / f"{i}", flag) == 0
    parts = load_mix(args).parts
    merge_checkpoint(base, peft_stack(parts), tmp_path / "peft")
    merge_checkpoint(base, parts, tmp_path / "plain")
    assert contents(tmp_path / "0") == contents(tmp_path / "peft") != contents(tmp_path / "plain")
    assert contents(tmp_path / "1") == contents(tmp_path / "plain")


def test_untie_is_suggested_and_reported(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """A tied embedding is an error that suggests `--untie`, which reports the new tensor."""
    base = save_base(tmp_path / "base", tied=True)
    args = ("merge", base, "-a", adapters["embedding"], "--out", tmp_path / "out")
    assert main(*args) == 1
    assert "Use --untie to untie them in the output" in capsys.readouterr().err
    assert main(*args, "--untie") == 0
    output = capsys.readouterr().out
    assert "1 tensor changed, 9 copied unchanged, 2,544 bytes in 1 file\n" in output
    assert "untied: lm_head.weight is now a separate tensor, a copy of the base's emb" in output
    assert "lm_head.weight" in load(tmp_path / "out")


def test_json_document(base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """`--json` prints one document to stdout and nothing to stderr."""
    out = tmp_path / "out"
    document = run_json(capsys, "merge", base, "-a", f"{adapters['lora']}:2", "--out", out)
    site = "model.layers.{}.q_proj.{}"
    assert document == {
        "base": str(base),
        "adapters": [{"name": "lora", "strength": 2.0}],
        "out": str(out),
        "shards": ["model.safetensors"],
        "changed": [site.format(i, part) for i in range(2) for part in ("bias", "weight")],
        "copied": 6,
        "size": (out / "model.safetensors").stat().st_size,
        "untied": None,
        "copies": [],
        "left_out": [],
        "dequantized": 0,
        "resized": {},
        "new_head": None,
        "resumed": 0,
        "rounding": None,
        "verified": None,
    }


def test_existing_output_needs_force(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """An existing output is replaced only with `--force`."""
    args = ("merge", base, "-a", adapters["lora"], "--out", tmp_path / "out")
    assert [main(*args), main(*args), main(*args, "--force")] == [0, 1, 0]
    assert "out exists. Choose another folder, or use --force" in capsys.readouterr().err


def test_output_that_holds_an_adapter_is_refused(
    base: Path, adapters: Adapters, capsys: Captured
) -> None:
    """An output that contains an adapter is refused, because it would delete the adapter."""
    lora = adapters["lora"]
    before = contents(lora.parent)
    (lora.parent / "config.json").write_text("{}")
    for out in (lora, lora / "out", lora.parent):
        assert main("merge", base, "-a", f"{lora}:0.5", "--out", out, "--force") == 1
        assert (
            f"the output {out} and the adapter {lora} overlap: one contains the oth"
            in capsys.readouterr().err
        )
    assert contents(lora.parent) == {**before, "config.json": b"{}"}


def test_verify_prints_verdicts(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """Each tensor gets a verdict; changes lost to rounding are listed and are no failure."""
    base = save_base(tmp_path / "base", dtype=ml_dtypes.bfloat16)
    args = ("merge", base, "-a", f"{adapters['lora']}:0.001", "--verify")
    assert main(*args, "-o", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[2].startswith("error of rounding to 16 bits: 0.")
        and "of the mix's effect" in lines[2]
    )
    assert lines[3] == "verified: 6 tensors proven, 4 inconclusive:" and len(lines) == 8
    assert all("rounding to BF16 left" in line for line in lines[4:])
    document = run_json(capsys, *args, "-o", tmp_path / "again")
    verdicts = [entry["verdict"] for entry in document["verified"]["tensors"]]
    assert sorted(verdicts) == ["inconclusive"] * 4 + ["proven"] * 6
    assert document["verified"]["ok"] and 0 < document["rounding"]["of_weight"] < 0.01


def test_long_list_of_verdicts_is_cut(
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five inconclusive tensors are listed, the others counted."""
    open_ones = tuple(Verdict(f"x{i}", "inconclusive", "hidden") for i in range(7))
    monkeypatch.setattr(merge, "verify_output", lambda *_: Verified(open_ones, (), 0, 7, 0, True))
    monkeypatch.setattr(merge, "join_proofs", lambda proofs, names: proofs[0])
    args = ("merge", base, "-a", adapters["lora"], "--verify", "-o", tmp_path / "out")
    assert main(*args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "verified: 0 tensors proven, 7 inconclusive:",
        *(f"  x{i}: hidden" for i in range(5)),
        "  … and 2 more",
    ]


def test_failed_verification_leaves_no_output(
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong output file gives exit code 3 and is removed."""
    plain = merge.verify_output

    def tampered(work: Any, out: Path, *others: Any) -> Any:
        file = out / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        return plain(work, out, *others)

    monkeypatch.setattr(merge, "verify_output", tampered)
    out = tmp_path / "out"
    args = ("merge", base, "-a", adapters["lora"], "--verify", "-o", out)
    document = run_json(capsys, *args, code=3)
    assert document["kind"] == "VerificationError"
    assert document["error"].startswith(f"{out} was not written: 1 difference from base plus mix")
    assert not out.exists()


def test_single_file_merges_into_a_file(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """A base file merges into a file; `--layout` chooses a layout, and an unknown one fails."""
    file, out = base / "model.safetensors", tmp_path / "out.safetensors"
    args = ("merge", file, "-a", adapters["lora"], "-o", out, "--layout")
    assert main(*args, "torch") == 0
    merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "expected")
    assert out.read_bytes() == (tmp_path / "expected" / "model.safetensors").read_bytes()
    capsys.readouterr()
    message = run_json(capsys, *args, "x", "--force", code=2)["error"]
    assert message.startswith(
        "Invalid value for '--layout': 'x' is not one of torch, flax, names, "
    )


def test_flags_reach_the_library(
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each flag reaches `merge_checkpoint` under its own name, and its effect is reported."""
    calls: list[dict[str, Any]] = []
    done = merge_checkpoint(base, jaxmix.load(adapters["lora"]), tmp_path / "done")

    def pretend(*_: Any, progress: Any, **how: Any) -> Any:
        calls.append({name: value for name, value in how.items() if value})
        return replace(done, resumed=2, dequantized=3)

    monkeypatch.setattr(merging, "merge_checkpoint", pretend)
    args = ("merge", base, "-a", adapters["lora"], "-o", tmp_path / "out")
    flags = ("resume", "verify", "dequantize", "force", "untie")
    for flag in flags:
        assert main(*args, f"--{flag}") == 0
    assert calls == [{flag: True} for flag in flags]
    output = capsys.readouterr().out
    assert "2 files complete from an earlier run\n3 tensors dequantized to bfloat16\n" in output


# A shell that runs the tests in the background makes them and their children ignore SIGINT.
SLOW = """
import signal, sys, time
from jaxmix.converters import cli
from jaxmix.converters.merging import recipe

signal.signal(signal.SIGINT, signal.default_int_handler)

plain, calls = recipe.Prepared.compute, []

def slow(*args):
    calls.append(args)
    if len(calls) == 3:
        print("now", flush=True)
        time.sleep(100)
    return plain(*args)

recipe.Prepared.compute = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "args", "out", "err"),
    [
        (signal.SIGTERM, [], "", "error: stopped; outputs are unchanged.\n"),
        (signal.SIGINT, ["--json"], '"kind": "Interrupted"', ""),
    ],
)
def test_signal_removes_the_partial_output(
    number: signal.Signals,
    args: list[str],
    out: str,
    err: str,
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
) -> None:
    """A signal during the merge removes the partial output and is reported."""
    before = contents(tmp_path)
    line = ("merge", base, "-a", adapters["lora"], "--out", tmp_path / "out", *args)
    program = [sys.executable, "-c", SLOW, *map(str, line)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout and child.stdout.readline() == "now\n"
        assert len(list(tmp_path.glob("out.partial/parts/*.safetensors"))) == 1
        child.send_signal(number)
        output, errors = child.communicate()
    assert child.returncode == 128 + number
    assert out in output and err in errors and "Traceback" not in errors
    assert contents(tmp_path) == before and not list(tmp_path.glob("out*"))
