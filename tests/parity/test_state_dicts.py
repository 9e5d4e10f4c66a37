"""A state dict saved during training loads like PEFT's own file."""

import copy
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import jaxmix

NAMES = ["one", "two"]
CONFIGS = {
    "adalora": peft.AdaLoraConfig(target_modules=NAMES, total_step=10, init_r=4, target_r=2),
    "adamss": peft.AdamssConfig(target_modules=NAMES, r=2, num_subspaces=2, subspace_rank=1),
    "beft": peft.BeftConfig(target_modules=NAMES),
    "boft": peft.BOFTConfig(target_modules=NAMES, boft_block_size=2),
    "c3a": peft.C3AConfig(target_modules=NAMES, block_size=4),
    "deft": peft.DeftConfig(target_modules=NAMES, r=2),
    "delora": peft.DeloraConfig(target_modules=NAMES, r=2),
    "dora": peft.LoraConfig(target_modules=NAMES, r=2, use_dora=True),
    "fourierft": peft.FourierFTConfig(target_modules=NAMES, n_frequency=5),
    "frod": peft.FrodConfig(target_modules=NAMES),
    "glora": peft.GloraConfig(target_modules=NAMES, r=2),
    "gralora": peft.GraloraConfig(target_modules=NAMES, r=4, gralora_k=2, hybrid_r=2),
    "hira": peft.HiraConfig(target_modules=[*NAMES, "tokens"], r=2),
    "hra": peft.HRAConfig(target_modules=NAMES, r=2),
    "ia3": peft.IA3Config(target_modules=NAMES, feedforward_modules=[]),
    "kasa": peft.LoraConfig(target_modules=NAMES, r=2, kasa_config=peft.KasaConfig()),
    "ln_tuning": peft.LNTuningConfig(target_modules=["norm"]),
    "loha": peft.LoHaConfig(target_modules=NAMES, r=2),
    "lokr": peft.LoKrConfig(target_modules=NAMES, r=2),
    "lora": peft.LoraConfig(target_modules=[*NAMES, "tokens"], r=2, lora_bias=False),
    "lora_bias": peft.LoraConfig(target_modules=NAMES, r=2, lora_bias=True),
    "miss": peft.MissConfig(target_modules=NAMES, r=2),
    "oft": peft.OFTConfig(target_modules=[*NAMES, "tokens"], oft_block_size=2, r=0),
    "osf": peft.OSFConfig(target_modules=NAMES, effective_rank=2),
    "peanut": peft.PeanutConfig(target_modules=NAMES, r=2),
    "psoft": peft.PsoftConfig(target_modules=NAMES, r=2),
    "pvera": peft.PveraConfig(target_modules=NAMES, r=2),
    "randlora": peft.RandLoraConfig(target_modules=NAMES, r=2),
    "road": peft.RoadConfig(target_modules=NAMES, group_size=4),
    "saved": peft.LoraConfig(target_modules=["one"], r=2, modules_to_save=["two", "norm"]),
    "saved_whole": peft.LoraConfig(target_modules=["one"], r=2, modules_to_save=["inner"]),
    "shira": peft.ShiraConfig(target_modules=NAMES, r=2),
    "supertuning": peft.SupertuningConfig(target_modules=NAMES, sparsity=0.8),
    "tinylora": peft.TinyLoraConfig(target_modules=NAMES, r=2),
    "tokens": peft.TrainableTokensConfig(target_modules=["tokens"], token_indices=[1, 5]),
    "tokens_beside": peft.LoraConfig(
        target_modules=["one"], r=2, trainable_token_indices={"tokens": [1, 5]}
    ),
    "unilora": peft.UniLoraConfig(target_modules=NAMES, r=2, theta_d_length=9, save_indices=True),
    "vblora": peft.VBLoRAConfig(target_modules=NAMES, r=2, num_vectors=9, vector_length=4),
    "vera": peft.VeraConfig(target_modules=NAMES, r=2),
    "waveft": peft.WaveFTConfig(target_modules=NAMES, n_frequency=5),
}


class Net(nn.Module):
    """A network with a module of each type that PEFT wraps."""

    def __init__(self) -> None:
        """Draws the weights from a seed."""
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(9, 8)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False))
        self.norm = nn.LayerNorm(8)
        self.one = nn.Linear(8, 12)
        self.two = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the modules in order."""
        return self.two(torch.tanh(self.one(self.norm(self.inner(self.tokens(x))))))


NAME = "style"


def save_adapter(folder: Path, config: peft.PeftConfig) -> tuple[Any, Path]:
    """Saves an adapter with random values; returns the model and PEFT's file."""
    rng = np.random.default_rng(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Net(), copy.deepcopy(config), NAME)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in key and "ranknum" not in key:
                parameter += torch.from_numpy(rng.normal(size=parameter.shape) * 0.1).float()
        model.save_pretrained(str(folder))
    return model, folder / NAME / "adapter_model.safetensors"


def params() -> dict[str, np.ndarray]:
    """Returns the network's leaves."""
    return {key: value.detach().numpy() for key, value in Net().state_dict().items()}


def state_dicts(model: Any, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the adapter's part of the state dict, as PEFT saves it, and the whole dict."""
    state = {k: x.clone() for k, x in model.state_dict().items() if "ranknum" not in k}
    adapter_tensors = {key: tensor for key, tensor in state.items() if f".{NAME}" in key}
    expected_keys = {key.replace(f".{NAME}", "") for key in adapter_tensors}
    expected_keys |= {key.removesuffix(".weight") for key in expected_keys}
    not_in_state_dict = {key: x for key, x in load_file(file).items() if key not in expected_keys}
    return not_in_state_dict | adapter_tensors, not_in_state_dict | state


@pytest.mark.parametrize("name", CONFIGS)
def test_adapter_name_in_keys_is_removed(name, tmp_path):
    """Keys with the adapter's name give the same adapter, also next to the model's other keys."""
    model, file = save_adapter(tmp_path, CONFIGS[name])
    expected = jaxmix.load(file.parent, base=params())
    adapter_tensors, whole_state_dict = state_dicts(model, file)
    save_file(adapter_tensors, file)
    loaded = jaxmix.load(file.parent, base=params())
    assert loaded.sites == expected.sites
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(ours, theirs)
    save_file(whole_state_dict, file)
    assert set(jaxmix.load(file.parent, base=params()).sites) >= set(expected.sites)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize("name", ["dora", "ln_tuning", "loha", "oft", "saved", "tokens_beside"])
def test_base_leaves_in_the_file_are_harmless(name, tmp_path):
    model, file = save_adapter(tmp_path, CONFIGS[name])
    base = params()
    expected = jaxmix.compose(base, jaxmix.load(file.parent))
    save_file(state_dicts(model, file)[1], file)
    loaded = jaxmix.compose(base, jaxmix.load(file.parent))
    for key, leaf in expected.items():
        assert np.allclose(loaded[key], leaf, atol=1e-6), key
    assert any(not np.allclose(expected[key], base[key]) for key in base)
