"""Random updates of every family, and random trees for them to act on.

A tree's PyTorch form is the flat dict that everything else is made of and compared with. Numbers
come from NumPy by a seed, what is structure from hypothesis.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from jaxmix import Adapter
from jaxmix.families import OFT, AdaLoRA, LoHa, LoKr, LoRA, Replace, SHiRA, Together, Update

__all__ = [
    "FAMILIES",
    "KINDS",
    "MAKERS",
    "Module",
    "adapters",
    "few",
    "made",
    "normal",
    "ones",
    "tree",
    "trees",
    "zeros",
]

Shape = tuple[int, ...]
Maker = Callable[[np.random.Generator, "Module"], Update]

# Fixed, since each new shape is compiled anew.
RANK = 2
# The six families, and what else takes part in a mix.
FAMILIES = ("LoRA", "AdaLoRA", "LoHa", "LoKr", "OFT", "SHiRA")


@dataclass(frozen=True)
class Module:
    """A module: its kind, its weight's shape as PyTorch has it, and whether it has a bias."""

    kind: str
    shape: Shape
    bias: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in) of the weight as a matrix."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def kernel(self) -> Shape:
        """A convolution's spatial shape."""
        return self.shape[2:]


KINDS: dict[str, Module] = {
    "wide": Module("linear", (6, 8), True),
    "tall": Module("linear", (8, 4)),
    "square": Module("linear", (6, 6), True),
    "conv1d": Module("conv", (4, 6, 3), True),
    "conv2d": Module("conv", (6, 4, 3, 2)),
    "conv3d": Module("conv", (4, 2, 1, 2, 3), True),
    "embedding": Module("embedding", (10, 4)),
    "norm": Module("norm", (5,), True),
}


# Factors may be NumPy's arrays, though the families' fields say jax.Array.
ones: Any = np.ones
zeros: Any = np.zeros


def normal(rng: np.random.Generator, *shape: int, std: float = 1.0) -> Any:
    """Random float64 numbers."""
    return std * rng.normal(size=shape)


def _lora(rng: np.random.Generator, module: Module) -> LoRA:
    (out, size), r = module.matrix, RANK
    bias = normal(rng, out) if module.bias and rng.random() < 0.5 else None
    embedding = module.kind == "embedding"
    a, b = normal(rng, r, size), normal(rng, out, r)
    return LoRA(a, b, 0.7 / r, bias=bias, kernel=module.kernel, embedding=embedding)


def _dora(rng: np.random.Generator, module: Module) -> LoRA:
    (out, size), r = module.matrix, RANK
    embedding = module.kind == "embedding"
    magnitude = 1 + rng.random(size if embedding else out)
    a, b = normal(rng, r, size), normal(rng, out, r)
    return LoRA(a, b, 0.4, magnitude=magnitude, kernel=module.kernel, embedding=embedding)


def _adalora(rng: np.random.Generator, module: Module) -> AdaLoRA:
    (out, size), r = module.matrix, RANK + 1
    return AdaLoRA(normal(rng, r, size), normal(rng, out, r), normal(rng, r), 0.6)


def _loha(rng: np.random.Generator, module: Module) -> LoHa:
    (out, size), kernel = module.matrix, module.kernel
    r = RANK
    if len(kernel) == 2 and rng.random() < 0.5:
        b1, b2 = normal(rng, r, out), normal(rng, r, out)
        a1, a2 = (normal(rng, r, module.shape[1]) for _ in range(2))
        t1, t2 = normal(rng, r, r, *kernel), normal(rng, r, r, *kernel)
        return LoHa(b1, a1, b2, a2, 0.5, t1, t2, kernel=kernel)
    b1, b2 = normal(rng, out, r), normal(rng, out, r)
    return LoHa(b1, normal(rng, r, size), b2, normal(rng, r, size), 0.5)


def _lokr(rng: np.random.Generator, module: Module) -> LoKr:
    """Every form: each factor whole or a pair, and a Tucker core for two-dimensional kernels."""
    out, channels, *_ = module.shape
    kernel, r = module.kernel, RANK
    rows = next(n for n in (2, 3, 1) if out % n == 0)
    cols = next(n for n in (2, 3, 1) if channels % n == 0)
    x = (normal(rng, rows, cols),)
    if rng.random() < 0.5:
        x = (normal(rng, rows, r), normal(rng, r, cols))
    k, n, form = out // rows, channels // cols, rng.integers(3)
    if form == 0:
        return LoKr(x, (normal(rng, k, n, *kernel),), 0.3)
    if form == 1 and len(kernel) == 2:
        core = normal(rng, r, r, *kernel)
        return LoKr(x, (normal(rng, r, k), normal(rng, r, n)), 0.3, core)
    return LoKr(x, (normal(rng, k, r), normal(rng, r, n * math.prod(kernel))), 0.3)


def _oft(rng: np.random.Generator, module: Module) -> OFT:
    size = module.matrix[1]
    b = next(n for n in rng.permutation([2, 3, 4, size]) if size % n == 0)
    blocks = 1 if rng.random() < 0.3 else size // int(b)
    terms = [None, 5, 3][rng.integers(3)]
    eps = 0.5 if rng.random() < 0.3 else None
    numbers = normal(rng, blocks, int(b * (b - 1) // 2), std=0.3)
    return OFT(numbers, terms=terms, eps=eps, embedding=module.kind == "embedding")


def _shira(rng: np.random.Generator, module: Module) -> SHiRA:
    n = 5
    places = np.stack([rng.integers(0, size, n) for size in module.matrix]).astype(np.int32)
    return SHiRA(normal(rng, n), places)


def _replace(rng: np.random.Generator, module: Module) -> Replace:
    which = int(rng.integers(3)) if module.bias else 1
    weight = None if which == 0 else normal(rng, *module.shape)
    return Replace(weight, normal(rng, module.shape[0]) if module.bias and which != 1 else None)


def _together(rng: np.random.Generator, module: Module) -> Together:
    """What a reader makes of a file with trained biases or a base of its own: these come first."""
    return Together((_replace(rng, module), _lora(rng, module)))


MAKERS: dict[str, Maker] = {
    "LoRA": _lora,
    "AdaLoRA": _adalora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "OFT": _oft,
    "SHiRA": _shira,
    "DoRA": _dora,
    "Replace": _replace,
    "Together": _together,
}


def made(family: str, module: Module, seed: int) -> Update:
    """An update of this family for a module; a norm can only be replaced.

    torch.kron has no form for three-dimensional kernels, so a whole LoKr factor is flattened there.
    """
    rng = np.random.default_rng(seed)
    if module.kind == "norm":
        return _replace(rng, module)
    update = MAKERS[family](rng, module)
    if isinstance(update, LoKr) and len(module.kernel) == 3 and len(update.y) == 1:
        (y,) = update.y
        return LoKr(update.x, (y.reshape(len(y), -1),), update.scale)
    return update


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
    """A third of the profile's examples, for what takes long."""
    profile = settings()
    return settings(profile, max_examples=max(profile.max_examples // 3, 1))


_SEEDS = st.integers(0, 2**16)


@st.composite
def trees(
    draw: Any, max_modules: int = 3, norms: bool = True
) -> tuple[dict[str, Module], dict[str, np.ndarray]]:
    """Some modules at some depth, and their float64 weights."""
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
    """Adapters of one family each at some of the modules, with strengths, in an order."""
    n = draw(st.integers(0, 4)) if count is None else count
    if strengths is None:
        strengths = st.sampled_from([1.0, 0.0, 0.5, -1.0, 1.7])
    out = []
    for i in range(n):
        family = draw(st.sampled_from(families))
        sites = draw(st.lists(st.sampled_from(sorted(modules)), min_size=1, unique=True))
        seed = draw(_SEEDS)
        updates = {site: made(family, modules[site], seed + j) for j, site in enumerate(sites)}
        out.append(Adapter(updates, draw(strengths), f"{family} {i}"))
    return out
