"""Modules are targeted by names, regular expressions and layers."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.training import init

_KEY = jax.random.key(0)
_TREE: Any = {
    "params": {
        "embed": {"embedding": jnp.ones((9, 4))},
        "layers": {
            str(i): {"q": {"kernel": jnp.ones((4, 6))}, "k": {"kernel": jnp.ones((4, 6))}}
            for i in range(2)
        },
        "lm_head": {"kernel": jnp.ones((4, 9))},
    }
}


def _targeted_sites(**options: Any) -> set[str]:
    return set(init("lora", _TREE, _KEY, rank=1, **options).sites)


def test_names_expressions_and_all_linear() -> None:
    linear_sites = {f"layers.{i}.{name}" for i in range(2) for name in "qk"}
    assert _targeted_sites(target_modules="all-linear") == linear_sites
    assert _targeted_sites(target_modules=["q"]) == {"layers.0.q", "layers.1.q"}
    assert _targeted_sites(target_modules=r".*1\.[qk]") == {"layers.1.q", "layers.1.k"}
    assert _targeted_sites(target_modules=["q", "k"], exclude_modules=["k"]) == _targeted_sites(
        target_modules=["q"]
    )
    params = {"m": _TREE["params"]}
    adapter = init("lora", params, _KEY, target_modules=["q"], layers_to_transform=[1])
    assert set(adapter.sites) == {"m.layers.1.q"}
