"""Compares compose with PEFT's merge: same weights, adapters and threads, alternating in one run.

    python -m tests.benchmarks.bench_compose [--rounds 7] [--layers 8] [--only NAME] [--memory]

A Llama-like stack of 8 layers, 100M float32 parameters, adapters on all seven linear layers. PEFT
merges in place (``merge_adapter``; its ``unmerge_adapter`` is not timed); jaxmix composes into
fresh buffers, and with ``donate=True`` into the base's own. The least that fresh buffers cost is
``w + 1`` of each leaf. Medians; the first call, which compiles, is listed separately. Needs torch
and peft.
"""

import argparse
import ctypes
import gc
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmix

HIDDEN, INNER = 1024, 2816
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
WORDS = {
    "LoRA": ("lora",),
    "four LoRAs": ("lora",) * 4,
    "LoRA, LoHa, LoKr": ("lora", "loha", "lokr"),
    "OFT, LoRA": ("oft", "lora"),
    "LoRA, LoHa, LoKr, OFT": ("lora", "loha", "lokr", "oft"),
}


def weights(layers: int) -> dict[str, np.ndarray]:
    """The base, by PyTorch names."""
    rng = np.random.default_rng(0)
    return {
        f"layers.{i}.{name}.weight": rng.standard_normal(shape, np.float32) / 32
        for i in range(layers)
        for name, shape in LINEAR.items()
    }


def torch_model(params: dict[str, np.ndarray]) -> Any:
    """A torch module with the base's weights."""
    import torch
    from torch import nn

    root = nn.Module()
    for key, value in params.items():
        place = root
        *path, last = key.removesuffix(".weight").split(".")
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        linear = nn.Linear(*value.shape[::-1], bias=False)
        linear.weight.data = torch.from_numpy(value.copy())
        place.add_module(last, linear)
    return root


def peft_config(kind: str) -> Any:
    """Each kind in its usual size: rank 16, LoHa 8, LoKr 8, blocks of 32."""
    import peft

    targets: dict[str, Any] = {"target_modules": [name.split(".")[1] for name in LINEAR]}
    match kind:
        case "lora":
            return peft.LoraConfig(r=16, lora_alpha=32, **targets)
        case "loha":
            return peft.LoHaConfig(r=8, alpha=16, **targets)
        case "lokr":
            return peft.LoKrConfig(r=8, alpha=16, **targets)
        case _:
            return peft.OFTConfig(oft_block_size=32, **targets)


def peft_model(params: dict[str, np.ndarray], word: tuple[str, ...], folder: Path | None) -> Any:
    """Returns PEFT's mixed model and saves its adapters in a folder for jaxmix."""
    import peft
    import torch

    torch.manual_seed(0)
    model: Any = None
    names = [f"{kind}{i}" for i, kind in enumerate(word)]
    for name, kind in zip(names, word, strict=True):
        if model is None:
            model = peft.get_peft_model(torch_model(params), peft_config(kind), name, mixed=True)
        else:
            model.add_adapter(name, peft_config(kind))
    model.set_adapter(names)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.normal_(std=0.02)
    for name, kind in zip(names, word, strict=True):
        if folder is not None:
            _save(model, name, kind, folder / name)
    return model


def _save(model: Any, name: str, kind: str, folder: Path) -> None:
    """Saves one adapter of the mixed model as a folder, which PEFT itself can't do."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(model.base_model, adapter_name=name)
    state = {f"base_model.model.{k.removeprefix('model.')}": v for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
    peft_config(kind).save_pretrained(folder)


def seconds(work: Callable[[], Any]) -> float:
    """Times one call until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def bench(name: str, layers: int, rounds: int) -> dict[str, float]:
    """Returns the medians of PEFT, jaxmix donated and fresh, and `w + 1`; and the first call."""
    word, params = WORDS[name], weights(layers)
    with tempfile.TemporaryDirectory() as temporary:
        model = peft_model(params, word, Path(temporary))
        adapters = [
            jaxmix.load(path, name=path.name)
            for path in sorted(Path(temporary).iterdir(), key=_order)
        ]
    base = {key: jnp.array(value) for key, value in params.items()}
    first = seconds(lambda: jaxmix.compose(base, adapters))
    jaxmix.compose({k: jnp.array(v, copy=True) for k, v in base.items()}, adapters, donate=True)
    plus_one = jax.jit(lambda w: w + 1)
    jax.block_until_ready([plus_one(w) for w in base.values()])
    found: dict[str, list[float]] = {"peft": [], "donated": [], "fresh": [], "plus one": []}
    for i in range(rounds):
        copy = jax.block_until_ready({k: jnp.array(v, copy=True) for k, v in base.items()})

        def peft() -> None:
            found["peft"].append(seconds(model.merge_adapter))
            model.unmerge_adapter()

        def ours(copy: Any = copy) -> None:
            found["donated"].append(seconds(lambda: jaxmix.compose(copy, adapters, donate=True)))
            found["fresh"].append(seconds(lambda: jaxmix.compose(base, adapters)))
            found["plus one"].append(seconds(lambda: [plus_one(w) for w in base.values()]))

        for turn in (peft, ours) if i % 2 else (ours, peft):
            turn()
    return {"first": first, **{key: median(times) for key, times in found.items()}}


def _order(path: Path) -> int:
    return int(path.name[-1])


def memory(name: str, layers: int) -> None:
    """Prints the memory of one fresh compose relative to the params, without importing torch."""
    word, params = WORDS[name], weights(layers)
    size = sum(value.nbytes for value in params.values())
    with tempfile.TemporaryDirectory() as temporary:
        code = "from tests.benchmarks.bench_compose import *; "
        code += f"peft_model(weights({layers}), {word!r}, Path({temporary!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
        adapters = [
            jaxmix.load(path, name=path.name)
            for path in sorted(Path(temporary).iterdir(), key=_order)
        ]
    base = {key: jnp.array(params.pop(key)) for key in list(params)}
    # Compiled beforehand on one layer, whose few pages are freed: otherwise the measured call
    # would reuse them. Then the kernel's high-water mark is reset to the current use.
    first = [
        jaxmix.Adapter(
            {k: u for k, u in a.updates.items() if k.startswith("layers.0.")}, name=a.name
        )
        for a in adapters
    ]
    jax.block_until_ready(jaxmix.compose(base, first))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    out = jax.block_until_ready(jaxmix.compose(base, adapters))
    peak = 1024 * (_kilobytes("VmHWM") - before) / size
    leaf = max(value.nbytes for value in base.values()) / size
    print(f"| {name} | {peak:.2f} | {leaf:.3f} | {len(out)} |", flush=True)


def _kilobytes(field: str) -> int:
    """Returns a field of the kernel's status of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--only", choices=WORDS)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    names = [args.only] if args.only else list(WORDS)
    if args.memory and args.only:
        memory(args.only, args.layers)
        return
    if args.memory:
        print(
            "| word | peak above the params, in params | one leaf | leaves |\n" + "| --- " * 4 + "|"
        )
        for name in names:  # one process each, so that no peak hides another
            run = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--memory", "--only", name]
            subprocess.run([*run, "--layers", str(args.layers)], check=True)
        return
    warnings.simplefilter("ignore")
    heads = "adapters|PEFT s|donated s|times faster|fresh s|times faster|`w + 1` s|first call s"
    print(f"| {heads.replace('|', ' | ')} |\n{'| --- ' * 8}|")
    for name in names:
        row = bench(name, args.layers, args.rounds)
        cells = [name, f"{row['peft']:.3f}"]
        for key in ("donated", "fresh"):
            ratio = row["peft"] / row[key]
            cells += [f"{row[key]:.3f}", f"{ratio:.1f}"]
        cells += [f"{row['plus one']:.3f}", f"{row['first']:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
