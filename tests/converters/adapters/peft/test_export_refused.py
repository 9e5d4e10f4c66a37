"""Errors of `export_peft`: PEFT has no type, config or strength for the adapter."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.errors import AdapterError, JaxmixError, UnsupportedError
from jaxmix.families import (
    OFT,
    AdaLoRA,
    Delta,
    DiagOFT,
    KaSA,
    LoHa,
    LoKr,
    Normed,
    Rebase,
    Replace,
    SHiRA,
    Together,
    Update,
)

from .test_export import BIAS, FORMS, HADA, experts, lora, n, tokens

TO_LORA = "Convert it to a LoRA: jaxmix.to_lora(adapter, params)"


@dataclass(frozen=True)
class Own(Update):
    """A user's own family."""

    family = "Own"


def adalora(scale: float) -> AdaLoRA:
    """An AdaLoRA of rank 2."""
    return AdaLoRA(n(2, 4), n(6, 2), n(2), scale)


def shira(rank: int | None) -> SHiRA:
    """Some entries of a weight."""
    return SHiRA(n(10), np.zeros((2, 10), np.int32), rank)


HEAD: dict[str, Update] = {"at.in_proj_weight": lora(12)}
WHOLE, COPY = Replace(n(6, 4)), Rebase(n(6, 4))
# Updates by site, and the message.
REFUSED: dict[str, tuple[dict[str, Update], str]] = {
    "no type": (
        {"q": Delta(n(6, 4)), "k": Normed(lora(), n(6)), "v": DiagOFT(n(2, 2, 2)), "o": Own()},
        "style: PEFT has no type for:\n  q: Delta\n  k: Normed\n  v: DiagOFT\n  o: Own\n" + TO_LORA,
    ),
    "several types": (
        {"q": lora(), "k": LoHa(*HADA, 1.0), "v": lora()},
        "style: a PEFT folder contains an adapter of one type, and this adapter has several:\n",
    ),
    "several types, counted": (
        {"q": lora(), "k": LoHa(*HADA, 1.0), "v": lora()},
        "\n  LORA: 2 sites",
    ),
    "no updates": ({}, " adapter of one type, and this adapter has none:\n" + TO_LORA),
    "a copy of the base alone": ({"q": COPY}, " adapter of one type, and this adapter has none:"),
    "two at a site": (
        {"q": Together((lora(), lora()))},
        "style: PEFT has one update per site of an adapter, and this adapter has more:\n "
        " q: rank 2 + rank 2\n" + TO_LORA,
    ),
    "whole and adapted": (
        {"q": Together((WHOLE, lora()))},
        "this adapter has more:\n  q: weight + rank 2",
    ),
    "saved over an adapter": (
        {"q": Together((lora(), BIAS)), "k": lora(), "e": Together((tokens(1), COPY))},
        "style: PEFT applies copies of the base, saved leaves and tokens, in this "
        "order, before an adapter's own update, and these are in another order:\n  "
        "q: rank 2 + bias\n  e: 1 rows + base's own weight\n" + TO_LORA,
    ),
    "modules beside tokens": (
        {"embed": tokens(1), "head": WHOLE},
        "PEFT's TRAINABLE_TOKENS can't save whole modules, and this adapter has:\n  head",
    ),
    "biases of loha": (
        {"q": Together((BIAS, LoHa(*HADA, 1.0))), "k": BIAS},
        "PEFT's LOHA has no trained biases, and this adapter has:\n  q.base_layer.bias\n  k.bias",
    ),
    "tokens of loha": (
        {"q": LoHa(*HADA, 1.0), "embed": tokens(1)},
        "PEFT's LOHA has no trained tokens, and this adapter has:\n  embed",
    ),
    "two lists of tokens": (
        {"embed": tokens(1), "x": tokens(2)},
        "PEFT's config has one token_indices for all sites, and these differ:\n  "
        "(1,): embed\n  (2,): x\nExport them as separate adapters.",
    ),
    "kasa beside lora": (
        {"q": lora(), "k": KaSA(n(2, 4), n(6, 2), n(2), 1.0)},
        "one kasa_config for all sites, and these differ:\n  False: q\n  True: k",
    ),
    "dora beside lora": (
        {"q": lora(), "k": lora(magnitude=n(6)), "mlp.up": experts(4, 5)},
        "one use_dora for all sites, and these differ:\n  False: q\n  True: k\nExport",
    ),
    "dora with a bias": (
        {"q": lora(magnitude=n(6)), "k": lora(magnitude=n(6), bias=n(6))},
        "PEFT has no DoRA with its own bias (lora_bias), which these have:\n  k",
    ),
    "an embedding beside a bias": (
        {"q": lora(bias=n(6)), "embed": lora(embedding=True)},
        "PEFT has lora_bias for all sites or none, and never for an embedding:\n  emb",
    ),
    "half an attention": (
        HEAD,
        "at.in_proj_weight: PEFT adapts both projections of an attention with one "
        "rank. Found none at at.out_proj, expected rank 2. Merge it instead",
    ),
    "lokr of odd sizes": (
        {"q": LoKr((n(1, 4),), (n(6, 1),), 1.0), "k": LoKr((n(2, 2),), (n(3, 2),), 1.0)},
        "PEFT has no decompose_factor for Kronecker factors of these shapes:\n  q: "
        "(1, 4) ⊗ (6, 1)\n  k: (2, 2) ⊗ (3, 2)\nExport it as a LoRA: "
        "jaxmix.to_lora(adapter, params).",
    ),
    "lokr, whole beside a pair": (
        {"q": LoKr((n(8, 1), n(1, 8)), (n(8, 8),), 1.0)},
        "q: PEFT would write lokr_w2 as a pair. Export it as a LoRA: "
        "jaxmix.to_lora(adapter, params).",
    ),
    "oft of odd sizes": (
        {"q": OFT(n(2, 28)), "k": OFT(n(6, 1))},
        "PEFT has no oft_block_size and no r for these blocks:\n  q: 2 blocks of 8\n "
        " k: 6 blocks of 2\nExport them as separate adapters, or as a LoRA",
    ),
    "oft's old series": (
        {"q": OFT(n(2, 1), terms=4, ends_twice=True)},
        "PEFT 0.18 and later has another series than these:\n  q",
    ),
    "oft, turned": (
        {"q": OFT(n(2, 1), transposed=True)},
        "PEFT's OFT does not accept layers stored as (in, out):\n  q",
    ),
    "oft of two series": (
        {"q": OFT(n(2, 1), terms=4), "k": OFT(n(2, 1))},
        "one num_cayley_neumann_terms for all sites, and these differ:\n  4: q\n  None: k",
    ),
    "oft of two bounds": (
        {"q": OFT(n(2, 1), eps=0.5), "k": OFT(n(2, 1))},
        "one eps for all sites, and these differ:\n  0.5: q\n  None: k",
    ),
    "adalora of two scales": (
        {"q": adalora(1.0), "k": adalora(2.0)},
        "one lora_alpha for all sites, and these differ:\n  1.0: q\n  2.0: k",
    ),
    "shira of no rank": (
        {"q": shira(1), "k": shira(None)},
        "PEFT writes r·(in + out) entries at a site, and the rank r of these is unknown:\n  k",
    ),
    "shira of two ranks": (
        {"q": shira(1), "k": shira(2)},
        "one r for all sites, and these differ:\n  1: q\n  2: k",
    ),
}


def refused_export(kind: type[JaxmixError], adapter: Any, folder: Path, **options: Any) -> str:
    """The error's message; nothing is written."""
    with pytest.raises(JaxmixError) as caught:
        jaxmix.export_peft(adapter, folder / "out", **options)
    assert caught.type is kind and not any(folder.iterdir())
    return str(caught.value)


@pytest.mark.parametrize(("updates", "text"), REFUSED.values(), ids=REFUSED)
def test_unsupported_updates_are_refused(
    updates: dict[str, Update], text: str, tmp_path: Path
) -> None:
    error = refused_export(UnsupportedError, Adapter(updates, name="style"), tmp_path)
    assert text in error, error


# With a rank and alpha per site, which PEFT does not support for attention.
BY_PATTERNS: dict[str, tuple[dict[str, Update], str]] = {
    "an attention of two ranks": (
        {**HEAD, "at.out_proj": lora(4, rank=3)},
        "Found rank 3, scale 1.5 at at.out_proj, expected rank 2. Merge",
    ),
    "an attention, half of it off": (
        {"at.in_proj_weight": lora(12, scale=0.0), "at.out_proj": lora(4)},
        "Found rank 2, scale 1.5 at at.out_proj, expected rank 2, scale 0. Merge",
    ),
}


@pytest.mark.parametrize(("updates", "text"), BY_PATTERNS.values(), ids=BY_PATTERNS)
def test_updates_refused_with_patterns_only(
    updates: dict[str, Update], text: str, tmp_path: Path
) -> None:
    """Such adapters are written without patterns, with one rank and one scale."""
    error = refused_export(UnsupportedError, Adapter(updates), tmp_path, patterns=True)
    assert text in error, error
    reloaded = jaxmix.load(jaxmix.export_peft(Adapter(updates), tmp_path / "out"))
    for site, update in updates.items():
        output, expected = (x.scale * (x.b @ x.a) for x in (reloaded.updates[site], update))  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_unknown_task(tmp_path: Path) -> None:
    text = refused_export(AdapterError, Adapter(FORMS["lora"]), tmp_path, task_type="CHAT")
    assert text == (
        "task_type is 'CHAT', expected one of PEFT's: CAUSAL_LM, FEATURE_EXTRACTION, QUESTION_ANS, "
        "SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS."
    )


def test_task_with_factors_at_a_saved_head(tmp_path: Path) -> None:
    """PEFT would not load these factors."""
    updates = {"q": lora(), "score": lora(), "x.classifier": lora()}
    text = refused_export(
        UnsupportedError, Adapter(updates, name="style"), tmp_path, task_type="SEQ_CLS"
    )
    assert text == (
        "style: for the task SEQ_CLS PEFT saves heads whole and ignores their "
        "factors, which this adapter has at:\n  score\n  x.classifier\nLeave "
        "task_type='SEQ_CLS' out, and load it with PeftModel.from_pretrained(model, folder)."
    )


def test_invalid_adapters(tmp_path: Path) -> None:
    """The errors of a LoRA that is exported with a mix are included."""
    text = refused_export(AdapterError, FORMS["lora"], tmp_path)
    assert text == "export_peft got a dict, expected an adapter or a mix of them."
    mixed = jaxmix.mix(Adapter(FORMS["lora"], name="a"), Adapter(FORMS["lora"], name="b"))
    text = refused_export(AdapterError, mixed, tmp_path, errors={"q": 0.5})
    assert "export_peft got errors= for a mix of 2 adapters." in text


def test_strength_without_a_scale(tmp_path: Path) -> None:
    """All families without a scale are listed."""
    updates = {"q": lora(magnitude=n(6)), "k": Together((BIAS, lora())), "embed": tokens(1)}
    text = refused_export(UnsupportedError, Adapter(updates, 0.5, "style"), tmp_path)
    assert text == (
        "style has strength 0.5, which PEFT does not have for:\n  q: LoRA\n  k: "
        "Replace\n  embed: Tokens\nExport it at strength 1, or convert it to a LoRA: "
        "jaxmix.to_lora(adapter, params)."
    )
    for update in (OFT(n(2, 1)), KaSA(n(2, 4), n(6, 2), n(2), 1.0), COPY, shira(1)):
        text = refused_export(UnsupportedError, Adapter({"q": update}, 0.5), tmp_path)
        assert f"PEFT does not have for:\n  q: {update.family}\n" in text


def test_type_without_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All families have one; a new one may start without."""
    monkeypatch.setitem(PEFT_TYPES, "LORA", replace(PEFT_TYPES["LORA"], write=None))
    text = refused_export(UnsupportedError, Adapter(FORMS["lora"], name="style"), tmp_path)
    assert text == "style: jaxmix does not write PEFT's LORA yet."


def test_mixes_that_peft_cannot_load(tmp_path: Path) -> None:
    """The type or the order prevents it: PEFT does not reverse OFT on an embedding."""

    def mixed(*updates: Update) -> Any:
        named = zip("abc", updates, strict=False)
        return jaxmix.mix(*(Adapter({"q": update}, name=name) for name, update in named))

    for mix, reason in (
        (mixed(lora(), shira(1)), "the type of 'b' with others"),
        (mixed(lora(), BIAS, tokens(1)), "the type of 'b', 'c' with others"),
        (mixed(OFT(n(2, 1), embedding=True), OFT(n(2, 1), embedding=True)), "its order"),
    ):
        text = refused_export(UnsupportedError, mix, tmp_path)
        assert text == (
            f"PEFT's mixed model can't compute this mix: it does not support {reason}. "
            f"Convert the mix to one LoRA, jaxmix.to_lora(mix, params), save it as a "
            f"mix, jaxmix.save(mix, folder), or merge it, jaxmix.merge_checkpoint."
        )
