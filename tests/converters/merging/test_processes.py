"""One merge by two processes with four devices each: each reads its own shards, and they agree."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.merging import merge_checkpoint, processes, verify_merge

from ..bases import Adapters, contents, mixed, save_base

# Counts the bytes read from the base's files: by Python, and by the system's copying.
PROGRAM = """
import json, sys
port, number, base, out, *adapters = sys.argv[1:]
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number), initialization_timeout=120)
assert jax.process_count() == 2 and len(jax.local_devices()) == 4
import jaxmix
from jaxmix.converters.merging import merge_checkpoint, tensor_io

read = {}

def count(tensor, size):
    read[tensor.file.name] = read.get(tensor.file.name, 0) + size

plain_fill, plain_copy = tensor_io.fill, tensor_io._copy_by_system

def fill(file, data, tensor):
    count(tensor, data.size)
    plain_fill(file, data, tensor)

def copy(tensor, *args):
    done = plain_copy(tensor, *args)
    count(tensor, done)
    return done

tensor_io.fill, tensor_io._copy_by_system = fill, copy
loaded = [jaxmix.load(path) for path in adapters]
told, written, last = {}, {}, 0

def progress(done, size, shard):
    global last
    if done < last:  # all is written, and is read back now
        written.update(read)
    last = done

try:
    merged = merge_checkpoint(base, [loaded[0], 0.5 * loaded[2], -0.7 * loaded[1]], out,
                              verify=True, progress=progress)
    told = {"changed": merged.changed, "rms": merged.rounding and merged.rounding.rms,
            "proven": merged.verified.proven}
except Exception as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps({**told, "written": written, "read": read}), flush=True)
"""


def run(base: Path, adapters: Adapters, out: Path) -> list[dict[str, Any]]:
    """The outputs of two processes."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    # The settings of this process, for equal rounding.
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    around = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    paths = [adapters[name] for name in ("lora", "loha", "oft")]
    args: Sequence[object] = (base, out, *paths)
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(i), *map(str, args)],
            env=around,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [child.communicate(timeout=300) for child in children]
    assert all(child.returncode == 0 for child in children), outputs
    lines = [[line for line in out.splitlines() if line.startswith("{")] for out, _ in outputs]
    # Gloo's threads print too, sometimes before this line has ended.
    return [json.JSONDecoder().raw_decode(pieces[-1])[0] for pieces in lines]


@pytest.mark.skipif(os.name != "posix", reason="loopback and locks")
def test_two_processes(adapters: Adapters, tmp_path: Path) -> None:
    """The bytes equal those of one process, and each process reads only its own shards."""
    base, out = save_base(tmp_path / "base", shards=3, dtype="float16"), tmp_path / "out"
    first, second = run(base, adapters, out)
    merged = merge_checkpoint(base, mixed(adapters), tmp_path / "one", verify=True)
    assert contents(out) == contents(tmp_path / "one") and not list(tmp_path.glob("out.*"))
    assert merged.rounding is not None and merged.verified is not None
    for output in (first, second):
        assert output["changed"] == list(merged.changed) and output["rms"] == merged.rounding.rms
        assert output["proven"] == 10
    checkpoint = read_checkpoint(base)
    sizes = {shard.name: shard.size - len(shard.header) for shard in checkpoint.shards}
    # Writing reads each byte once; verification reads it again, in both processes.
    assert {**first["written"], **second["written"]} == sizes
    assert len(first["written"]) + len(second["written"]) == 3
    assert {*first["read"]} == {*first["written"]} and {*second["read"]} == {*second["written"]}
    assert verify_merge(base, mixed(adapters), out).ok


@pytest.mark.skipif(os.name != "posix", reason="loopback and locks")
def test_failure_of_one_process_ends_both(adapters: Adapters, tmp_path: Path) -> None:
    """One process reports the error, and the other does not wait."""
    base, out = save_base(tmp_path / "base", shards=3), tmp_path / "out"
    merge_checkpoint(base, [], out)
    first, second = run(base, adapters, out)
    assert "out exists. Choose another folder, or use force=True" in first["error"]
    assert second["error"] == (
        "OtherProcessFailed: the merge failed in process 0 of 2. See the error message of that "
        "process."
    )


def test_shards_are_distributed(monkeypatch: pytest.MonkeyPatch, sharded: Path) -> None:
    """Each shard goes to one process, with roughly equal bytes."""
    shards = dict(enumerate(read_checkpoint(sharded).shards))
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    dealt = []
    for index in range(2):
        monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)
        dealt.append(processes.own_shards(shards))
    assert sorted([*dealt[0], *dealt[1]]) == [0, 1, 2] and min(map(len, dealt)) == 1
