"""LoRAs as diffusers writes them."""

import re
from typing import Any

import numpy as np
import pytest

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.lycoris.lora_config import add_to_config, as_lora, with_unit_scale
from jaxmix.errors import UnsupportedError
from jaxmix.families import IA3, Delta, LoRA, Normed, Together

from ....messages import full_text

A, B = np.arange(6.0).reshape(2, 3) + 1, np.arange(8.0).reshape(4, 2) + 1
LORA: Any = LoRA(A, B, 0.5)
NORM: Any = np.arange(4.0) + 1


def test_norm_per_output_is_pefts_dora() -> None:
    """A norm per input has no such form."""
    dora: Any = as_lora(Normed(LORA, NORM, 1e-7, axis="out"))
    assert isinstance(dora, LoRA) and dora.magnitude is NORM
    by_input = Normed(LORA, NORM[:3], 1e-7, axis="in")
    assert as_lora(by_input) is by_input


def test_bias_is_divided_by_the_scale() -> None:
    """PEFT scales the bias with the product; the two others are no LoRA with a bias."""
    bias: Any = Delta(bias=NORM)
    lora: Any = as_lora(Together((LORA, bias)))
    np.testing.assert_array_equal(lora.scale * lora.bias, NORM)
    dense: Any = Together((LORA, Delta(weight=B @ A)))
    scale: Any = IA3(NORM)
    for other in (dense, scale, LORA):
        assert as_lora(other) is other


def test_strength_and_scales_go_into_the_factors() -> None:
    """Sites of two ranks get one, with the scale 1 and the same product."""
    adapter = -2.0 * Adapter({"q": LORA, "k": LoRA(A[:1], B[:, :1], 3.0)})  # pyright: ignore[reportArgumentType]
    unit = with_unit_scale(adapter)
    updates: Any = unit.updates
    assert float(unit.strength) == 1.0
    assert {update.a.shape[0] for update in updates.values()} == {2}
    for site, expected in (("q", -B @ A), ("k", -6 * B[:, :1] @ A[:1])):
        assert updates[site].scale == 1.0
        np.testing.assert_allclose(updates[site].b @ updates[site].a, expected, rtol=1e-6)


def test_dora_with_a_strength_is_left_alone() -> None:
    """Its magnitude can't take a strength; the writer refuses it."""
    dora: Any = LoRA(A, B, 0.5, magnitude=NORM)
    adapter = 0.5 * Adapter({"q": dora})
    assert with_unit_scale(adapter) is adapter


def factors(rank: int, alpha: float, **more: Any) -> Any:
    """Returns a module's tensors."""
    return {"lora_down.weight": np.ones((rank, 3)), "alpha": np.asarray(alpha), **more}


def test_patterns_hold_what_differs_from_the_first_module() -> None:
    """They match exactly one module: a dot in a name is no wildcard."""
    config: dict[str, Any] = {}
    modules = {"b.q": (2, 2.0), "a.b.q": (2, 4.0), "k": (3, 2.0)}
    for module, (rank, alpha) in modules.items():
        add_to_config(config, module, factors(rank, alpha))
    assert (config["r"], config["lora_alpha"]) == (2, 2.0)
    assert config["rank_pattern"] == {"^k": 3}
    assert config["alpha_pattern"] == {r"^a\.b\.q": 4.0}
    assert config["target_modules"] == list(modules)
    (pattern,) = config["alpha_pattern"]
    # As PEFT matches a pattern.
    assert re.match(rf"(.*\.)?({pattern})$", "a.b.q")
    assert not re.match(rf"(.*\.)?({pattern})$", "aXb.q")
    assert not re.match(rf"(.*\.)?({pattern})$", "c.a.b.q")


@pytest.mark.parametrize("name", ["dora_scale", "lora_up.bias"])
def test_flags_hold_for_all_modules(name: str) -> None:
    """Whether the first or the second module has the tensor."""
    tensors = (factors(2, 1.0), factors(2, 1.0, **{name: NORM}))
    message = full_text(
        "k: some modules of one model have DoRA's norm, or a bias, and others do not; diffusers "
        "has one flag for all. Export them as separate files."
    )
    for first, second in (tensors, tensors[::-1]):
        config: dict[str, Any] = {}
        add_to_config(config, "q", first)
        with pytest.raises(UnsupportedError, match=message):
            add_to_config(config, "k", second)
