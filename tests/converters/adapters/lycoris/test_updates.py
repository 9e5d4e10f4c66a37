"""LyCORIS tensors that form no update: the exact errors."""

from typing import Any

import numpy as np
import pytest

from jaxmix import JaxmixError, load
from jaxmix.errors import CheckpointError, ShapeError

from ..formats.files import changed, drawn, save
from ..peft.folders import refused

ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "none": (
        {"lora_up__weight": None},
        CheckpointError,
        "proj: lora_up.weight is missing; found alpha (), lora_down.weight (2, 4)",
    ),
    "alpha alone": (
        {"lora_up__weight": None, "lora_down__weight": None},
        CheckpointError,
        "proj: alpha () without the factors that they belong to",
    ),
    "two families": (
        {"hada_w1_a": drawn(2, 2)},
        CheckpointError,
        "factors of LoRA and LoHa at the same module",
    ),
    "ranks": (
        {"lora_up__weight": drawn(6, 3)},
        ShapeError,
        "lora_up.weight (6, 3), expected lora_up (out, 2, 1 …)",
    ),
    "axes": (
        {"lora_down__weight": drawn(4)},
        ShapeError,
        "expected lora_down with 2 to 5 axes",
    ),
    "a vector of alphas": (
        {"alpha": drawn(2)},
        ShapeError,
        "expected alpha with one element",
    ),
    "integers": (
        {"lora_up__weight": np.ones((6, 2), np.int32)},
        CheckpointError,
        "proj: lora_up.weight has a dtype of integers, in ",
    ),
    "a norm of the wrong form": (
        {"dora_scale": drawn(6)},
        ShapeError,
        "dora_scale has shape (6,), expected (out, 1 …) or (1, in, 1 …)",
    ),
    "a norm of some inputs": (
        {"dora_scale": drawn(1, 2)},
        ShapeError,
        "proj: dora_scale has shape (1, 2), expected (6, 1) or (1, 4)",
    ),
    "a bias of the wrong form": (
        {"diff_b": drawn(6, 1)},
        ShapeError,
        "diff_b has shape (6, 1), expected (out,)",
    ),
    "a norm alone": (
        {
            "lora_up__weight": None,
            "lora_down__weight": None,
            "alpha": None,
            "dora_scale": drawn(6, 1),
            "diff_b": drawn(6),
        },
        CheckpointError,
        "dora_scale without an update to normalize",
    ),
    "a norm over a difference": (
        {
            "lora_up__weight": None,
            "lora_down__weight": None,
            "alpha": None,
            "diff": drawn(6, 4),
            "dora_scale": drawn(6, 1),
        },
        CheckpointError,
        "dora_scale with Delta, expected LoRA, LoHa or LoKr",
    ),
    "a difference with a scale": (
        {"lora_up__weight": None, "lora_down__weight": None, "diff": drawn(6, 4)},
        CheckpointError,
        "alpha has no meaning with Delta",
    ),
    "a scale of no use": (
        {
            "lora_up__weight": None,
            "lora_down__weight": None,
            "weight": drawn(6),
            "on_input": np.asarray(1),
        },
        CheckpointError,
        "alpha has no meaning with IA3",
    ),
    "an empty difference": (
        {"lora_up__weight": None, "lora_down__weight": None, "alpha": None, "diff": drawn(0)},
        ShapeError,
        "expected diff (out, in, kernel …)",
    ),
    "a core": (
        {"lora_mid__weight": drawn(2, 2, 3)},
        ShapeError,
        "expected lora_mid (2, 2, kernel …) and lora_down (…, 1 …)",
    ),
    "a magnitude": (
        {"lora_magnitude_vector": drawn(4)},
        ShapeError,
        "expected lora_magnitude_vector (out,)",
    ),
    "a bias of lora_bias": (
        {"lora_up__bias": drawn(4)},
        ShapeError,
        "expected lora_up.bias (out,)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_tensors_are_reported(case, tmp_path):
    """The error names the site, what was found, and what was expected."""
    changes, kind, message = ERRORS[case]
    path = save(tmp_path / "x.safetensors", changed("lora", changes))
    error = refused(kind, path)
    assert error.startswith(f"{path}: tensors that are not a valid update:\n  proj: ")
    assert message in error and error.endswith("Was the file edited or truncated?")


FORMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "loha, one core": ("loha-tucker", {"hada_t2": None}, "one of hada_t1 and hada_t2 is missing"),
    "loha, ranks": ("loha", {"hada_w2_b": drawn(3, 4)}, "expected one rank"),
    "loha, axes": ("loha", {"hada_w2_b": drawn(2)}, "expected matrices"),
    "loha, cores": ("loha-tucker", {"hada_t2": drawn(2, 3, 3, 1)}, "expected cores (2, 2, kernel"),
    "lokr, both": (
        "lokr",
        {"lokr_w2": drawn(3, 2)},
        "expected lokr_w2, or lokr_w2_a",
    ),
    "lokr, a core": ("lokr-full", {"lokr_t2": drawn(1, 1, 3, 1)}, ""),
    "lokr, axes": ("lokr-full", {"lokr_w1": drawn(2)}, "expected matrices"),
    "lokr, w1": ("lokr-full", {"lokr_w1": drawn(2, 2, 1)}, "expected"),
    "lokr, ranks": ("lokr", {"lokr_w2_b": drawn(2, 2)}, "expected one rank in lokr_w2"),
    "lokr, core": (
        "lokr-core",
        {"lokr_t2": drawn(1, 2, 3, 1)},
        "expected lokr_t2 (1, 1, kernel",
    ),
    "norm": ("norm", {"b_norm": drawn(5)}, "expected vectors"),
    "ia3": ("ia3", {"weight": drawn(6, 2)}, "expected weight (n,) or (1, n, 1 …), on_input ()"),
    "ia3, alone": ("ia3", {"on_input": None}, "on_input is missing; found weight (6,)"),
    "oft": ("diag-oft", {"oft_blocks": drawn(2, 3, 2)}, "expected oft_blocks (blocks, b, b)"),
    "oft, rescale": ("diag-oft", {"rescale": drawn(5, 1)}, "expected rescale (6, 1 …)"),
    "oft, alpha": ("diag-oft", {"alpha": drawn(2)}, "expected alpha with one element"),
    "boft": (
        "boft",
        {"oft_blocks": drawn(3, 2, 2, 2)},
        "expected oft_blocks (stages, blocks",
    ),
    "glora": ("glora", {"b2.weight": drawn(3, 4)}, "expected a1 (in, 2), a2 (2, in), b1 (out, 2)"),
    "glora, core": (
        "glora",
        {"bm.weight": drawn(2, 2)},
        "bm.weight, which no version of LyCORIS can write",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_invalid_forms_of_each_family_are_reported(case, tmp_path):
    """Each family reports missing, contradicting and misshaped tensors."""
    form, changes, message = FORMS[case]
    path = save(tmp_path / "x.safetensors", changed(form, changes))
    with pytest.raises(JaxmixError) as caught:
        load(path)
    assert message in str(caught.value)
