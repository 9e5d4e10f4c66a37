"""Initialization of LoRA for experts, compared with PEFT's ``target_parameters``; and errors."""

# pyright: reportAttributeAccessIssue=false

# Tests read fields that only some families have.

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import AdapterError
from jaxmix.training import init, trainable

from ...messages import full_text
from ..samples import normal

_KEY = jax.random.key(2)
_BOTH = ["mlp.up", "mlp.down"]


@pytest.mark.parametrize("in_first", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_experts_match_peft(in_first: bool, use_rslora: bool, tmp_path: Path) -> None:
    """Structure, shapes, scales, spread and count match PEFT's; the two ranks are unequal."""
    pytest.importorskip("peft")
    import peft

    from ...converters.adapters.peft.made import Experts, quiet

    options: dict[str, Any] = {"rank_pattern": {"mlp.up": 4}, "use_rslora": use_rslora}
    model = Experts(in_first)
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=[], target_parameters=_BOTH, **options
    )
    params = {name: x.detach().numpy().copy() for name, x in model.named_parameters()}
    with quiet():
        adapted = peft.get_peft_model(model, config)
        adapted.save_pretrained(str(tmp_path))
    expected = jaxmix.load(tmp_path, name="lora", base=params)
    ours = init(
        *("lora", params, _KEY), target_parameters=_BOTH, rank=2, alpha=3,
        is_transposed=in_first, **options,
    )  # fmt: skip
    assert set(ours.updates) == set(expected.updates) == set(_BOTH)
    for site, update in ours.updates.items():
        expected_update = expected.updates[site]
        assert jax.tree.structure(update) == jax.tree.structure(expected_update)
        assert (
            update.a.shape == expected_update.a.shape and update.b.shape == expected_update.b.shape
        )
        assert not update.b.any() and not expected_update.b.any()
        assert float(update.scale) == pytest.approx(float(expected_update.scale))
        assert abs(np.std(update.a) / np.std(expected_update.a) - 1) < 5 / update.a.size**0.5
        bound = update.a.shape[-1] ** -0.5
        assert 0.9 * bound < np.abs(update.a).max() <= bound >= np.abs(expected_update.a).max()
    values, _ = trainable(ours)
    sizes = [p.numel() for p in adapted.parameters() if p.requires_grad]
    assert sum(x.size for x in jax.tree.leaves(values)) == sum(sizes)
    composed = jaxmix.compose(params, ours)
    for name, weight in params.items():
        np.testing.assert_array_equal(composed[name], weight)


def test_unknown_target_parameter_is_refused() -> None:
    """Each name must belong to a parameter, even if other names do."""
    params = {"mlp.up": normal(1, 3, 4, 5), "lin.weight": normal(2, 4, 5)}
    message = (
        "names that match no module of the params:\n  target_parameters: 'mlp.upp'\nIts modules "
        "are:\n  lin\n  mlp\n  mlp.up"
    )
    for others in ([], ["mlp.up"]):
        with pytest.raises(AdapterError, match=full_text(message)):
            init("lora", params, _KEY, target_parameters=[*others, "mlp.upp"])
