"""Creates the demo's assets: a small Llama, PEFT adapters for it, and PEFT's losses.

    OMP_NUM_THREADS=1 nice python -m demo.make_assets base adapters record

Needs torch, transformers and peft, and ``apt-get`` for the texts (see ``make_text.py``). A stage
or adapter whose files exist is skipped: delete its folder to create it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from demo.make_text import split_texts

ASSETS = Path(__file__).parent / "assets"
BASE_NAME = "jaxmix-demo-llama"
LENGTH = 256  # bytes of one window, and the model's context
STRIDE = 768  # from one evaluated window to the next
WINDOWS = 32

DEFINITION = (
    "text = the bytes of text/<domain>.txt; window k (0 <= k < windows) is "
    "text[stride*k : stride*k + window], fed alone from position 0, a byte being its token; the "
    "loss is the mean over all windows and positions 1..window-1 of -ln p(byte | bytes before it "
    "in the window), in float32 with the bfloat16 base weights cast to float32"
)
PROMPTS = {  # each occurs in its domain's held-out text
    "austen": '"I hardly know," replied Captain Wentworth, ',
    "bible": "And Naomi said unto ",
    "jargon": "mailing list n.\n\n",
    "devil": "LAWYER, n. ",
}

CONFIG: dict[str, Any] = dict(
    vocab_size=256,
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=512,
    max_position_embeddings=LENGTH,
    tie_word_embeddings=False,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """The text, PEFT config and training settings of one adapter."""

    domain: str
    config: Callable[[], peft.PeftConfig]
    steps: int
    lr: float


# LoRA changes attention only: if LoRA and LoHa both changed the MLPs, trained separately, their mix
# at strength 1 would be worse on the Bible than the base (2.00 against 1.93 nats per byte).
RECIPES = {
    "lora": Recipe(
        "bible",
        lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION),
        steps=300,
        lr=2e-3,
    ),
    "loha": Recipe(
        "jargon",
        lambda: peft.LoHaConfig(r=4, alpha=8, target_modules=LINEAR),
        steps=300,
        lr=4e-3,
    ),
    "oft": Recipe(
        "devil",
        lambda: peft.OFTConfig(
            r=0, oft_block_size=32, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"]
        ),
        steps=300,
        lr=4e-3,
    ),
}
MIXES = [order for n in (2, 3) for order in itertools.permutations(RECIPES, n)]


# ---------------------------------------------------------------- training


def batches(text: bytes, size: int, length: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Yields ``steps`` batches (size, length) of bytes from random positions of the text."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(data) - length, (size,), generator=generator)
        yield torch.stack([data[s : s + length] for s in starts.tolist()]).long()


def nats_per_byte(model: nn.Module, text: bytes) -> float:
    """Returns the loss that ``recorded.json`` defines, in the model's own precision."""
    rows = [list(text[STRIDE * k : STRIDE * k + LENGTH]) for k in range(WINDOWS)]
    total = 0.0
    with torch.no_grad():
        for window in torch.tensor(rows).split(8):
            logits = model(input_ids=window, use_cache=False).logits[:, :-1]
            total += float(
                nn.functional.cross_entropy(
                    logits.reshape(-1, 256), window[:, 1:].reshape(-1), reduction="sum"
                ).double()
            )
    return total / (WINDOWS * (LENGTH - 1))


def schedule(step: int, steps: int, warmup: int = 40) -> float:
    """Returns the fraction of the peak learning rate: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    data: Iterator[torch.Tensor],
    steps: int,
    held_out: dict[str, bytes],
) -> list[dict[str, Any]]:
    """Trains in bfloat16 autocast; returns a curve of step, seconds, training and held-out loss."""
    peaks = [[group["lr"] for group in opt.param_groups] for opt in optimizers]
    curve, start, recent = [], time.time(), []
    for step, window in enumerate(data):
        for opt, lrs in zip(optimizers, peaks, strict=True):
            for group, lr in zip(opt.param_groups, lrs, strict=True):
                group["lr"] = lr * schedule(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=window, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(
                logits.reshape(-1, 256).float(), window[:, 1:].reshape(-1)
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in optimizers:
            opt.step()
            opt.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            model.eval()
            row: dict[str, Any] = {"step": step + 1, "seconds": round(time.time() - start)}
            row["train"] = round(sum(recent) / len(recent), 4)
            row |= {name: round(nats_per_byte(model, t), 4) for name, t in held_out.items()}
            model.train()
            recent = []
            curve.append(row)
            print(row, flush=True)
    return curve


# ---------------------------------------------------------------- stages


def make_base(texts: dict[str, tuple[bytes, bytes]], steps: int = 2200) -> None:
    """Trains the base on Austen, with Muon for matrices and AdamW for the rest; saves bfloat16."""
    folder = ASSETS / "base"
    if (folder / "model.safetensors").exists():
        return
    torch.manual_seed(0)
    config: Any = LlamaConfig(**CONFIG)
    config._attn_implementation = "eager"
    model: Any = LlamaForCausalLM(config)
    inner = [p for name, p in model.named_parameters() if "layers." in name and p.ndim == 2]
    outer = [p for name, p in model.named_parameters() if "layers." not in name or p.ndim != 2]
    optimizers = [
        torch.optim.Muon(inner, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    train_text, held_out = texts["austen"]
    short = steps // 2  # windows of 128 bytes first, with half the cost of attention
    data = itertools.chain(
        batches(train_text, 32, LENGTH // 2, short, seed=1),
        batches(train_text, 16, LENGTH, steps - short, seed=2),
    )
    curve = train(model, optimizers, data, steps, {"austen": held_out})
    model.to(torch.bfloat16).save_pretrained(folder)
    save_curve("base", curve)


def load_base() -> LlamaForCausalLM:
    """Loads the saved, rounded base in float32."""
    model = LlamaForCausalLM.from_pretrained(
        ASSETS / "base", dtype=torch.float32, attn_implementation="eager"
    )
    model.name_or_path = BASE_NAME
    model.config._name_or_path = BASE_NAME
    return model


def make_adapter(name: str, texts: dict[str, tuple[bytes, bytes]]) -> None:
    """Trains one adapter on the frozen base and saves it with PEFT."""
    folder, recipe = ASSETS / name, RECIPES[name]
    if (folder / "adapter_model.safetensors").exists():
        return
    print(name, recipe.domain, flush=True)
    torch.manual_seed(0)
    model = peft.get_peft_model(load_base(), recipe.config())
    params = [p for p in model.parameters() if p.requires_grad]
    print(sum(p.numel() for p in params), "parameters", flush=True)
    optimizer = torch.optim.AdamW(params, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)
    train_text, held_out = texts[recipe.domain]
    data = batches(train_text, 16, LENGTH, recipe.steps, seed=3)
    curve = train(model, [optimizer], data, recipe.steps, {recipe.domain: held_out})
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card
    save_curve(name, curve)


def save_curve(name: str, curve: list[dict[str, Any]]) -> None:
    """Saves the training curve of one model to ``training.json``."""
    path = ASSETS / "training.json"
    curves = json.loads(path.read_text()) if path.exists() else {}
    curves[name] = curve
    lines = [
        f'  "{key}": [\n    ' + ",\n    ".join(json.dumps(row) for row in rows) + "\n  ]"
        for key, rows in curves.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def stack(order: tuple[str, ...]) -> Any:
    """Returns PEFT's mixed model with the saved adapters, loaded and active in this order."""
    model: Any = None
    for name in order:
        config = peft.PeftConfig.from_pretrained(str(ASSETS / name))
        if model is None:
            model = peft.get_peft_model(load_base(), config, adapter_name=name, mixed=True)
        else:
            model.add_adapter(name, config)
        # Load each at once: under a later adapter's wrapper PEFT would not find the keys.
        state = load_file(ASSETS / name / "adapter_model.safetensors")
        found = peft.set_peft_model_state_dict(model, state, adapter_name=name)
        if found.unexpected_keys:
            raise SystemExit(f"{name}: unexpected keys for PEFT: {found.unexpected_keys}")
    model.set_adapter(list(order))
    return model.eval()


def record(texts: dict[str, tuple[bytes, bytes]]) -> None:
    """Writes ``recorded.json``: PEFT's losses of the base, each adapter and each mix, in order."""

    def losses(model: nn.Module) -> dict[str, float]:
        return {
            domain: round(nats_per_byte(model, held_out), 6)
            for domain, (_, held_out) in texts.items()
        }

    rows: list[dict[str, Any]] = [{"order": [], "peft_forward": losses(load_base().eval())}]
    for order in [*((name,) for name in RECIPES), *MIXES]:
        model = stack(order)
        row: dict[str, Any] = {"order": list(order), "peft_forward": losses(model)}
        row["peft_merged"] = losses(model.merge_and_unload())
        rows.append(row)
        print(" -> ".join(order), row["peft_forward"], row["peft_merged"], flush=True)
    for domain, prompt in PROMPTS.items():
        if prompt.encode() not in texts[domain][1]:
            raise SystemExit(f"{domain}: the prompt {prompt!r} is not in the held-out text")
    head = {
        "evaluation": {
            "window": LENGTH,
            "stride": STRIDE,
            "windows": WINDOWS,
            "definition": DEFINITION,
        },
        "order": "the first is applied first; every adapter at strength 1",
        "peft_forward": "the unmerged forward of a PeftMixedModel, loaded in this order",
        "peft_merged": "the same after PEFT's own merge_and_unload",
        "versions": {m.__name__: m.__version__ for m in (torch, peft, transformers)},
        "prompts": PROMPTS,
        "adapters": {
            name: {"trained_on": recipe.domain, "steps": recipe.steps, "lr": recipe.lr}
            for name, recipe in RECIPES.items()
        },
    }
    text = json.dumps(head, indent=2)[:-2]
    text += ',\n  "losses": [\n    ' + ",\n    ".join(json.dumps(row) for row in rows)
    (ASSETS / "recorded.json").write_text(text + "\n  ]\n}\n")


def main() -> None:
    """Runs the stages given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=["base", "adapters", *RECIPES, "record"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "jaxmix-demo")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    texts = split_texts(args.work)
    (ASSETS / "text").mkdir(parents=True, exist_ok=True)
    for domain, (_, held_out) in texts.items():
        (ASSETS / "text" / f"{domain}.txt").write_bytes(held_out)
    for stage in args.stages:
        if stage == "base":
            make_base(texts)
        elif stage == "record":
            record(texts)
        else:
            for name in RECIPES if stage == "adapters" else [stage]:
                make_adapter(name, texts)


if __name__ == "__main__":
    main()
