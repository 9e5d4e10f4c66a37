"""`jaxmix.combine` of LoRAs matches PEFT's `add_weighted_adapter`, layer by layer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

import jaxmix
from jaxmix import Adapter, combine, compose
from jaxmix.combining import formulas

from ..goldens.nets import Layer, Net
from ..messages import full_text
from ..uncompiled import uncompiled
from .harness import build, difference, exact, save_adapter, state

NET: Net = (
    Layer("emb", "embedding", (11, 8)),
    Layer("layers.0.lin", "linear", (12, 20)),
    Layer("layers.1.gpt", "gpt2", (20, 14)),
    Layer("layers.2.conv", "conv2d", (4, 6), (3, 2)),
    Layer("layers.3.lin", "linear", (9, 5)),
)
SITES = [layer.name for layer in NET]
# Every layer is in at least one adapter, and some are not in all.
TARGETS = (SITES, SITES[:4], [SITES[0], *SITES[2:]])
ALPHAS = (5, 9, 3)
EQUAL, UNEQUAL = (4, 4, 4), (3, 5, 2)
WEIGHTS = {"positive": [0.7, 1.3, 0.4], "negative": [0.7, -1.3, 0.4]}
PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("linear", "cat", "svd", *PRUNING, *(f"{name}_svd" for name in PRUNING))

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def model() -> Any:
    return build(NET)


def config(i: int, rank: int) -> peft.LoraConfig:
    """Returns a LoRA of some layers, the second with rslora."""
    return peft.LoraConfig(
        r=rank, lora_alpha=ALPHAS[i], target_modules=TARGETS[i], use_rslora=i == 1
    )


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[Path]]:
    """Saves three LoRAs of equal ranks and three of unequal ranks with PEFT."""
    saved = {}
    for ranks in (EQUAL, UNEQUAL):
        root = tmp_path_factory.mktemp("combine")
        saved[ranks] = [root / str(i) for i in range(len(ranks))]
        for i, rank in enumerate(ranks):
            save_adapter(model, config(i, rank), saved[ranks][i], seed=10 * rank + i)
    return saved


def peft_deltas(
    model: Any, folders: list[Path], weights: list[float], **options: Any
) -> dict[str, Any]:
    """Returns what PEFT's combined adapter adds to each layer's weight."""
    names = [f"a{i}" for i in range(len(folders))]
    with exact():
        adapted: Any = None
        for name, folder in zip(names, folders, strict=True):
            config = peft.PeftConfig.from_pretrained(str(folder))
            if adapted is None:
                adapted = peft.get_peft_model(copy.deepcopy(model), config, name)
            else:
                adapted.add_adapter(name, config)
            tensors = load_file(folder / "adapter_model.safetensors")
            peft.set_peft_model_state_dict(adapted, tensors, adapter_name=name)
        adapted.add_weighted_adapter(names, weights, "merged", **options)
        modules = dict(adapted.base_model.model.named_modules())
        return {site: modules[site].get_delta_weight("merged").numpy() for site in SITES}


def load_adapters(folders: list[Path]) -> list[Adapter]:
    """Returns jaxmix's adapters of these folders, with sites in the network's order."""
    adapters = [jaxmix.load(folder) for folder in folders]
    return [
        Adapter(
            {site: adapter.updates[site] for site in SITES if site in adapter.updates},
            name=adapter.name,
        )
        for adapter in adapters
    ]


def jaxmix_deltas(model: Any, adapters: list[Adapter], **options: Any) -> dict[str, np.ndarray]:
    """Returns what jaxmix's combined adapter adds to each layer's weight."""
    params = state(model)
    with jax.enable_x64(True), uncompiled():
        out = compose(params, combine(adapters, **options))
    return {s: np.asarray(out[f"{s}.weight"]) - params[f"{s}.weight"] for s in SITES}


def largest_difference(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    return max(difference(actual[site], expected[site]) for site in SITES)


def use_torch_masks(monkeypatch: pytest.MonkeyPatch, method: str) -> list[np.ndarray]:
    """Makes jaxmix use the masks that torch draws, in the order of the sites."""
    masks: list[np.ndarray] = []
    draw = torch.bernoulli

    def bernoulli(*args: Any, **options: Any) -> torch.Tensor:
        mask = draw(*args, **options)
        masks.append(mask.numpy())
        return mask

    def mask(key: Any, density: float, tensor: Any) -> Any:
        if not tensor.any():  # a missing adapter's, which PEFT skips
            return tensor > 0
        if not method.endswith("_svd") and masks and tensor.shape in ((4, 8), (11, 4)):
            # An embedding's A is our B: PEFT draws the masks of all A's first.
            shape = (8, 4) if tensor.shape == (4, 8) else (4, 11)
            i = next(i for i, entry in enumerate(masks) if entry.shape == shape)
            return masks.pop(i).T.astype(bool)
        flat_mask = masks.pop(0)
        flat_mask = flat_mask.reshape(len(flat_mask), -1)
        return (flat_mask if flat_mask.shape == tensor.shape else flat_mask.T).astype(bool)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    monkeypatch.setattr(formulas, "_mask", mask)
    return masks


@pytest.mark.one_of(3)
@pytest.mark.parametrize("signs", WEIGHTS)
@pytest.mark.parametrize("method", METHODS)
def test_combine_matches_peft(
    method: str,
    signs: str,
    model: Any,
    folders: Any,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
) -> None:
    """Three LoRAs match on all layer types, except for PEFT's ties with negative weights."""
    weights = WEIGHTS[signs]
    masks = use_torch_masks(monkeypatch, method)
    density = {"density": 0.6} if method.startswith(PRUNING) else {}
    truth = peft_deltas(model, folders[EQUAL], weights, combination_type=method, **density)
    key = {"key": jax.random.key(0)} if "dare" in method else {}
    actual = jaxmix_deltas(
        model, load_adapters(folders[EQUAL]), method=method, weights=weights, **density, **key
    )
    error = largest_difference(actual, truth)
    assert not masks
    if "ties" in method and signs == "negative":
        assert error > 1e-2  # PEFT's negated adapter votes with entries that it does not add
        return
    record_property("parity_cases", len(SITES))
    record_property("parity_worst", error)
    assert error < 1e-12


@pytest.mark.one_of(3)
@pytest.mark.parametrize("rank", [None, 2, 4])
@pytest.mark.parametrize("method", ["cat", "svd", "magnitude_prune_svd", "ties_svd"])
def test_unequal_ranks_match_peft(method: str, rank: int | None, model: Any, folders: Any) -> None:
    """The methods for which PEFT accepts LoRAs of unequal ranks match."""
    weights = WEIGHTS["positive"]
    if method == "cat" and rank:
        return
    density = {"density": 0.6} if method.startswith(PRUNING) else {}
    truth = peft_deltas(
        model, folders[UNEQUAL], weights, combination_type=method, svd_rank=rank, **density
    )
    adapters = load_adapters(folders[UNEQUAL])
    for params in (None, state(model)):
        options = {"rank": rank, "params": params, **density}
        actual = jaxmix_deltas(model, adapters, method=method, weights=weights, **options)
        assert largest_difference(actual, truth) < 1e-12


@pytest.mark.parametrize("method", ["ties", "ties_svd"])
def test_majority_sign_by_frequency_matches_peft(method: str, model: Any, folders: Any) -> None:
    weights, options = WEIGHTS["positive"], {"density": 0.8}
    truth = peft_deltas(
        model,
        folders[EQUAL],
        weights,
        combination_type=method,
        majority_sign_method="frequency",
        **options,
    )
    adapters = load_adapters(folders[EQUAL])
    actual = jaxmix_deltas(
        model, adapters, method=method, weights=weights, majority_sign="frequency", **options
    )
    assert largest_difference(actual, truth) < 1e-12
    actual_by_total = jaxmix_deltas(model, adapters, method=method, weights=weights, **options)
    assert largest_difference(actual_by_total, truth) > 1e-2


@pytest.mark.parametrize("method", [name for name in METHODS if "svd" not in name[:4]])
def test_unequal_ranks_are_refused_by_both(method: str, model: Any, folders: Any) -> None:
    """Methods that add up factors need equal ranks, in PEFT and in jaxmix."""
    if method == "cat" or method.endswith("_svd"):
        return
    density = {} if method == "linear" else {"density": 0.6}
    with pytest.raises(ValueError, match="must have the same r value"):
        peft_deltas(model, folders[UNEQUAL], [1.0, 1.0, 1.0], combination_type=method, **density)
    key = {"key": jax.random.key(0)} if "dare" in method else {}
    by_svd = "svd" if method == "linear" else f"{method}_svd"
    message = (
        f"the method {method!r} adds the factors of LoRAs, but these have different ranks:\n"
        "  emb: [3, 5, 2]\n  layers.0.lin: [3, 5]\n  layers.1.gpt: [3, 5, 2]\n"
        "  layers.2.conv: [3, 5, 2]\n  layers.3.lin: [3, 2]\n"
        f"Expected equal ranks. Use {by_svd!r} or 'cat' instead."
    )
    with pytest.raises(jaxmix.errors.AdapterError, match=full_text(message)):
        combine(load_adapters(folders[UNEQUAL]), method=method, **density, **key)
