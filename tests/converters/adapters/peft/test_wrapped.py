"""Paths of wrapped modules as sites."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.peft.file import Config, File
from jaxmix.converters.adapters.peft.wrapped import located, pattern_site, stripped
from jaxmix.errors import CheckpointError

from ....messages import full_text

INNER = ".base_layer"


def pair(out: int, size: int, rank: int = 2) -> dict[str, np.ndarray]:
    """Returns the factors of a LoRA."""
    return {"lora_A.weight": np.ones((rank, size)), "lora_B.weight": np.ones((out, rank))}


def file_of(base: dict[str, tuple[int, ...]] | None = None, **values: Any) -> File:
    """The file of a LoRA of rank 2."""
    config = Config(Path("style/adapter_config.json"), "LORA", {"r": 2, **values})
    arrays = {name: np.ones(shape) for name, shape in (base or {}).items()}
    return File(config, base=base_model(arrays) if base else None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.q", "a.q"),
        ("a.q.base_layer", "a.q"),
        ("a.q.base_layer.base_layer", "a.q"),
        ("a.embed.token_adapter.base_layer", "a.embed"),
        ("a.base_layer.q", "a.base_layer.q"),  # only at the end
        ("a.token_adapter", "a.token_adapter"),  # only around an embedding
    ],
)
def test_wrappers_at_the_end_are_removed(path: str, expected: str) -> None:
    """All of them, and nothing else; a second time changes nothing."""
    assert stripped(path) == expected == stripped(stripped(path))


def test_projections_of_an_attention_are_two_sites() -> None:
    """PEFT adds the output projection's product twice, so B is doubled and A is not."""
    factors = {"attn": pair(12, 4), f"attn{INNER}.out_proj": pair(4, 6), "mlp": pair(5, 3)}
    sites = located(file_of(), factors)
    assert list(sites) == ["attn.in_proj_weight", "attn.out_proj", "mlp"]
    assert sites["attn.in_proj_weight"] is factors["attn"] and sites["mlp"] is factors["mlp"]
    assert float(sites["attn.out_proj"]["lora_B.weight"][0, 0]) == 2.0
    assert float(sites["attn.out_proj"]["lora_A.weight"][0, 0]) == 1.0
    file = File(file_of().config, sites=tuple(factors))
    names = ("attn.in_proj_weight", "attn.out_proj", "other.out_proj", "mlp")
    assert [pattern_site(file, name) for name in names] == [
        "attn",
        "attn",
        "other.out_proj",
        "mlp",
    ]


EXPERTS = {"m.experts.gate_up_proj": (3, 10, 4), "m.experts.down_proj": (3, 4, 5)}
TARGETS = ["experts.down_proj", "experts.gate_up_proj"]


def test_shapes_assign_the_parameters_of_nested_wrappers() -> None:
    """Whatever the order of the targets and of the wrappers."""
    up, down = pair(10, 4, rank=6), pair(4, 5, rank=6)
    for targets in (TARGETS, TARGETS[::-1]):
        for inner, outer in ((up, down), (down, up)):
            factors = {f"m.experts{INNER}": inner, "m.experts": outer}
            sites = located(file_of(EXPERTS, target_parameters=targets), factors)
            assert sites["m.experts.gate_up_proj"] is up
            assert sites["m.experts.down_proj"] is down


def test_factors_that_fit_no_parameter_are_refused() -> None:
    """The error lists the parameters with their shapes."""
    factors = {f"m.experts{INNER}": pair(10, 4, rank=6), "m.experts": pair(4, 7, rank=6)}
    message = full_text(
        "style: the factors at m.experts fit none of its parameters down_proj, gate_up_proj with "
        "shapes [(3, 4, 5), (3, 10, 4)], and the file does not assign them. Pass the base as a "
        "flat dict in the model's own order, jaxmix.load(…, base={name: array for name, array in "
        "model.state_dict().items()}), or train them as separate adapters."
    )
    with pytest.raises(CheckpointError, match=message):
        located(file_of(EXPERTS, target_parameters=TARGETS), factors)


def test_single_wrapper_of_a_layer_keeps_its_site() -> None:
    """A target without a module names a parameter only where the base has it."""
    layer = {"m.q": pair(6, 4)}
    file = file_of({"m.q.weight": (6, 4)}, target_parameters=["down_proj"])
    assert list(located(file, layer)) == ["m.q"]
    experts = {"m.experts": pair(4, 5, rank=6)}
    down = {"m.experts.down_proj": (3, 4, 5)}
    file = file_of(down, target_parameters=["gate_up_proj", "down_proj"])
    assert list(located(file, experts)) == ["m.experts.down_proj"]
    file = file_of(target_parameters=["m.q.weight"], target_modules=["q"])
    assert list(located(file, layer)) == ["m.q"]
