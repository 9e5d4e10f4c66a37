"""Memory does not grow with the model, measured in a separate process above its start.

Files are sparse, so large ones need no disk space; their zeros make no difference to the merge.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROWS, COLS, RANK = 4096, 8192, 4
TENSOR = 2 * ROWS * COLS

# The peak since the last reset, above the memory before, which includes JAX and its functions.
PROGRAM = """
import ctypes, json, pathlib, sys
import jax, jaxmix
import numpy as np

def kilobytes(field):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1])

small, base, first, adapter, out = sys.argv[1:]
jaxmix.merge_checkpoint(small, jaxmix.load(first), out + "-small", verify=True)
mix = jaxmix.load(adapter)
for verify in (False, True):
    ctypes.CDLL(None).malloc_trim(0)
    before = kilobytes("VmRSS:")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    merged = jaxmix.merge_checkpoint(base, mix, out, verify=verify, force=True)
    print(json.dumps([1024 * (kilobytes("VmHWM:") - before), merged.size, len(merged.changed)]))
"""


def save_sparse(folder: Path, tensors: int) -> Path:
    """Saves a base with this number of tensors of zeros, one per shard."""
    folder.mkdir()
    where = {}
    for i in range(tensors):
        entry = {"dtype": "BF16", "shape": [ROWS, COLS], "data_offsets": [0, TENSOR]}
        text = json.dumps({f"layers.{i}.proj.weight": entry}).encode()
        file = f"model-{i}.safetensors"
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + TENSOR)
        where[f"layers.{i}.proj.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/proc/self/clear_refs").exists(), reason="reads /proc"
)
def test_peak_is_below_three_tensors(tmp_path: Path) -> None:
    """Four of the largest tensors are merged, and each of them changes."""
    count = 4
    bases = save_sparse(tmp_path / "small", 1), save_sparse(tmp_path / "base", count)
    rng = np.random.default_rng(0)
    factors = {}
    for i in range(count):
        site = f"base_model.model.layers.{i}.proj"
        factors[f"{site}.lora_A.weight"] = rng.standard_normal((RANK, COLS), np.float32)
        factors[f"{site}.lora_B.weight"] = rng.standard_normal((ROWS, RANK), np.float32)
    adapters = []
    for name, selected in (("one", dict(list(factors.items())[:2])), ("all", factors)):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        save_file(selected, tmp_path / name / "adapter_model.safetensors")
        adapters.append(tmp_path / name)
    args = [sys.executable, "-c", PROGRAM, *bases, *adapters, tmp_path / "out"]
    # One device as for users: the eight devices of the other tests need many more threads. What
    # malloc keeps of freed memory depends on how the threads take turns, and so on the load: large
    # arrays are returned to the system at once, and all threads share the rest.
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 16),
        "MALLOC_ARENA_MAX": "1",
    }
    run = subprocess.run(
        list(map(str, args)), capture_output=True, text=True, timeout=1200, env=environment
    )
    assert run.returncode == 0, run.stderr
    allowed = 3 * TENSOR + sum(math.prod(array.shape) * 4 for array in factors.values())
    for line in run.stdout.splitlines():
        peak, size, changed = json.loads(line)
        assert changed == count and size > count * TENSOR
        assert peak < allowed, f"{peak / 1e6:.0f} MB, allowed {allowed / 1e6:.0f} MB"
