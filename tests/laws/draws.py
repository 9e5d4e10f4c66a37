"""Random updates of the first families, and random trees to apply them to.

A tree's PyTorch form is the flat dict from which all other forms are made. Numbers come from NumPy
with a seed, structure from hypothesis. Updates of every family come from the samples in
`tests.families.table`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from jaxmix import Adapter
from jaxmix.families import Update

from ..families.module import KINDS, Module, normal, ones, zeros
from ..families.table import SAMPLES

__all__ = [
    "FAMILIES",
    "KINDS",
    "MAKERS",
    "Module",
    "adapters",
    "draw_update",
    "few",
    "normal",
    "ones",
    "tree",
    "trees",
    "zeros",
]

# The six first families. MAKERS has three more kinds of update.
FAMILIES = ("LoRA", "AdaLoRA", "LoHa", "LoKr", "OFT", "SHiRA")
MAKERS = {kind: SAMPLES[kind].draw for kind in (*FAMILIES, "DoRA", "Replace", "Together")}


def draw_update(family: str, module: Module, seed: int) -> Update:
    """An update of this family for a module; a norm can only be replaced."""
    kind = "Replace" if module.kind == "norm" else family
    return MAKERS[kind](np.random.default_rng(seed), module)


def tree(
    modules: Mapping[str, Module], seed: int, dtype: Any = np.float64
) -> dict[str, np.ndarray]:
    """A flat dict with PyTorch names and orientation."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        out[f"{name}.weight"] = normal(rng, *module.shape).astype(dtype)
        if module.bias:
            out[f"{name}.bias"] = normal(rng, module.shape[0]).astype(dtype)
    return out


def few() -> settings:
    """A third of the profile's examples, for slow tests."""
    profile = settings()
    return settings(profile, max_examples=max(profile.max_examples // 3, 1))


_SEEDS = st.integers(0, 2**16)


@st.composite
def trees(
    draw: Any, max_modules: int = 3, norms: bool = True
) -> tuple[dict[str, Module], dict[str, np.ndarray]]:
    """Some modules at some depth, with float64 weights."""
    names = sorted(kind for kind in KINDS if norms or kind != "norm")
    kinds = draw(st.lists(st.sampled_from(names), min_size=1, max_size=max_modules))
    prefix = draw(st.sampled_from(["", "model.layers."]))
    modules = {f"{prefix}{i}.{kind}": KINDS[kind] for i, kind in enumerate(kinds)}
    return modules, tree(modules, draw(_SEEDS))


@st.composite
def adapters(
    draw: Any,
    modules: Mapping[str, Module],
    *,
    families: tuple[str, ...] = tuple(MAKERS),
    count: int | None = None,
    strengths: Any = None,
) -> list[Adapter]:
    """Adapters of one family each, at some of the modules, with strengths, in random order."""
    n = draw(st.integers(0, 4)) if count is None else count
    if strengths is None:
        strengths = st.sampled_from([1.0, 0.0, 0.5, -1.0, 1.7])
    out = []
    for i in range(n):
        family = draw(st.sampled_from(families))
        sites = draw(st.lists(st.sampled_from(sorted(modules)), min_size=1, unique=True))
        seed = draw(_SEEDS)
        updates = {
            site: draw_update(family, modules[site], seed + j) for j, site in enumerate(sites)
        }
        out.append(Adapter(updates, draw(strengths), f"{family} {i}"))
    return out
