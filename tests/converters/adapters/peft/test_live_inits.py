"""Initializations that change the base: refused without it, right once PEFT has converted them."""

import copy
import json
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file

import jaxmix
from jaxmix.errors import UnsupportedError

from ....messages import full_text
from .folders import refused
from .made import Linears, composed, difference, quiet, reload, run, save

T: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": ["one", "two"]}
MORE: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"two": 2}, "alpha_pattern": {"one": 9}},
}
OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "corda": lambda: {"corda_config": CordaConfig(corda_method="kpm")},
    "lora_ga": lambda: {"lora_ga_config": LoraGAConfig()},
}
INITS = ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"]


def trained(init, options, folder):
    """An adapter as PEFT initializes and saves it, the trained adapter, and its model."""
    base = Linears()
    config = LoraConfig(**T, **options, init_lora_weights=init, **OWN.get(init, dict)())
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(5))
    with quiet():
        if init == "corda":
            preprocess_corda(base, config, run_model=lambda: base(x))
        if init == "lora_ga":
            preprocess_loraga(base, config, lambda: base(x).pow(2).sum().backward())
        model = peft.get_peft_model(base, config)
        model.save_pretrained(str(folder / "initial"))
        with torch.no_grad():
            for param in model.parameters():
                if param.requires_grad:
                    param.add_(0.1 * torch.randn(param.shape))
    return model.eval()


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("init", INITS)
def test_inits_that_change_the_base(init, options, tmp_path):
    """Converted, it equals PEFT's forward on the original base; otherwise the base is required."""
    model = trained(init, options, tmp_path)
    truth = run(model)
    with quiet():
        model.save_pretrained(str(tmp_path / "raw"))
        model.save_pretrained(
            str(tmp_path / "plain"),
            path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        )
    if init in ("pissa", "olora"):
        assert difference(run(composed(Linears(), tmp_path / "raw", base=True)), truth) < 2e-6
    else:
        message = refused(UnsupportedError, tmp_path / "raw")
        assert (
            f"init_lora_weights = {init!r}: it subtracted the product of the initial "
            "factors, which depend on data or chance, from the base's weights."
        ) in message
    assert difference(run(composed(Linears(), tmp_path / "plain")), truth) < 2e-6
    update: Any = jaxmix.load(tmp_path / "plain").updates["one"]
    assert update.a.shape == (6, 12)
    # The refusal is necessary: the factors on the original base are another model.
    config = json.loads((tmp_path / "raw" / "adapter_config.json").read_text())
    (tmp_path / "raw" / "adapter_config.json").write_text(
        json.dumps(config | {"init_lora_weights": True})
    )
    assert difference(run(composed(Linears(), tmp_path / "raw")), truth) > 1e-2


@pytest.mark.parametrize("init", ["pissa_niter_4"])
def test_remedy_of_the_error(init, tmp_path):
    """It needs only the trained folder and the base."""
    config = LoraConfig(**T, init_lora_weights=init)
    torch.manual_seed(3)
    save(Linears(), config, tmp_path / "raw")
    assert "for 'pissa' and 'olora', get_peft_model on the base creates it again" in refused(
        UnsupportedError, tmp_path / "raw"
    )
    model = reload(Linears(), tmp_path / "raw")
    truth = run(model)
    with quiet():
        second = peft.get_peft_model(
            Linears(), peft.PeftConfig.from_pretrained(str(tmp_path / "raw"))
        )
        second.save_pretrained(str(tmp_path / "again"))
        model.save_pretrained(
            str(tmp_path / "plain"),
            path_initial_model_for_weight_conversion=str(tmp_path / "again"),
        )
    assert difference(run(composed(Linears(), tmp_path / "plain")), truth) < 2e-6


def test_converted_dora_lacks_its_magnitude(tmp_path):
    """PEFT omits it from the file, which is detected."""
    model = trained("pissa", {"use_dora": True}, tmp_path)
    with quiet():
        model.save_pretrained(
            str(tmp_path / "plain"),
            path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        )
    problem = "lora_magnitude_vector is missing, but use_dora is on in the config"
    message = full_text(
        f"{tmp_path}/plain/adapter_model.safetensors: factors that are not a valid LORA update:\n"
        f"  one: {problem}\n  two: {problem}\nWas the file edited, or saved before the shards of "
        "its factors were gathered?"
    )
    with pytest.raises(jaxmix.JaxmixError, match=message):
        jaxmix.load(tmp_path / "plain")


def test_eva_does_not_change_the_base(tmp_path):
    """PEFT computes A from activations and sets ranks: the file fits the original base."""
    base = Linears()
    eva = EvaConfig(rho=2.0, adjust_scaling_factors=True)
    config = LoraConfig(**{**T, "r": 2}, init_lora_weights="eva", eva_config=eva)
    batch = torch.randn(64, 12, generator=torch.Generator().manual_seed(5))
    with quiet():
        model = peft.get_peft_model(copy.deepcopy(base), config)
        peft.initialize_lora_eva_weights(
            model,
            dataloader=[batch] * 4,
            forward_fn=lambda m, x: m(x),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
        for name, now in model.named_modules():
            if hasattr(now, "base_layer"):
                first: Any = base.get_submodule(name.removeprefix("base_model.model."))
                assert torch.equal(now.base_layer.weight, first.weight)
        with torch.no_grad():
            for param in model.parameters():
                if param.requires_grad:
                    param.add_(0.1 * torch.randn(param.shape))
        model.save_pretrained(str(tmp_path))
    truth = run(model.eval())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] == "eva"
    assert difference(run(composed(Linears(), tmp_path)), truth) < 2e-6
    assert difference(run(Linears()), truth) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("init", ["pissa", "olora", "osf"])
def test_16_bit_factors(init, dtype, tmp_path):
    """The subtracted part is not rounded to the file's dtype, since it nearly cancels."""
    targets = {"target_modules": ["one", "two"]}
    osf = peft.OSFConfig(**targets, effective_rank=8)
    config = osf if init == "osf" else LoraConfig(**T, init_lora_weights=init)
    with quiet():
        model = peft.get_peft_model(Linears(), config)
        with torch.no_grad():
            for param in model.parameters():
                if param.requires_grad:
                    param.add_(0.01 * torch.randn(param.shape))
        model.save_pretrained(str(tmp_path))
    path = str(tmp_path / "adapter_model.safetensors")
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    truth = run(reload(Linears(), tmp_path))
    assert difference(run(composed(Linears(), tmp_path, base=True)), truth) < 5e-6
