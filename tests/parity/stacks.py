"""Stacks of adapters: seven families, with four distinct adapters each."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import peft

from ..goldens.nets import MLP, Net
from .harness import TorchNet, save_adapter

__all__ = ["ADDITIVE_AND_OFT", "KINDS", "configs", "folders_of", "save_all", "stacks"]

ADDITIVE_AND_OFT = ("lora", "loha", "lokr", "adalora", "oft")
KINDS = (*ADDITIVE_AND_OFT, "shira", "dora")

# Every adapter targets the middle layer, so each stack has a site with all its adapters; the other
# layers differ, so most stacks have sites with some of them.
_TARGETS = ([0, 1, 2], [0, 1], [1, 2], [1])


def configs(kind: str) -> list[dict]:
    """Returns the four configs of a family, without targets."""
    pattern = "layers.1.lin"
    match kind:
        case "lora":
            return [
                {"r": 3, "lora_alpha": 6},
                {"r": 2, "lora_alpha": 5, "use_rslora": True},
                {
                    "r": 4,
                    "lora_alpha": 3,
                    "rank_pattern": {pattern: 5},
                    "alpha_pattern": {pattern: 7},
                },
                {"r": 1, "lora_alpha": 2, "lora_bias": True},
            ]
        case "dora":
            dora_options = [{}, {"use_rslora": True}, {"rank_pattern": {pattern: 3}}, {}]
            shapes = [(2, 3), (3, 4), (4, 6), (1, 2)]
            return [
                {"r": r, "lora_alpha": alpha, "use_dora": True, **options}
                for (r, alpha), options in zip(shapes, dora_options, strict=True)
            ]
        case "loha":
            return [
                {"r": 2, "alpha": 3},
                {"r": 3, "alpha": 4},
                {"r": 4, "alpha": 2, "rank_pattern": {pattern: 3}, "alpha_pattern": {pattern: 5}},
                {"r": 1, "alpha": 1},
            ]
        case "lokr":
            return [
                {"r": 2, "alpha": 4},
                {"r": 1, "alpha": 2, "decompose_both": True},
                {"r": 3, "alpha": 4, "decompose_factor": 2},
                {"r": 16, "alpha": 20},
            ]
        case "adalora":
            shapes = [(4, 8), (3, 5), (2, 0), (6, 7)]
            return [{"init_r": r, "lora_alpha": alpha, "total_step": 10} for r, alpha in shapes]
        case "oft":
            return [
                {"oft_block_size": 4},
                {"oft_block_size": 5, "use_cayley_neumann": False},
                {"r": 2, "oft_block_size": 0, "num_cayley_neumann_terms": 3},
                {"oft_block_size": 2, "block_share": True, "num_cayley_neumann_terms": 7},
            ]
        case "shira":
            return [{"r": r, "random_seed": i} for i, r in enumerate((1, 2, 3, 1))]
    raise KeyError(kind)


_CONFIG = {
    "lora": peft.LoraConfig,
    "dora": peft.LoraConfig,
    "loha": peft.LoHaConfig,
    "lokr": peft.LoKrConfig,
    "adalora": peft.AdaLoraConfig,
    "oft": peft.OFTConfig,
    "shira": peft.ShiraConfig,
}


def save_all(model: TorchNet, root: Path, net: Net = MLP, kinds: Iterable[str] = KINDS) -> None:
    """Saves all adapters of these families as ``root/<kind><number>``."""
    for kind in kinds:
        offset = KINDS.index(kind)
        for i, options in enumerate(configs(kind)):
            layers = _TARGETS[(i + offset) % len(_TARGETS)]
            config = _CONFIG[kind](target_modules=[net[layer].name for layer in layers], **options)
            save_adapter(model, config, root / f"{kind}{i}", seed=100 * offset + i)


def folders_of(stack: tuple[str, ...]) -> list[str]:
    """Returns the folder names of a stack: the n-th use of a family is its n-th adapter."""
    return [f"{kind}{stack[:i].count(kind)}" for i, kind in enumerate(stack)]


def stacks(kinds: Iterable[str], length: int) -> list[tuple[str, ...]]:
    """Returns all ordered stacks with repetition."""
    return list(itertools.product(kinds, repeat=length))
