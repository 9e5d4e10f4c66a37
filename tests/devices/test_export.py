"""Programs exported for TPU and CUDA on a host that has neither: no host callbacks.

The lowered programs are those that would run there. These tests don't show that XLA compiles them
for these chips, or how fast they are.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType

import jaxmix
from jaxmix import Adapter
from jaxmix.families import DEFT, OFT

from ..laws.chains import ALL, STACKED
from ..laws.draws import Module, tree
from .spying import grid, placed

MODULE = Module("linear", (8, 16), True)
PLATFORMS = ("tpu", "cuda")
# Custom calls that run on the chip: solvers of XLA's TPU backend, and cuSOLVER's.
# Rotations take Cholesky and triangular solves, which are StableHLO's own operations on TPU, and
# Cholesky a call on CUDA; DEFT takes a QR, and on CUDA KaSA an SVD and FRoD an LU.
ALLOWED = {
    "tpu": {"Qr", "ProductOfElementaryHouseholderReflectors"},
    "cuda": {
        "cusolver_potrf_ffi",
        "cusolver_geqrf_ffi",
        "cusolver_orgqr_ffi",
        "cusolver_gesvdj_ffi",
        "cusolver_getrf_ffi",
        "cu_lu_pivots_to_permutation",
    },
}
# On CUDA JAX 0.8 has StableHLO's own operation for it too.
OPTIONAL = {"cusolver_potrf_ffi"}
# These express shardings and disappear when the program is compiled.
MARKS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
CALL = re.compile(r"custom_call\s*@(\w+)|call_target_name\s*=\s*\"(\w+)\"")


def custom_calls(text: str) -> set[str]:
    """Returns the targets of all custom calls in a StableHLO text."""
    return {one or other for one, other in CALL.findall(text)} - MARKS


def exported(run: Callable[..., Any], *args: Any, platform: str) -> str:
    """Returns a function lowered for a platform; export refuses unstable custom calls."""
    return export.export(jax.jit(run), platforms=[platform])(*args).mlir_module()


UPDATES = {
    kind: jax.tree.map(
        lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else x,
        make(np.random.default_rng(1), MODULE),
    )
    for kind, make in ALL.items()
    if kind not in STACKED
}


P, N = (np.ones(shape, np.float32) for shape in ((8, 2), (2, 16)))
UPDATES["DEFT by QR"] = DEFT(P, N, 1.0, "qr")
UPDATES["OFT, exact"] = OFT(np.ones((4, 6), np.float32))
SITES = dict.fromkeys(UPDATES, MODULE)
BASE = tree(SITES, 0, np.float32)
X = np.ones((4, 16), np.float32)


def forward(params: Any, x: Any) -> Any:
    """Runs all layers in order."""
    for kind in UPDATES:
        y = x @ params[f"{kind}.weight"].T + params[f"{kind}.bias"][None]
        x = jnp.tanh(jnp.concatenate([y, y], 1))
    return x


def everything() -> Adapter:
    """Returns all families, each at its own layer."""
    return Adapter(UPDATES, 0.7)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_compose(platform: str) -> None:
    """Every family exports, and each allowed call occurs."""
    text = exported(jaxmix.compose, BASE, everything(), platform=platform)
    calls = custom_calls(text)
    assert ALLOWED[platform] - OPTIONAL <= calls <= ALLOWED[platform]
    assert ("stablehlo.cholesky" in text) != (calls >= OPTIONAL)
    assert "stablehlo.triangular_solve" in text


@cache
def programs() -> dict[str, Any]:
    """A forward and a training step with their arguments, traced once."""
    values, whole = jaxmix.trainable(everything())
    optimizer = optax.adam(1e-2)
    run = jaxmix.factored(forward, "factored")

    def loss(values: Any, params: Any, x: Any) -> Any:
        return jnp.mean(run(jaxmix.attach(params, whole(values)), x) ** 2)

    def step(values: Any, state: Any, params: Any, x: Any) -> Any:
        slope = jax.grad(loss)(values, params, x)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(slope, state, values)
            return optax.apply_updates(values, change), state

    leaves = jaxmix.attach(BASE, everything())
    training = (step, values, optimizer.init(values), BASE, X)
    return {"factored": (run, leaves, X), "step": training}


@pytest.mark.parametrize("platform", ["tpu", pytest.param("cuda", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", ["factored", pytest.param("step", marks=pytest.mark.thorough)])
def test_factored_and_a_training_step(name: str, platform: str) -> None:
    """Tokens through all families; gradients of all trained values, and Adam."""
    run, *args = programs()[name]
    text = exported(run, *args, platform=platform)
    assert "stablehlo.dot_general" in text and custom_calls(text) <= ALLOWED[platform]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bank(platform: str) -> None:
    """Members that add, rotate, scale and replace."""
    kinds = ("LoRA", "OFT, exact", "IA3", "Replace", "SHiRA")
    members = {kind: Adapter({"LoRA": UPDATES[kind]}, 0.7) for kind in kinds}
    params = {name: BASE[name] for name in ("LoRA.weight", "LoRA.bias")}
    bank = jaxmix.Bank(members, params)

    def run(bank: Any, params: Any, x: Any, who: Any) -> Any:
        return bank(lambda p, x: x @ p["LoRA.weight"].T + p["LoRA.bias"][None])(params, x, who)

    text = exported(
        run, bank, params, X, bank.who(["LoRA", "IA3", None, "SHiRA"]), platform=platform
    )
    assert custom_calls(text) <= ALLOWED[platform]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_over_eight_devices(platform: str) -> None:
    """Shardings are in the program, with an exchange for the rotation that spans the parts."""
    mesh = grid(AxisType.Explicit)
    weight = placed(np.ones((64, 96), np.float32), mesh, "x", "y")
    adapter = Adapter({"a": OFT(np.ones((2, 48 * 47 // 2), np.float32))})
    made = export.export(jax.jit(jaxmix.compose), platforms=[platform])(
        {"a.weight": weight}, adapter
    )
    assert made.nr_devices == 8 and custom_calls(made.mlir_module()) <= ALLOWED[platform]
    assert made.mlir_module().count("sdy.sharding_constraint") >= 2


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_call_to_the_host_is_seen(platform: str) -> None:
    """JAX does not lower a callback for another platform; locally, it is a call not on the list."""

    def calls(x: Any) -> Any:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises((ValueError, NotImplementedError)):
        exported(calls, X, platform=platform)
    text = jax.jit(calls).lower(X).as_text()  # the same on this host
    assert custom_calls(text) - ALLOWED[platform]
