"""Ties are prepared once for a tree, however many sites it has."""

import numpy as np
import pytest

import jaxmix
from jaxmix.families import LoRA
from jaxmix.placement import ties


@pytest.mark.parametrize("layers", [4, 32])
def test_names_are_prepared_once(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of names that are examined grows linearly with the tree."""
    names = [f"model.layers.{i}.embeddings" for i in range(layers)]
    ones = np.ones((2, 3), np.float32)
    params = {f"{name}.weight": ones for name in names} | {"lm_head.weight": ones}
    update = LoRA(ones[:1], ones[:, :1], 1.0)
    examined: list[str] = []
    original = ties.bare

    def bare(name: str) -> str:
        examined.append(name)
        return original(name)

    monkeypatch.setattr(ties, "bare", bare)
    jaxmix.compose(params, [jaxmix.Adapter(dict.fromkeys(names, update))])
    assert len(examined) <= 3 * len(params)


@pytest.mark.parametrize("head", ["decoder", "output_projection", "lm_head.out_proj"])
def test_other_heads_have_a_weight(head: str) -> None:
    """A tree with the head of ModernBERT, TrOCR or T5Gemma is not tied."""
    names = ["model.embed_tokens.weight", f"{head}.weight", "model.norm.weight"]
    assert ties.Ties.of(names).problem("model.embed_tokens") is None
    assert ties.Ties.of(names[::2]).problem("model.embed_tokens") is not None
    model = [
        f"model.{name}" for name in ("embed_tokens.weight", "decoder.output_projection.weight")
    ]
    assert ties.Ties.of(model).problem("model.embed_tokens") is None
