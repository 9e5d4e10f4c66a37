"""Errors for LoRA's rarer forms and the other five types: files that contradict themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError

from .folders import FORMS, SITE, Form, keyed, refused, save

S, C, U = ShapeError, CheckpointError, UnsupportedError


OLD = {"oft_R.weight": None}
BD = {"target_modules_bd_a": ["other"], "target_modules_bd_b": ["proj"], "nblocks": 4}
# The form, other fields, other shapes (None: absent), the error and its text.
BAD: dict[str, tuple[str, dict[str, Any], dict[str, Any], type[JaxmixError], str]] = {
    "dora's magnitude": (
        "dora",
        {},
        {"lora_magnitude_vector": (2, 3)},
        S,
        "lora_magnitude_vector has shape (2, 3), expected (out,)",
    ),
    "the bias of a LoRA": (
        "lora-bias",
        {},
        {"lora_B.bias": (4,)},
        S,
        "lora_B.bias has shape (4,), expected (6,)",
    ),
    "values without kasa": (
        "lora",
        {"kasa_config": {}},
        {"lora_diag": (2,)},
        C,
        "lora_diag is present, but kasa_config is off in the config",
    ),
    "kasa without values": (
        "lora",
        {"kasa_config": {"beta": 1e-4}},
        {},
        C,
        "lora_diag is missing, but kasa_config is on in the config",
    ),
    "blocks that are none": (
        "lora",
        {"use_bdlora": BD},
        {},
        S,
        "a factor of shape (6, 2) does not consist of 4 blocks",
    ),
    "blocks of inputs that are none": (
        "lora",
        {"use_bdlora": {"target_modules_bd_a": ["proj"], "nblocks": 3}},
        {},
        S,
        "a factor of shape (2, 4) does not consist of 3 blocks",
    ),
    "pissa of a convolution": (
        "lora-conv",
        {"init_lora_weights": "pissa"},
        {},
        U,
        "PEFT has no pissa for this layer. Save it as a plain LoRA",
    ),
    "olora of an embedding": (
        "lora-embedding",
        {"init_lora_weights": "OLoRA"},
        {},
        U,
        "PEFT has no olora for this layer. Save it as a plain LoRA",
    ),
    "adalora's rank": (
        "adalora",
        {"init_r": 3},
        {},
        S,
        "lora_A (2, 4), lora_B (6, 2), lora_E (2, 1), expected (3, in), (out, 3), (3, 1) by the",
    ),
    "adalora's mask": (
        "adalora",
        {"rank_pattern": {f"{SITE}.lora_E": [True, False]}},
        {},
        S,
        "expected (1, in), (out, 1), (1, 1) by the config",
    ),
    "loha with one core": (
        "loha-effective",
        {},
        {"hada_t2": None},
        C,
        "one of hada_t1 and hada_t2 is missing; found hada_t1 (2, 2, 3, 5), ",
    ),
    "lokr with a factor twice": (
        "lokr-low",
        {},
        {"lokr_w1": (2, 2)},
        C,
        "lokr_w2_b (2, 2): expected lokr_w1, or lokr_w1_a and lokr_w1_b",
    ),
    "lokr with half a pair": (
        "lokr-low",
        {},
        {"lokr_w2_b": None},
        C,
        "lokr_w2_a (3, 2): expected lokr_w2, or lokr_w2_a and lokr_w2_b",
    ),
    "lokr with a core beside a whole factor": (
        "lokr",
        {},
        {"lokr_t2": (2, 2, 3, 3)},
        C,
        "lokr_t2 (2, 2, 3, 3), lokr_w1 (2, 2), lokr_w2 (3, 2): lokr_t2 needs lokr_w2_a",
    ),
    "lokr's x with a kernel": (
        "lokr",
        {},
        {"lokr_w1": (2, 2, 3)},
        S,
        "lokr_w1 has shape (2, 2, 3), expected (rows, columns)",
    ),
    "lokr's y with four axes of a kernel": (
        "lokr",
        {},
        {"lokr_w2": (3, 2, 1, 1, 1, 1)},
        S,
        "lokr_w2 has shape (3, 2, 1, 1, 1, 1), expected (rows, columns)",
    ),
    "oft of no blocks": ("oft", {}, {"oft_R.weight": (2, 4)}, S, "expected (blocks, b(b − 1)/2)"),
    "oft's rescaling alone": (
        "oft",
        {},
        {**OLD, "oft_s": (6, 1)},
        C,
        "oft_s (6, 1): expected one of them",
    ),
    "old oft whose blocks are not square": (
        "oft",
        {},
        {**OLD, "oft_r": (2, 3, 2)},
        S,
        "oft_r (2, 3, 2), expected (blocks, b, b)",
    ),
    "old oft of shared blocks": (
        "oft",
        {"block_share": True},
        {**OLD, "oft_r": (2, 3, 3), "oft_s": (6, 1)},
        S,
        "oft_r (2, 3, 3), oft_s (6, 1), expected (1, b, b)",
    ),
    "old oft beside the new": (
        "oft",
        {},
        {"oft_r": (2, 3, 3), "oft_s": (6, 1)},
        S,
        "expected (blocks, b, b)",
    ),
    "old oft's rescaling": (
        "oft",
        {},
        {**OLD, "oft_r": (2, 2, 2), "oft_s": (6,)},
        S,
        "oft_r (2, 2, 2), oft_s (6,), expected oft_s (out, 1)",
    ),
    "shira's positions": (
        "shira",
        {},
        {"shira_indices": (2, 4)},
        S,
        "shira_indices (2, 4), shira_weight (5,), expected (N,) and (2, N)",
    ),
    "shira without values": (
        "shira",
        {},
        {"shira_weight": None},
        C,
        "shira_weight is missing; found",
    ),
}


@pytest.mark.parametrize(("form", "fields", "shapes", "kind", "message"), BAD.values(), ids=BAD)
def test_invalid_files_are_refused(form, fields, shapes, kind, message, tmp_path):
    all_shapes = {**FORMS[form].shapes, **shapes}
    tensors = {name: np.ones(shape, np.float32) for name, shape in all_shapes.items() if shape}
    text = refused(kind, save(tmp_path, form, keyed(tensors), **fields))
    assert f"{SITE}: " in text and message in text, text


def of_experts(folder: Path, *targets: str, **shapes: tuple[int, ...]) -> Path:
    """A LoRA of rank 2 for parameters: the shapes of A and B by the wrapper's position."""
    tensors = {}
    for place, (a, b) in shapes.items():
        path = "base_model.model.mlp" + {"outer": "", "inner": ".base_layer"}[place]
        tensors |= {f"{path}.lora_A.weight": np.ones(a), f"{path}.lora_B.weight": np.ones(b)}
    names: Any = list(targets)
    return save(
        folder, Form("LORA", {"r": 2, "lora_alpha": 3}, {}), tensors, target_parameters=names
    )


UP = ((6, 4), (5, 6))
UP_SAID = "lora_A.weight (6, 4), lora_B.weight (5, 6)"
EXPERTS: dict[str, tuple[Any, tuple[int, ...], type[JaxmixError], str]] = {
    "ranks": (
        ((5, 4), (5, 5)),
        (3, 5, 4),
        S,
        "lora_A.weight (5, 4), lora_B.weight (5, 5), expected (experts·2, in), (out, 2·experts)",
    ),
    "counts": (((6, 4), (5, 4)), (3, 5, 4), S, "expected (experts·2, in), (out, 2·experts)"),
    "of another base": (
        UP,
        (3, 5, 7),
        S,
        f"mlp.up: {UP_SAID} fit 3 experts (out, in) = (5, 4), but mlp.up has shape (3, 5, 7)",
    ),
    "of more experts": (UP, (4, 5, 4), S, "(out, in) = (5, 4), but mlp.up has shape (4, 5, 4)"),
    "square": (
        ((6, 4), (4, 6)),
        (3, 4, 4),
        U,
        "mlp.up: the experts' matrices are square, (4, 4), and neither the file nor the base "
        "states whether they are stored as (out, in) or (in, out). Pass the base's folder with its "
        "config.json",
    ),
}


@pytest.mark.parametrize(("tensors", "base", "kind", "message"), EXPERTS.values(), ids=EXPERTS)
def test_invalid_experts_are_refused(tensors, base, kind, message, tmp_path):
    folder = of_experts(tmp_path, "mlp.up", outer=tensors)
    assert message in refused(kind, folder, base={"mlp.up": np.ones(base)})
    if "experts·" not in message:
        assert "Pass the base: jaxmix.load(…, base=…)" in refused(C, folder)


@pytest.mark.parametrize(
    ("down", "option"), [((3, 5, 4), "several"), ((3, 4, 5), "none"), ((3, 9, 9), "none")]
)
def test_ambiguous_parameters(down, option, tmp_path):
    """Two parameters of a module have equal shapes, or none fits the factors."""
    folder = of_experts(tmp_path, "mlp.up", "mlp.down", outer=UP, inner=UP)
    base = {"mlp.down": np.ones(down), "mlp.up": np.ones((3, 5, 4))}
    assert refused(C, folder, base=base) == (
        f"{tmp_path}: the factors at mlp fit {option} of its parameters up, down with "
        f"shapes [(3, 5, 4), {down}], and the file does not assign them. Pass the base as a flat "
        f"dict in the model's own order, jaxmix.load(…, base={{name: array for name, array in "
        f"model.state_dict().items()}}), or train them as separate adapters."
    )


def test_parameters_in_the_order_of_the_model(tmp_path):
    """PEFT wraps the parameter that the module registers first innermost."""
    folder = of_experts(tmp_path, "mlp.down", "mlp.up", outer=UP, inner=UP)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.mlp.lora_A.weight"] *= 2
    save_file(tensors, path)
    base = {"mlp.up": np.ones((3, 5, 4)), "mlp.down": np.ones((3, 5, 4))}
    updates: Any = jaxmix.load(folder, base=base).updates
    assert [np.max(updates[f"mlp.{name}"].a) for name in ("up", "down")] == [1, 2]


@pytest.mark.parametrize("tokens_config", [[1, 2, 3], {"embed": [1]}, {"other": [1, 2]}])
def test_tokens_next_to_a_lora(tokens_config, tmp_path):
    """The numbers of rows and indices must agree, and the name must be the module's."""
    tensors = keyed({name: np.ones(shape) for name, shape in FORMS["lora"].shapes.items()})
    tensors["base_model.model.embed.token_adapter.trainable_tokens_delta"] = np.ones((2, 4))
    text = refused(S, save(tmp_path, "lora", tensors, trainable_token_indices=tokens_config))
    count = 3 if isinstance(tokens_config, list) else len(tokens_config.get("embed", ())) or "?"
    assert text == (
        f"{tmp_path}: embed has trainable_tokens_delta (2, 4), expected ({count}, D) by "
        "trainable_token_indices"
    )


def attention(rank: int) -> dict[str, np.ndarray]:
    """Factors of an attention with four inputs, and of a layer next to it."""
    tensors = {}
    for path, out, r in (("at", 12, rank), ("at.base_layer.out_proj", 4, rank), ("q", 4, 2)):
        tensors |= keyed(
            {"lora_A.weight": np.ones((r, 4)), "lora_B.weight": np.ones((out, r))}, path
        )
    return tensors


def test_patterns_do_not_apply_to_attention(tmp_path):
    """In PEFT the projections have the attention's rank and alpha, regardless of patterns."""
    fields = {"rank_pattern": {"at": 4, "out_proj": 3}, "alpha_pattern": {"at": 8, "out_proj": 5}}
    updates: Any = jaxmix.load(save(tmp_path, "lora", attention(4), **fields)).updates
    assert {site: update.scale for site, update in updates.items()} == {
        "at.in_proj_weight": 2.0,
        "at.out_proj": 2.0,
        "q": 1.5,
    }
    text = refused(S, save(tmp_path, "lora", attention(3), **fields))
    assert "at.out_proj: lora_A.weight has shape (3, 4), expected (4, ·)" in text
    assert "at.in_proj_weight: lora_A.weight has shape (3, 4), expected (4, ·)" in text


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"init_lora_weights": "olora"}, UnsupportedError, "no olora for"),
        ({"init_lora_weights": "pissa", "lora_alpha": 0}, CheckpointError, "lora_alpha is 0, by"),
    ],
)
def test_unreadable_even_with_a_base(fields, kind, message, tmp_path):
    """PEFT's OLoRA ignores a Conv1D's axis order, and an alpha of 0 divides."""
    base = {f"{SITE}.weight": np.ones((4, 6)), f"{SITE}.bias": np.ones(6)}
    with pytest.raises(kind, match=message):
        jaxmix.load(save(tmp_path, **fields), base=base)


def test_base_of_unknown_orientation(tmp_path):
    """A square weight of a file with the flag on, which PiSSA needs to know."""
    tensors = keyed({"lora_A.weight": np.ones((2, 4)), "lora_B.weight": np.ones((4, 2))})
    folder = save(tmp_path, tensors=tensors, init_lora_weights="pissa", fan_in_fan_out=True)
    base = {f"{SITE}.weight": np.eye(4), f"{SITE}.bias": np.ones(4)}
    assert (
        "whether the weight at layer.proj is stored as (out, in) or (in, out) is stated neither in "
        "a LORA adapter's file nor in the params given as base. Pass a base with its biases"
    ) in refused(C, folder, base=base)
    assert jaxmix.load(folder, base={f"{SITE}.weight": np.eye(4)}).sites == (SITE,)
