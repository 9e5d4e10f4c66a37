"""Summaries of adapters' updates."""

import jax.numpy as jnp
import numpy as np

import jaxmix
from jaxmix.converters.cli.tables import adapter_data, adapter_lines
from jaxmix.families import LoRA, Replace, Together


def test_long_lists_of_modules_are_broken_between_names() -> None:
    """No name is cut, whatever the width."""
    lora = LoRA(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32), 0.5)
    sites = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    lines = adapter_lines([jaxmix.Adapter(dict.fromkeys(sites, lora), name="x")], 20)
    assert lines[2:] == ["    model.layers.*.self_attn:", "      q_proj, k_proj"]


def test_updates_of_one_site_are_listed_separately() -> None:
    """A LoRA and a bias trained with it are two kinds."""
    bias = Replace(bias=jnp.ones(4))
    both = Together((bias, LoRA(jnp.ones((1, 3)), jnp.ones((4, 1)), 1.0)))
    kinds = adapter_data(jaxmix.Adapter({"q": both, "k": bias}))["kinds"]
    assert [(kind["kind"], kind["numbers"], kind["sites"]) for kind in kinds] == [
        ("Replace", 8, ("q", "k")),
        ("LoRA", 7, ("q",)),
    ]
