"""FRoD and AdaMSS from the start: PEFT's own bases and groups, there and back, and refusals."""

# Updates are asked for the fields of their families.
# pyright: reportAttributeAccessIssue=false

import re
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

from .made import normal

_KEY = jax.random.key(0)
with_peft = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "peft", "sklearn")),
    reason="needs torch, peft and scikit-learn",
)


def _layers(outputs: int, inputs: int) -> dict[str, Any]:
    """Three layers with a module of one kind, whose weights are not alike."""
    names = [f"layers.{i}.attn.q.weight" for i in range(3)]
    return {name: (i + 1) * normal(30 + i, outputs, inputs) for i, name in enumerate(names)}


def _net(params: dict[str, Any]) -> Any:
    """The same as modules of PyTorch."""
    from torch import nn, tensor

    root = nn.Module()
    for name, value in params.items():
        *before, last = name.removesuffix(".weight").split(".")
        there = root
        for part in before:
            if not hasattr(there, part):
                there.add_module(part, nn.Module())
            there = there.get_submodule(part)
        there.add_module(last, nn.Linear(*value.shape[::-1], bias=False))
        there.get_submodule(last).weight.data = tensor(value)
    return root


@with_peft
@pytest.mark.parametrize("shape", [(10, 12), (3, 14)], ids=["more rows", "fewer rows"])
def test_bases_of_frod(shape: tuple[int, int]) -> None:
    """V but for the signs of its columns, and the lengths, where three layers share them."""
    import peft

    params = _layers(*shape)
    config = peft.FrodConfig(target_modules=["q"], progressbar=False, regularization_alpha=0.01)
    theirs: Any = peft.get_peft_model(_net(params), config).base_model
    ours = init("frod", params, _KEY, target_modules=["q"], regularization_alpha=0.01)
    one = ours.updates["layers.0.attn.q"]
    v = theirs.frod_V["attn_q"]["default"].numpy()
    # What no weight reaches may be turned within itself.
    reached = slice(0, min(3 * shape[0], shape[1]))
    signs = np.sign(np.sum(np.asarray(one.v) * v, axis=0))[None]
    np.testing.assert_allclose((one.v * signs)[:, reached], v[:, reached], atol=2e-4)
    for i in range(3):
        update, layer = ours.updates[f"layers.{i}.attn.q"], theirs.model.layers
        lengths = layer.get_submodule(f"{i}.attn.q").frod_lambda_l.default.detach().numpy()
        np.testing.assert_allclose(update.lengths, lengths, atol=1e-4)
        assert update.v is one.v and update.indices is one.indices
    changed = jaxmix.compose(params, ours)
    for name, weight in params.items():
        np.testing.assert_allclose(changed[name], weight, atol=1e-5)


def test_places_of_frod() -> None:
    """None twice, none on the diagonal, and other ones by another key and kind of module."""
    params = {"a.q.weight": normal(40, 9, 8), "a.v.weight": normal(41, 9, 8)}
    made = [
        init("frod", params, key, target_modules=["q", "v"], sparse_rate=0.5)
        for key in jax.random.split(_KEY, 2)
    ]
    found = [np.asarray(one.updates[f"a.{site}"].indices) for one in made for site in "qv"]
    for places in found:
        assert places.shape == (2, 32) and places.min() >= 0 and places.max() <= 7
        assert (places[0] != places[1]).all() and len(set(zip(*places.tolist(), strict=True))) == 32
    assert len({places.tobytes() for places in found}) == 4


def test_frod_of_other_inputs() -> None:
    """One kind of module by its name, and not by its shape."""
    params = {"attn.q.weight": normal(42, 6, 4), "more.attn.q.weight": normal(43, 6, 8)}
    with pytest.raises(ShapeError) as caught:
        init("frod", params, _KEY, target_modules=["q"])
    assert str(caught.value) == (
        "FRoD shares one basis among all modules with the same last two parts of their names, but "
        "these have different numbers of inputs:\n  attn_q: attn.q (6, 4), more.attn.q (6, 8)\n"
        "Make an adapter for each and mix them."
    )


@with_peft
def test_groups_of_adamss(tmp_path: Path) -> None:
    """PEFT's rows and projection; and trained here PEFT runs it as we do."""
    import peft
    import torch

    params = {"lin.weight": normal(44, 20, 12)}
    words: dict[str, Any] = {"num_subspaces": 4, "subspace_rank": 2, "random_seed": 3}
    config = peft.AdamssConfig(target_modules=["lin"], r=6, **words)
    theirs: Any = peft.get_peft_model(_net(params), config).base_model.model.lin
    ours = init("adamss", params, _KEY, target_modules=["lin"], rank=6, **words)
    update = ours.updates["lin"]
    np.testing.assert_array_equal(update.rows, theirs.scatter_index["default"].numpy())
    np.testing.assert_allclose(update.projection, theirs.adamss_newB["default"], atol=1e-6)
    for a, b, other in zip(update.a, update.b, theirs.adamss_B["default"], strict=True):
        assert b.shape == tuple(other.shape)
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
def test_leanings_of_adamss() -> None:
    """A group's A is what PEFT's randomised search of few directions comes near."""
    import peft

    # A rank that falls fast, of which PEFT's search finds the directions.
    left, right = np.linalg.qr(normal(70, 16, 16))[0], np.linalg.qr(normal(71, 9, 9))[0]
    params = {"lin.weight": (left[:, :9] * 0.05 ** np.arange(9.0)[None]).astype("f") @ right}
    words: dict[str, Any] = {"num_subspaces": 2, "subspace_rank": 9, "use_dynamic_rank": True}
    config = peft.AdamssConfig(target_modules=["lin"], r=9, svd_threshold=0.3, **words)
    theirs: Any = peft.get_peft_model(_net(params), config).base_model.model.lin
    ours = init(
        "adamss", params, _KEY, target_modules=["lin"], rank=9, svd_threshold=0.3, **words
    ).updates["lin"]
    for a, other in zip(ours.a, theirs.adamss_A["default"], strict=True):
        b = other.detach().numpy()
        assert a.shape == b.shape
        np.testing.assert_allclose(a.T @ a, b.T @ b, atol=0.05)


def test_adamss_of_traced_params() -> None:
    """The groups' sizes come from numbers."""
    params = {"lin.weight": jnp.ones((4, 3))}
    said = (
        "lin: AdaMSS groups a weight's rows by their values, which traced params do not have. Call"
    )
    with pytest.raises(UnsupportedError, match=said):
        jax.eval_shape(lambda x: init("adamss", x, _KEY, target_modules=["lin"]), params)


@pytest.mark.parametrize("package", ["torch", "sklearn.cluster"])
def test_adamss_without_its_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=re.escape("pip install 'jaxmix-peft[torch]'")):
        init("adamss", {"lin.weight": normal(45, 6, 4)}, _KEY, target_modules=["lin"])
