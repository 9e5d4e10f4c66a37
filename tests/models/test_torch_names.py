"""PyTorch's names of leaves, and the names in files."""

from typing import Any

import pytest

from jaxmix.models.torch_names import is_transposed, match_names, torch_name

from . import tiny


def test_a_leaf_is_named_by_its_path() -> None:
    assert torch_name(("model", "layers", 0, "q_proj", "kernel")) == "model.layers.0.q_proj.weight"
    assert torch_name(("embeddings", "LayerNorm", "scale")) == "embeddings.LayerNorm.weight"
    assert torch_name(("wte", "embedding")) == "wte.weight"
    assert torch_name(("scale", "bias")) == "scale.bias"


@pytest.mark.parametrize(
    ("kind", "path", "transposed"),
    [
        ("llama", ("lm_head", "kernel"), True),
        ("llama", ("model", "embed_tokens", "embedding"), False),
        ("llama", ("model", "norm", "scale"), False),
        ("gpt2", ("transformer", "h", 0, "mlp", "c_fc", "kernel"), False),
        ("gpt2", ("lm_head", "kernel"), True),
        ("bert", ("pooler", "dense", "kernel"), True),
    ],
)
def test_kernels_of_linear_layers_are_transposed(
    kind: str, path: tuple[Any, ...], transposed: bool
) -> None:
    """GPT-2's layers are Conv1D, but its head is a Linear."""
    assert is_transposed(tiny.config(kind), path) == transposed


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        (
            "llama",
            {
                "model.norm.weight": "model.norm.weight",
                "model.layers.0.self_attn.rotary_emb.inv_freq": None,
                "score.weight": "score.weight",
            },
        ),
        (
            "gpt2",
            {
                "h.0.attn.c_attn.bias": "transformer.h.0.attn.c_attn.bias",
                "h.0.attn.bias": None,
                "transformer.h.1.attn.masked_bias": None,
                "transformer.wte.weight": "transformer.wte.weight",
                "lm_head.weight": "lm_head.weight",
            },
        ),
        (
            "bert",
            {
                "bert.embeddings.LayerNorm.gamma": "embeddings.LayerNorm.weight",
                "embeddings.LayerNorm.beta": "embeddings.LayerNorm.bias",
                "bert.embeddings.position_ids": None,
                "bert.pooler.dense.bias": "pooler.dense.bias",
                "cls.predictions.bias": "cls.predictions.bias",
            },
        ),
    ],
)
def test_names_in_files_become_those_of_the_tree(kind: str, files: dict[str, Any]) -> None:
    """Prefixes, old names and buffers; heads that the tree does not have are kept."""
    match = match_names(tiny.config(kind), files, ())
    assert match.files == {tree: file for file, tree in files.items() if tree is not None}
    assert match.duplicates == []


def test_modules_are_ignored_by_whole_names() -> None:
    """`cls` names neither `cls_2` nor a module within another."""
    names = ["cls.predictions.bias", "cls", "cls_2.bias", "bert.cls.bias"]
    match = match_names(tiny.config("bert"), names, ["cls"])
    assert match.files == {"cls_2.bias": "cls_2.bias", "cls.bias": "bert.cls.bias"}


def test_a_tensor_under_two_names_is_listed() -> None:
    names = ["wte.weight", "transformer.wte.weight", "transformer.wpe.weight"]
    match = match_names(tiny.config("gpt2"), names, ())
    assert match.duplicates == ["duplicate: wte.weight and transformer.wte.weight"]
    assert match.files["transformer.wte.weight"] == "wte.weight"
