"""Probes of PEFT's mixed model: each function runs PEFT and describes what it did."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig
from peft import ShiraConfig as Shira
from torch import nn

from ..goldens.nets import MLP, Layer, Net
from .harness import TorchNet, build, difference, forward, inputs, mixed_model, save_adapter, state
from .layer_cases import NETS

__all__ = ["PROBES"]

Spec = tuple[type[PeftConfig], dict[str, Any]]
_LORA: Spec = (LoraConfig, {"r": 3, "lora_alpha": 5})
_LOHA: Spec = (LoHaConfig, {"r": 2, "alpha": 3})
_OFT: Spec = (OFTConfig, {"oft_block_size": 4})


def _saved(net: Net, folder: Path, *specs: Spec) -> tuple[TorchNet, list[Path]]:
    """Returns a network, and folders of these adapters on all of its layers, saved by PEFT."""
    model, folders = build(net), []
    for i, (config_class, options) in enumerate(specs):
        folders.append(folder / f"{i}")
        targets: dict[str, Any] = {"target_modules": [layer.name for layer in net], **options}
        save_adapter(model, config_class(**targets), folders[-1], seed=i)
    return model, folders


def _grouped_convolution(folder: Path) -> str:
    model, folders = _saved(NETS["conv2d_groups"], folder, (LoraConfig, {"r": 2}))
    mixed_model(model, folders).merge_and_unload()
    return "merges"


def _loads(net: Net, folder: Path, *specs: Spec) -> str:
    model, folders = _saved(net, folder, *specs)
    mixed_model(model, folders)
    return "loads"


def _from_pretrained_oft(folder: Path) -> str:
    model, folders = _saved(MLP, folder, _OFT)
    peft.PeftMixedModel.from_pretrained(copy.deepcopy(model), str(folders[0]), "a")
    return "loads"


def _convolution_at_zero(folder: Path) -> str:
    """Runs OFT at its zero initialization, which should change nothing."""
    net = NETS["conv2d_square"]
    model, x = build(net), inputs(net)
    config = OFTConfig(target_modules=["one"], oft_block_size=3)
    adapted = peft.get_peft_model(copy.deepcopy(model), config, mixed=True).eval()
    error = difference(forward(adapted, x), forward(model, x))
    return f"at zero init the forward is off by {error:.2f}"


def _rotation_order(folder: Path, net: Net) -> str:
    """Returns which rotation is applied to the weight first."""
    model, folders = _saved(net, folder, (OFTConfig, {"oft_block_size": 2}), _OFT)
    x = inputs(net)
    truth = forward(mixed_model(model, folders), x)
    merged_one_by_one = copy.deepcopy(model)
    for folder in folders:
        merged_one_by_one = mixed_model(merged_one_by_one, [folder]).merge_and_unload()
    same = difference(forward(merged_one_by_one, x), truth) < 1e-10
    return f"the adapter loaded {'first' if same else 'last'} rotates the weight first"


def _bias_dropped(folder: Path) -> str:
    """Loads saved biases whose keys the wrapped model lacks, which PEFT does not report."""
    model, folders = _saved(MLP, folder, _LOHA, (LoraConfig, {"r": 2, "bias": "all"}))
    try:
        mixed_model(model, folders)
    except ValueError as error:
        assert "base_layer.bias" in str(error)
        return "the trained biases are silently dropped"
    return "loads"


def _bias_then_dora(folder: Path) -> str:
    bias = (LoraConfig, {"r": 2, "lora_bias": True})
    dora = (LoraConfig, {"r": 3, "use_dora": True})
    model, folders = _saved(MLP, folder, bias, dora)
    mixed, x = mixed_model(model, folders), inputs(MLP)
    merged = difference(
        forward(mixed.merge_and_unload(), x), forward(mixed_model(model, folders), x)
    )
    return f"DoRA scales the earlier bias in the forward; merged differs by {merged:.2f}"


def _restored(folder: Path) -> str:
    model, folders = _saved(MLP, folder, _LORA)
    mixed = mixed_model(model, folders)
    before = {k: v.clone() for k, v in mixed.state_dict().items()}
    mixed.merge_adapter()
    mixed.unmerge_adapter()
    same = all(torch.equal(before[k], v) for k, v in mixed.state_dict().items())
    return "bits restored" if same else "bits not restored"


def _soft_name(folder: Path) -> str:
    """Merges a module whose name contains PEFT's prefix, which `merge_and_unload` skips."""
    return _unloaded(
        (Layer("soft_lin", "linear", (12, 20)), Layer("head", "linear", (20, 6))), folder
    )


def _unloaded(net: Net, folder: Path) -> str:
    model, folders = _saved(net, folder, _LORA)
    merged = mixed_model(model, folders).merge_and_unload()
    unmerged = [
        n for n, m in merged.named_modules() if hasattr(m, "merge_adapter") or "lora_A" in n
    ]
    return f"left unmerged: `{net[0].name}`" if unmerged else "merged"


def _tied(folder: Path) -> str:
    """Merges into a tied embedding, which changes the head too."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model: Any = transformers.LlamaForCausalLM(config).eval()
    head = model.lm_head.weight.clone()
    lora = LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora, mixed=True).eval()
    tokens = inputs((Layer("one", "embedding", (30, 16)),))
    truth = forward(adapted, tokens)
    merged: Any = adapted.merge_and_unload()
    head_changed = not torch.equal(head, merged.lm_head.weight)
    error = difference(forward(merged, tokens), truth)
    outcome = "changed too" if head_changed else "kept"
    return f"lm_head {outcome}: merged differs by {error:.1g} times the output"


def _all_linear(folder: Path) -> str:
    """Adds two adapters with `all-linear`, which excludes the head only for the first one."""
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    mixed = peft.get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"), mixed=True)
    mixed.add_adapter("b", LoHaConfig(r=2, target_modules="all-linear"))
    is_adapted = any("lm_head" in name and "hada" in name for name, _ in mixed.named_parameters())
    return f"the second adapter {'also hits' if is_adapted else 'leaves out'} lm_head"


def _replicated(folder: Path) -> str:
    config = LoraConfig(r=2, target_modules=["lin"], layer_replication=[(0, 3), (1, 3)])
    mixed = peft.get_peft_model(build(MLP), config, mixed=True)
    count = sum(isinstance(m, nn.Linear) and "base_layer" in n for n, m in mixed.named_modules())
    return f"ignored: {count} layers stay {len(MLP)}" if count == len(MLP) else f"{count} layers"


def _pruned(folder: Path) -> str:
    pattern = {"one.lora_E": [True, False], "two.lora_E": [False, True]}
    options = {"init_r": 2, "total_step": 10, "rank_pattern": pattern}
    return _loads(NETS["linear"], folder, (AdaLoraConfig, options))


def _pissa(folder: Path) -> str:
    model = build(MLP)
    before = state(model)["layers.0.lin.weight"]
    config = LoraConfig(r=2, target_modules=["lin"], init_lora_weights="pissa")
    mixed = peft.get_peft_model(copy.deepcopy(model).float(), config, mixed=True)
    after = mixed.base_model.model.layers.get_submodule("0.lin").base_layer.weight
    return f"the base weight moves by {abs(after.numpy() - before).max():.2f} at load"


def _saves(folder: Path) -> str:
    model, folders = _saved(MLP, folder, _LORA, _LOHA)
    mixed_model(model, folders).save_pretrained(str(folder / "mixed"))
    return "saves"


def _kron_rank_one(folder: Path) -> str:
    options = {"r": 1, "use_effective_conv2d": True}
    model, folders = _saved(NETS["conv1d"], folder, (LoKrConfig, options))
    forward(mixed_model(model, folders), inputs(NETS["conv1d"]))
    return "runs"


_SAVE = {"target_modules": ["layers.0.lin"], "modules_to_save": ["layers.2.lin"], "r": 2}

PROBES: list[tuple[str, Callable[[Path], str], str]] = [
    ("LoRA, then SHiRA", lambda f: _loads(MLP, f, _LORA, (Shira, {"r": 1})), "any order"),
    ("`PeftMixedModel.from_pretrained` with OFT first", _from_pretrained_oft, "any order"),
    ("OFT, OFT on a linear layer", lambda f: _rotation_order(f, MLP),
     "`mix(a, b)` applies a first; `peft_stack([a, b])` is PEFT's order"),
    ("OFT, OFT on an embedding", lambda f: _rotation_order(f, NETS["embedding"][:1]),
     "the same; `peft_stack` does not reverse such runs"),
    ("OFT on Conv2d, k = 3", _convolution_at_zero, "the merged weight W·Rᵀ"),
    ("LoRA over LoHa on Conv2d", lambda f: _loads(NETS["conv2d"], f, _LOHA, _LORA), "any order"),
    ("LoRA on Conv2d with groups, merged", _grouped_convolution, "refused: A spans all groups"),
    ("LoRA with `lora_bias`, then DoRA", _bias_then_dora, "equal to the forward"),
    ("LoHa, then LoRA with `bias=\"all\"`", _bias_dropped,
     "the trained biases are applied"),
    ("two adapters with `modules_to_save`",
     lambda f: _loads(MLP, f, (LoraConfig, _SAVE), (LoHaConfig, _SAVE)), "the later one wins"),
    ("merge, then unmerge, one LoRA", _restored, "the base is never changed"),
    ("a module named `soft_lin`, merged", _soft_name, "names have no meaning"),
    ("LoRA on a tied embedding, merged", _tied, "an error that explains how to untie"),
    ("`all-linear` twice", _all_linear, "the file's keys determine the modules"),
    ("`layer_replication`", _replicated, "refused"),
    ("AdaLoRA with a `rank_pattern`", _pruned, "loaded; ranks come from the tensors"),
    ("`init_lora_weights=\"pissa\"`", _pissa, "as PEFT, given the base: `load(…, base=params)`"),
    ("LoKr, Tucker form of rank 1, on Conv1d", _kron_rank_one, "composed as on Conv2d"),
    ("saving a mix", _saves, "`jaxmix.save(mix, folder)`"),
]  # fmt: skip
