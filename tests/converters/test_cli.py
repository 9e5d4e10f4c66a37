"""The program, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.converters import cli
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.converters.peft import peft_stack
from jaxmix.converters.tables import adapter_data
from jaxmix.families import LoRA, Replace, Together

from .checkpoints import Adapters, contents, load, save_adapter, save_base

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not broken to a terminal's width, and nothing is coloured."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def run(*words: object, module: bool = False) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    script = str(Path(sys.executable).with_name("jaxmix"))
    program = [sys.executable, "-m", "jaxmix.converters"] if module else [script]
    return subprocess.run([*program, *map(str, words)], capture_output=True, text=True)


def main(*words: object) -> int:
    """The same in this process, which is faster."""
    return cli.main([str(word) for word in words])


def test_merge(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Strengths and order are those of the command line."""
    (sharded / "pytorch_model.bin").write_text("x")
    words = (adapters["lora"], f"{adapters['oft']}:0.5", f"{adapters['lora']}:-1")
    done = run("merge", sharded, *words, "--out", tmp_path / "out", module=True)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"{tmp_path}/out: lora × 1, then oft × 0.5, then lora-2 × -1",
            "6 tensors changed, 4 copied as they are, 2,656 bytes in 3 files",
            "left out pytorch_model.bin: weights that are still the base's",
        ],
    )
    assert "model-00003-of-00003.safetensors" in done.stderr and "2.7/2.7 kB" in done.stderr
    lora, oft = jaxmix.load(adapters["lora"]), jaxmix.load(adapters["oft"])
    (sharded / "pytorch_model.bin").unlink()
    merge_checkpoint(sharded, [lora, 0.5 * oft, -lora.renamed("2")], tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_the_script(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """`jaxmix` is installed, and tells what is wrong without a traceback."""
    done = run("merge", base, adapters["lora"], "nothing", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'nothing' is neither a folder nor a hub id.\nExpected a")
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("lora", "lora", 1.0),
        ("lora:0.5", "lora", 0.5),
        ("lora:-1", "lora", -1.0),
        ("lora:+.5", "lora", 0.5),
        ("lora:1e-3", "lora", 0.001),
        ("owner/name:2", "owner/name", 2.0),
        ("owner/name:2.", "owner/name", 2.0),
        ("run:2:1", "run:2", 1.0),
        (r"C:\lora", r"C:\lora", 1.0),
        (r"C:\lora:0.6", r"C:\lora", 0.6),
        ("a:b", "a:b", 1.0),
        ("a:nan", "a:nan", 1.0),
        ("a:inf", "a:inf", 1.0),
        ("a:1_0", "a:1_0", 1.0),
        ("a:", "a:", 1.0),
        (":2", ":2", 1.0),
    ],
)
def test_strengths(text: str, path: str, strength: float) -> None:
    """A number after the last colon; nothing else."""
    assert cli.parse_adapter(text) == (path, strength)


def test_names_are_made_unique(adapters: Adapters, tmp_path: Path) -> None:
    """Folders of one name, and one whose name is what another would get."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "lora").symlink_to(adapters["loha"])
    (tmp_path / "lora-2").symlink_to(adapters["oft"])
    paths = (adapters["lora"], tmp_path / "lora-2", adapters["lora"], adapters["lora"])
    told = [cli.parse_adapter(str(path)) for path in paths]
    assert [part.name for part in cli.load_all(told)] == ["lora", "oft", "lora-2", "lora-3"]


def test_a_saved_mix_and_a_recipe(
    base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """Their parts, one by one, in their order and at their strengths."""
    lora, oft = (jaxmix.load(adapters[name]) for name in ("lora", "oft"))
    saved = jaxmix.save(jaxmix.mix(0.5 * lora, oft), tmp_path / "saved")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        '{"format": "jaxmix", "version": 1, "parts": [{"source": "saved", "strength": 2}]}'
    )
    assert main("merge", base, f"{saved}:0.5", recipe, "-o", tmp_path / "out") == 0
    parts = (0.25 * lora, 0.5 * oft, lora.renamed("lora-2"), (2 * oft).renamed("oft-2"))
    merge_checkpoint(base, parts, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    capsys.readouterr()
    assert main("inspect", saved, adapters["loha"], "--json") == 0
    told = json.loads(capsys.readouterr().out)["adapters"]
    assert [(Path(one["path"]).name, one["name"], one["strength"]) for one in told] == [
        ("saved", "lora", 0.5),
        ("saved", "oft", 1.0),
        ("loha", "loha", 1.0),
    ]


def test_the_order_of_peft(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Two OFT in a row change places."""
    words = (adapters["oft"], f"{adapters['oft']}:0.5", adapters["lora"])
    told = [cli.parse_adapter(str(word)) for word in words]
    for i, flag in enumerate(["--peft-order", "--force"]):
        assert main("merge", base, *words, "-o", tmp_path / f"{i}", flag) == 0
    merge_checkpoint(base, peft_stack(cli.load_all(told)), tmp_path / "peft")
    merge_checkpoint(base, cli.load_all(told), tmp_path / "plain")
    assert contents(tmp_path / "0") == contents(tmp_path / "peft") != contents(tmp_path / "plain")
    assert contents(tmp_path / "1") == contents(tmp_path / "plain")


def test_untie(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """An error that says how, and a word about what was done."""
    base = save_base(tmp_path / "base", tied=True)
    words = ("merge", base, adapters["embedding"], "--out", tmp_path / "out")
    assert main(*words) == 1
    assert "untie=True (on the command line --untie) does so" in capsys.readouterr().err
    assert main(*words, "--untie") == 0
    told = capsys.readouterr().out
    assert "1 tensor changed, 9 copied as they are, 2,544 bytes in 1 file\n" in told
    assert "untied: lm_head.weight is a tensor of its own now, made from the base's emb" in told
    assert "lm_head.weight" in load(tmp_path / "out")


def test_json(base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """One document on stdout, and nothing on stderr."""
    out = tmp_path / "out"
    assert main("merge", base, f"{adapters['lora']}:2", "--out", out, "--json") == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    site = "model.layers.{}.q_proj.{}"
    assert (told.err, document) == (
        "",
        {
            "base": str(base),
            "adapters": [{"name": "lora", "strength": 2.0}],
            "out": str(out),
            "shards": ["model.safetensors"],
            "changed": [site.format(i, part) for i in range(2) for part in ("bias", "weight")],
            "copied": 6,
            "size": (out / "model.safetensors").stat().st_size,
            "untied": None,
            "left_out": [],
            "dequantized": 0,
            "resumed": 0,
            "rounding": None,
            "verified": None,
        },
    )


def test_force(base: Path, adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """What exists is replaced only then."""
    words = ("merge", base, adapters["lora"], "--out", tmp_path / "out")
    assert [main(*words), main(*words), main(*words, "--force")] == [0, 1, 0]
    assert "out exists. Give another folder, or say force=True (--force)" in capsys.readouterr().err


def test_an_adapter_in_the_output(base: Path, adapters: Adapters, capsys: Captured) -> None:
    """It would be removed."""
    lora = adapters["lora"]
    before = contents(lora.parent)
    (lora.parent / "config.json").write_text("{}")
    for out in (lora, lora / "out", lora.parent):
        assert main("merge", base, f"{lora}:0.5", "--out", out, "--force") == 1
        assert (
            f"the output {out} and the adapter {lora} lie one in the oth" in capsys.readouterr().err
        )
    assert contents(lora.parent) == {**before, "config.json": b"{}"}


def test_inspect(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """A line for each adapter and kind of update."""
    config = json.loads((adapters["lora"] / "adapter_config.json").read_text())
    factors = {
        key.removeprefix("base_model.model."): a for key, a in load(adapters["lora"]).items()
    }
    factors["model.norm.weight"] = np.ones(6, np.float32)
    saved = save_adapter(tmp_path / "s[red]", {**config, "modules_to_save": ["norm"]}, factors)
    assert main("inspect", saved, f"{adapters['oft']}:-0.5") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    down, q = "model.layers.*.down_proj", "model.layers.*.q_proj"
    assert rows == [
        ["name", "kind", "size", "strength", "sites", "numbers", "modules"],
        ["s[red]", "LoRA", "rank", "2", "1", "2", "72", "float32", q],
        ["s[red]", "Replace", "weight", "1", "1", "6", "float32", "model.norm"],
        ["oft", "OFT", "block", "5", "-0.5", "2", "40", "float32", down],
        ["oft", "OFT", "block", "3", "-0.5", "2", "12", "float32", q],
    ]


def test_inspect_as_json(adapters: Adapters, capsys: Captured) -> None:
    """The same for machines, with every site."""
    assert main("inspect", f"{adapters['loha']}:2", "--json") == 0
    told = capsys.readouterr()
    sites = [f"model.layers.{i}.q_proj" for i in range(2)]
    kind: dict[str, Any] = {"kind": "LoHa", "size": "rank 2", "dtype": "float32", "numbers": 112}
    assert (told.err, json.loads(told.out)) == (
        "",
        {
            "adapters": [
                {
                    "path": str(adapters["loha"]),
                    "name": "loha",
                    "strength": 2.0,
                    "kinds": [{**kind, "sites": sites}],
                }
            ]
        },
    )


def test_what_shares_a_site_is_told_apart() -> None:
    """A LoRA and the bias that was trained beside it are two kinds."""
    bias = Replace(bias=jnp.ones(4))
    both = Together((bias, LoRA(jnp.ones((1, 3)), jnp.ones((4, 1)), 1.0)))
    kinds = adapter_data(jaxmix.Adapter({"q": both, "k": bias}))["kinds"]
    assert [(kind["kind"], kind["numbers"], kind["sites"]) for kind in kinds] == [
        ("Replace", 8, ("q", "k")),
        ("LoRA", 7, ("q",)),
    ]


def test_inspect_refuses(capsys: Captured) -> None:
    """In jaxmix's words."""
    assert main("inspect", "[red]nothing", "--json") == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(
        "error: '[red]nothing' is neither a folder nor a hub"
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["merge"], "Missing argument 'BASE'"),
        (["merge", "base"], "Missing argument 'ADAPTER"),
        (["merge", "base", "lora"], "Missing option '--out'"),
        (["inspect"], "Missing argument 'ADAPTER"),
        (["merg"], "No such command 'merg'"),
        (["inspect", "--jsn", "x"], "No such option"),
    ],
)
def test_usage(words: list[str], text: str, capsys: Captured) -> None:
    """A command line that makes no sense is exit code 2."""
    assert main(*words) == 2
    assert text in capsys.readouterr().err


def test_help(capsys: Captured) -> None:
    """It teaches with examples; without words it is shown, too."""
    for words, texts in {
        ("--help",): ["demo", "merge", "inspect", "Begin with jaxmix demo"],
        (): ["demo", "merge", "inspect"],
        ("merge", "-h"): ["jaxmix merge base lora:0.6 owner/loha oft:-1 --out merged", "--untie"],
        ("inspect", "--help"): ["jaxmix inspect my-lora owner/loha --json"],
        ("demo", "--help"): ["jaxmix demo --out pictures"],
    }.items():
        code = main(*words)
        assert code == 0 or not words  # without words it is typer's affair, and has changed
        told = capsys.readouterr()
        assert all(text in told.out + told.err for text in texts)


def test_version(capsys: Captured) -> None:
    """That of the distribution."""
    assert main("--version") == 0
    assert capsys.readouterr().out == f"jaxmix {version('jaxmix-peft')}\n"


@pytest.mark.parametrize("code", [0, 3])
def test_demo(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started with the folder, and its exit code is the program's."""
    run = pytest.importorskip("jaxmix.demo.run")
    told: list[Path | None] = []

    def pretend(out: Path | None = None) -> int:
        told.append(out)
        return code

    monkeypatch.setattr(run, "main", pretend)
    assert [main("demo"), main("demo", "--out", "here")] == [code, code]
    assert told == [None, Path("here")]


# A shell that starts the tests in the background has them, and their children, ignore SIGINT.
SLOW = """
import signal, sys, time
from jaxmix.converters import cli
from jaxmix.converters.merging import recipe

signal.signal(signal.SIGINT, signal.default_int_handler)

plain, calls = recipe.Prepared.made, []

def slow(*args):
    calls.append(args)
    if len(calls) == 3:
        print("now", flush=True)
        time.sleep(100)
    return plain(*args)

recipe.Prepared.made = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, {143}), (signal.SIGINT, {1, 130})])
def test_ended(
    number: signal.Signals, code: set[int], base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Asked to end in the middle, it removes what it wrote."""
    before = contents(tmp_path)
    words = ["merge", base, adapters["lora"], "--out", tmp_path / "out"]
    program = [sys.executable, "-c", SLOW, *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout and child.stdout.readline() == "now\n"
        assert len(list(tmp_path.glob("out.partial/parts/*.safetensors"))) == 1
        child.send_signal(number)
        _, told = child.communicate()
    assert child.returncode in code and "Traceback" not in told
    assert contents(tmp_path) == before and not list(tmp_path.glob("out*"))
