"""Kinds that move parts of the base into the adapter: PiSSA, OLoRA, both with DoRA, and OSF."""

# pyright: reportAttributeAccessIssue=false

# Tests read fields that only some families have.

from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.families import parts_of
from jaxmix.training import init, trainable

from .init_rows import PARAMS, Row
from .samples import normal

if any(find_spec(name) is None for name in ("torch", "peft", "transformers")):
    pytest.skip("parity with PEFT needs torch and peft", allow_module_level=True)

import torch

from .peft_adapters import model_of

_KEY = jax.random.key(0)


# PEFT's OLoRA ignores that GPT-2's weight is transposed.
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("method", "site"), [("pissa", "lin"), ("pissa", "gpt"), ("olora", "lin")])
def test_factors_and_remaining_base_match_peft(method: str, kind: str, site: str) -> None:
    """Factors match PEFT's up to signs; the remaining base and DoRA's norms match."""
    options: dict[str, Any] = {"rank": 4, "alpha": 6, "init_lora_weights": method}
    row = Row(kind, {**options, "fan_in_fan_out": True} if site == "gpt" else options, (site,))
    layer = getattr(model_of(row).base_model.model, site)
    a, b = (layer.lora_A.default.weight.detach(), layer.lora_B.default.weight.detach())
    adapter = init(kind, PARAMS, _KEY, target_modules=[site], **options)
    rebase, lora = parts_of(adapter.updates[site])
    remaining = layer.base_layer.weight.detach().numpy()
    np.testing.assert_allclose(
        rebase.weight, remaining.T if site == "gpt" else remaining, atol=1e-4
    )
    np.testing.assert_allclose(lora.b @ lora.a, (b @ a).numpy(), atol=1e-4)
    np.testing.assert_allclose(np.abs(lora.a), a.abs().numpy(), atol=1e-4)
    assert lora.scale == 1.5 and (lora.magnitude is not None) == (kind == "dora")
    if kind == "dora":
        norms = layer.lora_magnitude_vector.default.weight.detach().numpy()
        np.testing.assert_allclose(lora.magnitude, norms, rtol=1e-5)


@pytest.mark.parametrize(
    ("rank", "site"), [(None, "lin"), (7, "more.wide"), (0.25, "lin")], ids=str
)
def test_osf_matches_peft(rank: Any, site: str) -> None:
    """The parts match PEFT's at the start and after a step of descent.

    PEFT projects the gradients away from the frozen part; with jaxmix the optimizer must do so.
    """
    model = model_of(Row("osf", {"effective_rank": rank}, (site,)))
    layer = model.base_model.model.get_submodule(site)
    parts = layer.osf_svd_params.default
    adapter = init("osf", PARAMS, _KEY, target_modules=[site], effective_rank=rank)
    rebase, low_rank = parts_of(adapter.updates[site])
    weight = PARAMS[f"{site}.weight"]
    low_part = parts.U_low * parts.S_low[None] @ parts.V_low
    np.testing.assert_allclose(low_rank.e, parts.S_low.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(
        (low_rank.b * low_rank.e[None]) @ low_rank.a, low_part.detach().numpy(), atol=1e-4
    )
    np.testing.assert_allclose(rebase.weight, weight - low_part.detach().numpy(), atol=1e-4)

    x, target = normal(80, 5, weight.shape[1]), normal(81, 5, weight.shape[0])
    descent = torch.optim.SGD(parts.parameters(), lr=0.02)
    (layer(torch.tensor(x)) * torch.tensor(target)).sum().backward()
    descent.step()
    with torch.no_grad():
        expected = weight + layer.get_delta_weight("default").numpy()

    def loss(values: Any) -> Any:
        params = jaxmix.compose({f"{site}.weight": weight}, rebuild(values))
        return jnp.sum((x @ params[f"{site}.weight"].T) * target)

    values, rebuild = trainable(adapter)
    gradients = rebuild(jax.grad(loss)(values)).updates[site]
    left_vectors, _, vt = jnp.linalg.svd(rebase.weight, full_matrices=False)
    frozen_rank = min(weight.shape) - len(low_rank.e)
    frozen_u, frozen_v, gradient = (
        left_vectors[:, :frozen_rank],
        vt[:frozen_rank],
        parts_of(gradients)[1],
    )
    b = low_rank.b - 0.02 * (gradient.b - frozen_u @ (frozen_u.T @ gradient.b))
    a = low_rank.a - 0.02 * (gradient.a - (gradient.a @ frozen_v.T) @ frozen_v)
    e = low_rank.e - 0.02 * gradient.e
    assert np.abs(expected - weight).max() > 0.05
    np.testing.assert_allclose(rebase.weight + (b * e[None]) @ a, expected, atol=2e-4)
