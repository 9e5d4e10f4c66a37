"""UniLoRA files without indices, which are drawn for the base's modules in PEFT's order.

PEFT draws the indices again when it loads such a file, and its forward is the reference.
"""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists

import jaxmix
from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.targets import targeted
from jaxmix.errors import CheckpointError

from ..goldens.nets import Layer, Net
from ..messages import full_text
from .harness import TOLERANCE, TorchNet, build, difference, forward, inputs, save_adapter, state
from .nested import Form, nested, save_all
from .test_forms import record

Record = Callable[[str, object], None]


def _blocks(kind: str, path: str, names: tuple[str, str], count: int) -> Net:
    """Returns a network with two layers per block, from 8 to 12 and back, and a head."""
    sizes = (8, 12), (12, 8)
    return (
        *(
            Layer(f"{path}.{i}.{name}", kind, size)
            for i in range(count)
            for name, size in zip(names, sizes, strict=True)
        ),
        Layer("head", "linear", (8, 5)),
    )


# In each block ``up`` precedes ``down``; sorting reverses them, and 10 and 2.
_NETS: dict[str, Net] = {
    "linear": _blocks("linear", "model.layers", ("mlp.up", "mlp.down"), 3),
    "linear_short": _blocks("linear", "layers", ("up", "down"), 3),
    "linear_many": _blocks("linear", "layers", ("up", "down"), 11),
    "gpt2": _blocks("gpt2", "h", ("c_fc", "attn.c_proj"), 3),
}
_BOTH = ["up", "down"]
_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "list": ("linear", {"target_modules": _BOTH}),
    "list and head": ("linear", {"target_modules": ["head", *_BOTH]}),
    "regex": ("linear", {"target_modules": r"model\.layers\.[02]\.mlp\.(up|down)"}),
    "paths": ("linear", {"target_modules": ["model.layers.2.mlp.up", "model.layers.0.mlp.down"]}),
    "head": ("linear", {"target_modules": ["head"]}),
    "layers": ("linear", {"target_modules": _BOTH, "layers_to_transform": [0, 2]}),
    "one layer": ("linear", {"target_modules": _BOTH, "layers_to_transform": 1}),
    "layers by pattern": (
        "linear_short",
        {"target_modules": _BOTH, "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    ),
    "path and layers": (
        "linear",
        {"target_modules": ["head", "up"], "layers_to_transform": [2]},
    ),
    "many": ("linear_many", {"target_modules": ["up"], "theta_d_length": 300}),
    "many, both": ("linear_many", {"target_modules": _BOTH, "theta_d_length": 300}),
    "seed": ("linear", {"target_modules": _BOTH, "proj_seed": 7}),
    "more numbers than places": ("linear", {"target_modules": _BOTH, "theta_d_length": 999}),
    "bias": ("linear", {"target_modules": _BOTH, "bias": "unilora_only"}),
    "saved": ("linear", {"target_modules": ["head", *_BOTH], "modules_to_save": ["head"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_fc", "c_proj"], "fan_in_fan_out": True}),
    "gpt2, without fan_in_fan_out": ("gpt2", {"target_modules": ["c_proj", "c_fc"]}),
}


def _form(name: str, **extra: Any) -> Form:
    net, options = _FORMS[name]
    options = {"r": 3, "theta_d_length": 20, **options, **extra}
    # PEFT does not load an adapter's biases and saved modules around another wrapper.
    nests = not {"bias", "modules_to_save"} & set(options)
    return Form(
        f"unilora-{name}", net, peft.UniLoraConfig, options, is_nested=nests, needs_base=True
    )


def _jaxmix_model(model: TorchNet, folders: Iterable[Path], base: Any) -> TorchNet:
    """Returns a copy of the model with jaxmix's weights."""
    with jax.enable_x64(True):
        adapters = [jaxmix.load(folder, base=base) for folder in folders]
        weights = jaxmix.compose(state(model), adapters)
    composed_model = copy.deepcopy(model)
    composed_model.load_state_dict(
        {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    )
    return composed_model.eval()


@pytest.mark.parametrize("name", _FORMS)
def test_drawn_indices_match(name: str, tmp_path: Path, record_property: Record) -> None:
    """The composed weights match PEFT's forward, alone and between other adapters."""
    form = _form(name)
    assert not form.config().to_dict()["save_indices"]
    model, x = build(_NETS[form.net]), inputs(_NETS[form.net])
    if form.is_nested:
        folders = save_all(model, form, tmp_path)
        stacks = [(stack, forward(nested(model, stack), x)) for stack in (folders[1:2], folders)]
    else:
        stacks = [([tmp_path], forward(save_adapter(model, form.config(), tmp_path, seed=0), x))]
    errors = []
    for stack, truth in stacks:
        errors.append(difference(forward(_jaxmix_model(model, stack, state(model)), x), truth))
        assert difference(forward(model, x), truth) > 1e-2
    record(record_property, form, errors)
    assert max(errors) < TOLERANCE, errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_indices_and_scales_match_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    """Indices and scales equal PEFT's, with scales rounded to the weights' dtype."""
    form = _form("list and head")
    model = build(_NETS["linear"]).to(dtype)
    torch.manual_seed(0)
    adapted: Any = peft.get_peft_model(copy.deepcopy(model), form.config())
    adapted.save_pretrained(str(tmp_path))
    # torch tensors are passed unchanged, because NumPy has no bfloat16.
    updates = jaxmix.load(tmp_path, base=model.state_dict()).updates
    layers = {
        name: module for name, module in adapted.base_model.model.named_modules()
        if isinstance(module, peft.tuners.unilora.layer.UniLoraLayer)
    }  # fmt: skip
    assert list(updates) == list(layers) and len(layers) == 7
    for site, update in updates.items():
        for side in "AB":
            for array in ("indices", "scales"):
                expected = getattr(layers[site], f"unilora_{array}_{side}")["default"]
                actual = np.asarray(getattr(update, f"{side.lower()}_{array}"))
                np.testing.assert_array_equal(actual.astype(float), expected.double().numpy())


def test_written_adapter_has_its_indices(tmp_path: Path) -> None:
    """A saved or exported adapter needs no base, and PEFT computes the same with it."""
    form = _form("list and head")
    model, x = build(_NETS["linear"]), inputs(_NETS["linear"])
    save_adapter(model, form.config(), tmp_path / "first", seed=0)
    with jax.enable_x64(True):
        adapter = jaxmix.load(tmp_path / "first", base=state(model))
        jaxmix.save(adapter, tmp_path / "saved.safetensors")
        jaxmix.export_peft(adapter, tmp_path / "exported")
    truth = forward(nested(model, [tmp_path / "first"]), x)
    for path in (tmp_path / "saved.safetensors", tmp_path / "exported"):
        assert difference(forward(_jaxmix_model(model, [path], None), x), truth) < TOLERANCE
    assert difference(forward(nested(model, [tmp_path / "exported"]), x), truth) < TOLERANCE


def test_sorted_base_is_refused(tmp_path: Path) -> None:
    """The indices of a sorted base would be wrong, so it is refused."""
    form = _form("list")
    model, x = build(_NETS["linear"]), inputs(_NETS["linear"])
    save_adapter(model, form.config(), tmp_path, seed=0)
    base = state(model)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}: save_indices = false: the file has one vector and no "
            "modules. PEFT assigns its numbers to the modules in the "
            "model's own order, which the base must have; found the "
            "params given as base, whose names in model.layers.0 are "
            "sorted. Pass the model's leaves in the model's order, from "
            "torch: jaxmix.load(…, base={name: array for name, array in "
            "model.state_dict().items()}); jaxmix.save then writes the "
            "adapter with its indices. Or save it with PEFT with its "
            "indices: model.peft_config['default'].save_indices = True, "
            "and for each layer's unilora_indices_A, unilora_indices_B, "
            "unilora_scales_A and unilora_scales_B persistent = True."
        ),
    ):
        jaxmix.load(tmp_path, base=dict(sorted(base.items())))
    # A plausible order of another model: a module's leaves in PyTorch's order, ``down`` first.
    reordered = sorted(base, key=lambda name: name.replace("up", "x").rpartition(".")[0])
    misread = _jaxmix_model(model, [tmp_path], {name: base[name] for name in reordered})
    assert difference(forward(misread, x), forward(nested(model, [tmp_path]), x)) > 1e-2


_PATHS = [
    f"{top}{i}.{name}"
    for top in ("layers.", "model.layers.", "model.h.", "a.layers.1.experts.")
    for i in (0, 1, 12)
    for name in ("q", "attn.q", "attn.xq", "q.sub", "k")
] + ["q", "k", "head", "model.head", "model.head.q"]
_OPTIONS: list[dict[str, Any]] = [
    {"target_modules": ["q"]},
    {"target_modules": ["attn.q", "k"]},
    {"target_modules": ".*q"},
    {"target_modules": r"model\..*\.(q|k)|head"},
    {"target_modules": ["q", "head"], "modules_to_save": ["head"]},
    {"target_modules": ["q"], "modules_to_save": ["attn", "h.1"]},
    {"target_modules": ["q", "layers.0.k"], "layers_to_transform": [1]},
    {"target_modules": ["q"], "layers_to_transform": 12},
    {"target_modules": ["q"], "layers_to_transform": []},
    {"target_modules": ["q"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": ["h", "experts"]},
    {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": []},
]


@pytest.mark.parametrize("options", _OPTIONS, ids=str)
def test_targeted_modules_match_peft(options: dict[str, Any]) -> None:
    config = peft.UniLoraConfig(**copy.deepcopy(options))
    expected = [path for path in _PATHS if check_target_module_exists(config, path)]
    assert targeted(Config(Path("c"), "UNILORA", options), _PATHS) == expected
    assert expected
