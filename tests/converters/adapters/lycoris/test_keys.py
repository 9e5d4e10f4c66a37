"""Keys as module and parameter."""

import pytest

from jaxmix.converters.adapters.lycoris.keys import FAMILIES, OPTIONAL, PARAMETERS, split_key


@pytest.mark.parametrize("parameter", sorted(PARAMETERS))
def test_every_parameter_keeps_its_name(parameter: str) -> None:
    """A parameter whose name ends another one's does not take its keys."""
    assert split_key(f"a.b.{parameter}") == ("a.b", parameter)
    assert split_key(f"lora_unet_a.{parameter}") == ("lora_unet_a", parameter)
    assert split_key(f".{parameter}") is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.lora_A.weight", ("a", "lora_down.weight")),
        ("a.lora.up.weight", ("a", "lora_up.weight")),
        ("a.lora_B.bias", ("a", "lora_up.bias")),
        ("a.lora_A.style.weight", ("a", "lora_down.weight")),
        ("a.lora_B.style", ("a", "lora_up.weight")),
        ("a.lora_magnitude_vector.style.weight", ("a", "lora_magnitude_vector")),
        ("a.norm_q.weight", ("a.norm_q", "saved_weight")),
        ("a.norm.key_norm.scale", ("a.norm.key_norm", "saved_weight")),
        ("a.key_norm.scale", ("a.key_norm", "scale")),  # of another model: LyCORIS's scale
        ("norm_q.weight", ("norm_q", "weight")),
        ("blocks.0.diff_m", ("blocks.0.modulation", "diff")),
        ("a.lora_C.weight", ("a.lora_C", "weight")),
        ("a.bias", None),
        ("a", None),
        ("", None),
    ],
)
def test_other_programs_names_are_translated(key: str, expected: tuple[str, str] | None) -> None:
    """PEFT's, diffusers', Wan's and Flux's; any other key is unknown."""
    assert split_key(key) == expected


def test_each_factor_belongs_to_one_family() -> None:
    """`updates.build` finds the family by any of its factors; further tensors show none."""
    factors = [name for names in FAMILIES.values() for name in names]
    assert len(factors) == len(set(factors))
    assert OPTIONAL.keys() <= FAMILIES.keys()
    assert not set(factors) & {name for names in OPTIONAL.values() for name in names}
