"""Compares merge_checkpoint with PEFT and a plain copy in time and memory.

    python -m tests.benchmarks.bench_merge [--rounds 5] [--layers 6] [--dtype bfloat16]
    python -m tests.benchmarks.bench_merge --memory [--gigabytes 9]

The first makes a Llama-like folder of about 850 MB and adapters of LoRA, LoHa, LoKr and OFT on all
linear layers, and merges one, three and four of them, alternating between jaxmix, PEFT
(``from_pretrained``, ``load_adapter``, ``merge_and_unload``, ``save_pretrained``), and ``cp -r``.
Each runs in its own process. Times exclude imports, memory is the peak above the use after the
imports. The last columns are whole processes, of `jaxmix merge` with its folder of compiled
functions. Medians. Needs torch, peft and transformers.

The second merges a checkpoint of sparse files of the given size, without importing torch.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

WORDS = {
    "LoRA": ("lora",),
    "LoRA, LoHa, LoKr": ("lora", "loha", "lokr"),
    "LoRA, LoHa, LoKr, OFT": ("lora", "loha", "lokr", "oft"),
}
HIDDEN, INNER, VOCAB = 2048, 5632, 32000
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MEGA = 1e6

# The beginning of both programs: measures the peak memory from here on.
_HEAD = """
import ctypes, json, pathlib, sys, time

def megabytes(field):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) / 1e3

def run(work):
    ctypes.CDLL(None).malloc_trim(0)
    before, start = megabytes("VmRSS:"), time.perf_counter()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    work()
    print(json.dumps([time.perf_counter() - start, megabytes("VmHWM:") - before]))

base, out, dtype, *paths = sys.argv[1:]
"""
OURS = (
    _HEAD
    + """
import jaxmix
import jaxmix.converters.merging

def work():
    loaded = [jaxmix.load(path) for path in paths]
    jaxmix.merge_checkpoint(base, loaded, out, force=True)

run(work)
"""
)
THEIRS = (
    _HEAD
    + """
import peft, torch, transformers
import transformers.models.llama.modeling_llama

def work():
    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=kind)
    names = [f"a{i}" for i in range(len(paths))]
    if len(paths) == 1:
        mixed = peft.PeftModel.from_pretrained(model, paths[0])
    else:
        mixed = peft.PeftMixedModel.from_pretrained(model, paths[0], adapter_name=names[0])
        for name, path in zip(names[1:], paths[1:]):
            mixed.load_adapter(path, adapter_name=name)
        mixed.set_adapter(names)
    mixed.merge_and_unload().save_pretrained(out)

run(work)
"""
)


def made(folder: Path, layers: int, dtype: str) -> None:
    """Saves the base and the adapters with transformers and PEFT."""
    import peft
    import torch
    import transformers as hf

    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder / "base", max_shard_size="300MB")
    kinds: dict[str, Any] = {
        "lora": peft.LoraConfig(r=16, lora_alpha=32, target_modules=ALL, init_lora_weights=False),
        "loha": peft.LoHaConfig(r=8, alpha=8, target_modules=ALL, init_weights=False),
        "lokr": peft.LoKrConfig(r=8, alpha=8, target_modules=ALL, init_weights=False),
        "oft": peft.OFTConfig(oft_block_size=32, target_modules=ALL, init_weights=False),
    }
    for name, fields in kinds.items():
        fresh = hf.LlamaForCausalLM(config)
        with_it = peft.get_peft_model(fresh, fields)
        with torch.no_grad():
            for one in with_it.parameters():
                if one.requires_grad:
                    one.mul_(0.1)
        with_it.save_pretrained(folder / name)
        del fresh, with_it


def timed(folder: Path, who: str, kinds: tuple[str, ...], dtype: str) -> tuple[float, ...]:
    """Returns the seconds and megabytes of one run, and the seconds of its process."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if who == "copy":
        start = time.perf_counter()
        subprocess.run(["cp", "-r", folder / "base", out], check=True)
        return time.perf_counter() - start, 0.0, 0.0
    program = OURS if who == "jaxmix" else THEIRS
    words = [folder / "base", out, dtype, *(folder / kind for kind in kinds)]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True
    )
    whole = time.perf_counter() - start
    if who == "jaxmix":
        whole = command_seconds(folder, kinds)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, whole


def command_seconds(folder: Path, kinds: tuple[str, ...]) -> float:
    """Returns the seconds of `jaxmix merge`, which keeps compiled functions for its next run."""
    line = [sys.executable, "-m", "jaxmix", "merge", folder / "base", "-o", folder / "out"]
    line += [word for kind in kinds for word in ("-a", folder / kind)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have bytecode
    shutil.rmtree(folder / "out", ignore_errors=True)
    start = time.perf_counter()
    subprocess.run([*map(str, line)], env=environment, capture_output=True, check=True)
    return time.perf_counter() - start


def compare(options: argparse.Namespace) -> None:
    """Alternates between jaxmix, PEFT and a copy."""
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        made(folder, options.layers, options.dtype)
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        print(f"{size / MEGA:.0f} MB, {options.dtype}, medians of {options.rounds}\n")
        print(
            "| adapters | jaxmix s | MB | PEFT s | MB | cp s | times faster | of cp "
            "| process, jaxmix s | process, PEFT s | times faster |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for word, kinds in WORDS.items():
            runs: dict[str, list[tuple[float, ...]]] = {"jaxmix": [], "peft": [], "copy": []}
            for _ in range(options.rounds):
                for who, those in runs.items():
                    those.append(timed(folder, who, kinds, options.dtype))
            seconds = {who: median(run[0] for run in those) for who, those in runs.items()}
            peaks = {who: median(run[1] for run in those) for who, those in runs.items()}
            process = {who: median(run[2] for run in those) for who, those in runs.items()}
            ours, theirs, copy = seconds["jaxmix"], seconds["peft"], seconds["copy"]
            print(
                f"| {word} | {ours:.1f} | {peaks['jaxmix']:.0f} | {theirs:.1f} | "
                f"{peaks['peft']:.0f} | {copy:.1f} | {theirs / ours:.1f} | {ours / copy:.1f} "
                f"| {process['jaxmix']:.1f} | {process['peft']:.1f} "
                f"| {process['peft'] / process['jaxmix']:.1f} |",
                flush=True,
            )


def sparse(folder: Path, gigabytes: float) -> tuple[Path, int]:
    """Writes a base of zeros: layers of an 8B Llama, a large embedding and a head."""
    hidden, inner, vocab = 4096, 14336, 128256
    layer = {f"self_attn.{n}_proj": (hidden, hidden) for n in "qo"}
    layer |= {f"self_attn.{n}_proj": (hidden // 4, hidden) for n in "kv"}
    layer |= {f"mlp.{n}_proj": (inner, hidden) for n in ("gate", "up")}
    layer |= {"mlp.down_proj": (hidden, inner)}
    ends = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden)}
    of_layer = 2 * sum(a * b for a, b in layer.values())
    count = round((gigabytes * 1e9 - 4 * vocab * hidden) / of_layer)
    shards = [ends] + [
        {f"model.layers.{i}.{name}": shape for name, shape in layer.items()} for i in range(count)
    ]
    (folder / "base").mkdir()
    where = {}
    for number, modules in enumerate(shards):
        file, end, header = f"model-{number}.safetensors", 0, {}
        for name, shape in modules.items():
            size = 2 * shape[0] * shape[1]
            offsets = [end, end + size]
            header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
            where[f"{name}.weight"], end = file, end + size
        text = json.dumps(header).encode()
        with (folder / "base" / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + end)
    (folder / "base" / "config.json").write_text('{"tie_word_embeddings": false}')
    index = folder / "base" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    sites = {name: shape for modules in shards for name, shape in modules.items()}
    del sites["model.embed_tokens"]
    numbers = _adapters(folder, sites)
    return folder / "base", numbers


def _adapters(folder: Path, sites: dict[str, tuple[int, int]]) -> int:
    """Returns a LoRA and a LoHa for all sites including the head, and their bytes."""
    from safetensors.numpy import save_file

    rng, size = np.random.default_rng(0), 0
    lora, loha = {}, {}
    for site, (rows, cols) in sites.items():
        key = f"base_model.model.{site}"
        for name, shape in {"lora_A": (8, cols), "lora_B": (rows, 8)}.items():
            lora[f"{key}.{name}.weight"] = rng.standard_normal(shape, np.float32)
        for half in ("w1", "w2"):
            for name, shape in {f"{half}_a": (rows, 4), f"{half}_b": (4, cols)}.items():
                loha[f"{key}.hada_{name}"] = rng.standard_normal(shape, np.float32)
    configs = {"lora": {"peft_type": "LORA", "r": 8, "lora_alpha": 8}, "loha": {}}
    configs["loha"] = {"peft_type": "LOHA", "r": 4, "alpha": 4}
    for name, tensors in {"lora": lora, "loha": loha}.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(json.dumps(configs[name]))
        save_file(tensors, folder / name / "adapter_model.safetensors")
        size += sum(tensor.nbytes for tensor in tensors.values())
    return size


def memory(options: argparse.Namespace) -> None:
    """Merges one large model."""
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        base, adapters = sparse(folder, options.gigabytes)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        seconds, peak = timed(folder, "jaxmix", ("lora", "loha"), "bfloat16")
        largest = 2 * 128256 * 4096
        print(
            f"{size / 1e9:.1f} GB in bfloat16, largest tensor {largest / MEGA:.0f} MB, adapters "
            f"{adapters / MEGA:.0f} MB: {seconds:.0f} s, peak {peak:.0f} MB, with the adapters"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--gigabytes", type=float, default=9)
    parser.add_argument("--dir", help="where to put the files")
    options = parser.parse_args()
    (memory if options.memory else compare)(options)


if __name__ == "__main__":
    main()
