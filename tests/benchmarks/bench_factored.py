"""Compares factored with the base alone, and PEFT's unmerged forward with torch's, in one run.

    python -m tests.benchmarks.bench_factored [--rounds 9] [--layers 2] [--only NAME]

A Llama-like stack without attention, adapters on all seven linear layers. For each mix and number
of tokens: the time that the adapters add to the base's forward, in jaxmix (by the operators, and as
``how="auto"`` chooses) and in PEFT; and the largest error against the composed weights. Medians of
alternating runs. Needs torch and peft.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmix

from .bench_compose import HIDDEN, peft_model, seconds, torch_model, weights

WORDS = {
    "LoRA": ("lora",),
    "LoHa": ("loha",),
    "LoKr": ("lokr",),
    "OFT": ("oft",),
    "LoRA, LoHa, LoKr": ("lora", "loha", "lokr"),
    "OFT, LoRA": ("oft", "lora"),
    "LoRA, OFT": ("lora", "oft"),
    "LoRA, LoHa, LoKr, OFT": ("lora", "loha", "lokr", "oft"),
}
TOKENS = (1, 128, 1024)


def forward(linear: Any, x: Any, layers: int) -> Any:
    """Runs the stack with a function that applies a linear layer by its name."""
    for i in range(layers):
        own = f"layers.{i}."
        q, k, v = (linear(f"{own}self_attn.{name}_proj", x) for name in "qkv")
        x = x + linear(f"{own}self_attn.o_proj", q * k + v)
        gate, up = linear(f"{own}mlp.gate_proj", x), linear(f"{own}mlp.up_proj", x)
        x = x + linear(f"{own}mlp.down_proj", gate * up)
        x = x / (1 + abs(x))
    return x


def rows(name: str, layers: int, rounds: int) -> list[list[str]]:
    """Returns the table's rows for one mix."""
    import torch

    word, params = WORDS[name], weights(layers)
    with tempfile.TemporaryDirectory() as temporary:
        theirs = peft_model(params, word, Path(temporary))
        found = sorted(Path(temporary).iterdir(), key=lambda path: int(path.name[-1]))
        adapters = [jaxmix.load(path, name=path.name) for path in found]
    plain = torch_model(params)
    base = {key: jnp.asarray(value) for key, value in params.items()}
    leaves = jaxmix.attach(base, adapters)
    composed = jaxmix.compose(base, adapters)

    def ours(tree: Any, x: Any) -> Any:
        return forward(lambda site, x: x @ tree[f"{site}.weight"].T, x, layers)

    runs: dict[str, Any] = {"base": jax.jit(ours)}
    runs |= {how: jax.jit(jaxmix.factored(ours, how)) for how in ("factored", "auto", "dense")}
    table = []
    for tokens in TOKENS:
        x = np.random.default_rng(0).standard_normal((tokens, HIDDEN), np.float32)
        tensor = torch.from_numpy(x)
        with torch.no_grad():
            want = np.asarray(runs["base"](composed, x))
            works = {how: (lambda how=how: runs[how](leaves, x)) for how in list(runs)[1:]}
            works["base"] = lambda: runs["base"](base, x)
            inner = theirs.base_model.model
            works["peft"] = lambda: forward(lambda s, x: inner.get_submodule(s)(x), tensor, layers)
            works["torch"] = lambda: forward(lambda s, x: plain.get_submodule(s)(x), tensor, layers)
            errors = [np.abs(np.asarray(works[how]()) - want).max() for how in ("factored", "auto")]
            times: dict[str, list[float]] = {key: [] for key in works}
            for _ in range(rounds):
                for key, work in works.items():
                    times[key].append(seconds(work))
        ms = {key: 1000 * median(own) for key, own in times.items()}
        over = [f"{ms[how] / ms['base'] - 1:+.0%}" for how in ("factored", "auto", "dense")]
        peft = f"{ms['peft'] / ms['torch'] - 1:+.0%}"
        cells = [name, str(tokens), f"{ms['base']:.2f}", *over, f"{ms['torch']:.2f}", peft]
        table.append([*cells, f"{max(errors) / np.abs(want).max():.0e}"])
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--only", choices=WORDS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    head = "adapters|tokens|base ms|factored|auto|dense|torch's base ms|PEFT unmerged|error"
    print(f"| {head.replace('|', ' | ')} |\n{'| --- ' * 9}|")
    for name in [args.only] if args.only else WORDS:
        for row in rows(name, args.layers, args.rounds):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
