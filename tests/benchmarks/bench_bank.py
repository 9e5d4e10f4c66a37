"""Compares the bank with one call per mix, and with a batch in which all rows share one mix.

    python -m tests.benchmarks.bench_bank [--model stack|demo] [--tokens 1 16] [--rounds 9]

64 different mixes in a batch of 64, of four kinds: LoRA of rank 8, LoHa of rank 4, LoKr, OFT with
blocks of 32; or 64 mixes of two of these. The stack is a Llama of 8 layers and 100M float32
parameters, the demo's decoder one of 2.5M; adapters are at all seven linear layers, with different
random numbers. Both alternate in one run and the minimum times count; only ratios are meaningful on
a shared machine.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmix
from jaxmix.bank import Bank
from jaxmix.families import OFT, LoHa, LoKr, LoRA, Update
from jaxmix.models import Decoder, read_config

ROWS = 64
SITES = {
    **{f"self_attn.{name}_proj": ("hidden", "hidden") for name in "qkvo"},
    **{f"mlp.{name}_proj": ("inner", "hidden") for name in ("gate", "up")},
    "mlp.down_proj": ("hidden", "inner"),
}
SIZES = {"stack": (1024, 2816, 8, 16, 256), "demo": (192, 512, 6, 6, 256)}
KINDS = ("lora", "loha", "lokr", "oft")


def decoder(model: str) -> Decoder:
    """A Llama with random weights."""
    hidden, inner, layers, heads, vocab = SIZES[model]
    config = read_config(
        dict(model_type="llama", vocab_size=vocab, hidden_size=hidden, intermediate_size=inner)
        | dict(num_hidden_layers=layers, num_attention_heads=heads, tie_word_embeddings=False)
    )
    return Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


def update(kind: str, out: int, into: int, rng: np.random.Generator) -> Update:
    """One kind's factors."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / 32

    match kind:
        case "lora":
            return LoRA(draw(8, into), draw(out, 8), 1.0)
        case "loha":
            return LoHa(draw(out, 4), draw(4, into), draw(out, 4), draw(4, into), 1.0)
        case "lokr":
            (p, q), (m, n) = _factors(out), _factors(into)
            return LoKr((draw(p, m),), (draw(q, n),), 1.0)
        case _:
            return OFT(draw(into // 32, 32 * 31 // 2))


def _factors(size: int) -> tuple[int, int]:
    """Returns a size as a product of two similar factors."""
    first = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)
    return first, size // first


def adapter(kind: str, model: str, seed: int) -> jaxmix.Adapter:
    """An adapter at all linear layers."""
    sizes = dict(zip(("hidden", "inner"), SIZES[model][:2], strict=True))
    rng = np.random.default_rng(seed)
    updates = {
        f"model.layers.{layer}.{site}": update(kind, sizes[out], sizes[into], rng)
        for layer in range(SIZES[model][2])
        for site, (out, into) in SITES.items()
    }
    return jaxmix.Adapter(updates, name=f"{kind}{seed}")


def mixes(words: int, model: str) -> dict[str, Any]:
    """Returns 64 different mixes of this many adapters each."""
    kinds = list(itertools.combinations(KINDS, words))
    found = {}
    for number in range(ROWS):
        word = kinds[number % len(kinds)]
        parts = [adapter(kind, model, 2 * number + k) for k, kind in enumerate(word)]
        found[f"m{number}"] = parts[0] if words == 1 else jaxmix.mix(*parts)
    return found


def least(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the minimum time of each, run alternately."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def apply(params: Any, tokens: Any) -> Any:
    """Returns the logits."""
    return params(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="stack")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    base = decoder(options.model)
    order = np.random.default_rng(1).permutation(ROWS)
    for words in (1, 2):
        start = time.perf_counter()
        members = mixes(words, options.model)
        bank = Bank(members, base)
        jax.block_until_ready(jax.tree.leaves(bank))
        print(f"{options.model}, mixes of {words}: made in {time.perf_counter() - start:.1f} s")
        composed = jaxmix.compose(base, members["m0"])
        who = bank.who([f"m{i}" for i in order])
        plain = jax.jit(apply)
        many = jax.jit(lambda bank, params, tokens, who: bank(apply)(params, tokens, who))
        for count in options.tokens:
            tokens = np.random.default_rng(2).integers(0, SIZES[options.model][4], (ROWS, count))
            tokens = jnp.asarray(tokens, jnp.int32)
            calls = {
                "one row": lambda tokens=tokens: plain(composed, tokens[:1]),
                "shared": lambda tokens=tokens: plain(composed, tokens),
                "bank": lambda tokens=tokens: many(bank, base, tokens, who),
            }
            start = time.perf_counter()
            got = jax.block_until_ready(calls["bank"]())
            compiled = time.perf_counter() - start
            row = int(np.flatnonzero(order == 0)[0])
            error = float(jnp.abs(got[row] - plain(composed, tokens)[row]).max())
            best = least(calls, options.rounds)
            print(
                f"  {count:2} tokens a row: bank {1e3 * best['bank']:.1f} ms, shared "
                f"{1e3 * best['shared']:.1f}, one row {1e3 * best['one row']:.2f}; "
                f"{best['bank'] / best['shared']:.2f} times the shared batch, "
                f"{ROWS * best['one row'] / best['bank']:.1f} times the throughput of one call per "
                f"mix; first call {compiled:.0f} s; largest difference {error:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
