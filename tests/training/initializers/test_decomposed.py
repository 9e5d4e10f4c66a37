"""Initialization of FRoD and AdaMSS: PEFT's bases and groups, export, and errors."""

# pyright: reportAttributeAccessIssue=false

# Tests read fields that only some families have.

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import ShapeError, UnsupportedError
from jaxmix.training import init

from ...messages import full_text
from ..samples import normal

_KEY = jax.random.key(0)
with_peft = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "peft", "sklearn")),
    reason="needs torch, peft and scikit-learn",
)


def _layers(out_size: int, in_size: int) -> dict[str, Any]:
    """Returns three layers with a module of one kind and different weights."""
    names = [f"layers.{i}.attn.q.weight" for i in range(3)]
    return {name: (i + 1) * normal(30 + i, out_size, in_size) for i, name in enumerate(names)}


def _net(params: dict[str, Any]) -> Any:
    """Returns the layers as modules of PyTorch."""
    from torch import nn, tensor

    root = nn.Module()
    for name, value in params.items():
        *parents, leaf_name = name.removesuffix(".weight").split(".")
        module = root
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.add_module(leaf_name, nn.Linear(*value.shape[::-1], bias=False))
        module.get_submodule(leaf_name).weight.data = tensor(value)
    return root


@with_peft
@pytest.mark.parametrize("shape", [(10, 12), (3, 14)], ids=["more rows", "fewer rows"])
def test_frod_basis_matches_peft(shape: tuple[int, int]) -> None:
    """V matches PEFT's up to the signs of its columns, and the lengths of three layers match."""
    import peft

    params = _layers(*shape)
    config = peft.FrodConfig(target_modules=["q"], progressbar=False, regularization_alpha=0.01)
    reference: Any = peft.get_peft_model(_net(params), config).base_model
    ours = init("frod", params, _KEY, target_modules=["q"], regularization_alpha=0.01)
    first = ours.updates["layers.0.attn.q"]
    expected_v = reference.frod_V["attn_q"]["default"].numpy()
    # Directions outside the weights' row space are arbitrary.
    reached = slice(0, min(3 * shape[0], shape[1]))
    signs = np.sign(np.sum(np.asarray(first.v) * expected_v, axis=0))[None]
    np.testing.assert_allclose((first.v * signs)[:, reached], expected_v[:, reached], atol=2e-4)
    for i in range(3):
        update, layer = ours.updates[f"layers.{i}.attn.q"], reference.model.layers
        lengths = layer.get_submodule(f"{i}.attn.q").frod_lambda_l.default.detach().numpy()
        np.testing.assert_allclose(update.lengths, lengths, atol=1e-4)
        assert update.v is first.v and update.indices is first.indices
    composed = jaxmix.compose(params, ours)
    for name, weight in params.items():
        np.testing.assert_allclose(composed[name], weight, atol=1e-5)


def test_frod_indices_are_distinct() -> None:
    """Indices are distinct and off the diagonal, and differ by key and kind of module."""
    params = {"a.q.weight": normal(40, 9, 8), "a.v.weight": normal(41, 9, 8)}
    adapters = [
        init("frod", params, key, target_modules=["q", "v"], sparse_rate=0.5)
        for key in jax.random.split(_KEY, 2)
    ]
    drawn_indices = [
        np.asarray(adapter.updates[f"a.{site}"].indices) for adapter in adapters for site in "qv"
    ]
    for indices in drawn_indices:
        assert indices.shape == (2, 32) and indices.min() >= 0 and indices.max() <= 7
        assert (indices[0] != indices[1]).all() and len(
            set(zip(*indices.tolist(), strict=True))
        ) == 32
    assert len({indices.tobytes() for indices in drawn_indices}) == 4


def test_frod_needs_equal_inputs_per_kind() -> None:
    """The name of a module determines its kind, not its shape."""
    params = {"attn.q.weight": normal(42, 6, 4), "more.attn.q.weight": normal(43, 6, 8)}
    with pytest.raises(ShapeError) as caught:
        init("frod", params, _KEY, target_modules=["q"])
    assert str(caught.value) == (
        "FRoD shares one basis among all modules with the same last two parts of their names, but "
        "these have different numbers of inputs:\n  attn_q: attn.q (6, 4), more.attn.q (6, 8)\n"
        "Make an adapter for each and mix them."
    )


@with_peft
def test_adamss_groups_match_peft(tmp_path: Path) -> None:
    """Rows and projection match PEFT's, and PEFT computes the same with an exported adapter."""
    import peft
    import torch

    params = {"lin.weight": normal(44, 20, 12)}
    options: dict[str, Any] = {"num_subspaces": 4, "subspace_rank": 2, "random_seed": 3}
    config = peft.AdamssConfig(target_modules=["lin"], r=6, **options)
    reference: Any = peft.get_peft_model(_net(params), config).base_model.model.lin
    ours = init("adamss", params, _KEY, target_modules=["lin"], rank=6, **options)
    update = ours.updates["lin"]
    np.testing.assert_array_equal(update.rows, reference.scatter_index["default"].numpy())
    np.testing.assert_allclose(update.projection, reference.adamss_newB["default"], atol=1e-6)
    for a, b, expected_b in zip(update.a, update.b, reference.adamss_B["default"], strict=True):
        assert b.shape == tuple(expected_b.shape)
        np.testing.assert_allclose(a @ a.T, np.eye(len(a)), atol=1e-5)
    trained = replace(update, b=tuple(normal(50 + i, *b.shape) for i, b in enumerate(update.b)))
    mixed = jaxmix.Adapter({"lin": trained}, name="adamss")
    jaxmix.export_peft(mixed, tmp_path / "out")
    model: Any = peft.PeftModel.from_pretrained(_net(params), str(tmp_path / "out"))
    x = normal(60, 5, 12)
    with torch.no_grad():
        out = model.base_model.model.lin(torch.tensor(x)).numpy()
    np.testing.assert_allclose(x @ jaxmix.compose(params, mixed)["lin.weight"].T, out, atol=1e-4)


@with_peft
def test_adamss_subspaces_match_peft() -> None:
    """A group's A spans the directions that PEFT's randomized search approximates."""
    import peft

    # Singular values that fall fast, so PEFT's search finds the directions.
    left, right = np.linalg.qr(normal(70, 16, 16))[0], np.linalg.qr(normal(71, 9, 9))[0]
    params = {"lin.weight": (left[:, :9] * 0.05 ** np.arange(9.0)[None]).astype("f") @ right}
    options: dict[str, Any] = {"num_subspaces": 2, "subspace_rank": 9, "use_dynamic_rank": True}
    config = peft.AdamssConfig(target_modules=["lin"], r=9, svd_threshold=0.3, **options)
    reference: Any = peft.get_peft_model(_net(params), config).base_model.model.lin
    ours = init(
        "adamss", params, _KEY, target_modules=["lin"], rank=9, svd_threshold=0.3, **options
    ).updates["lin"]
    for a, parameter in zip(ours.a, reference.adamss_A["default"], strict=True):
        expected_a = parameter.detach().numpy()
        assert a.shape == expected_a.shape
        np.testing.assert_allclose(a.T @ a, expected_a.T @ expected_a, atol=0.05)


def test_adamss_needs_concrete_params() -> None:
    """The groups' sizes depend on the weights' values."""
    params = {"lin.weight": jnp.ones((4, 3))}
    message = (
        "adamss can't be initialized at these sites:\n  lin: AdaMSS groups a weight's rows by "
        "their values, which traced params do not have. Call init outside of jit"
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        jax.eval_shape(lambda x: init("adamss", x, _KEY, target_modules=["lin"]), params)


@pytest.mark.parametrize("package", ["torch", "sklearn.cluster"])
def test_adamss_names_missing_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = (
        "adamss can't be initialized at these sites:\n  lin: AdaMSS groups a weight's rows as PEFT "
        "does, with torch's singular vectors and scikit-learn's k-means. Install them: pip install "
        "'jaxmix-peft[torch]'"
    )
    with pytest.raises(UnsupportedError, match=full_text(message)):
        init("adamss", {"lin.weight": normal(45, 6, 4)}, _KEY, target_modules=["lin"])
