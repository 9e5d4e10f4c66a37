"""`merge_checkpoint(resize=True)`: more or fewer tokens or labels than in the base."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import LoRA, Rebase, Replace, Together, Tokens, Update

from ...messages import full_text
from ..bases import VOCAB, WIDTH, Adapters, contents, header, load, mixed, save_base
from .test_resume import Stop, breaking

EMBED, HEAD = "model.embed_tokens", "lm_head"


def draw(*shape: int, seed: int = 5) -> Any:
    """Numbers from a seed, equal for all shapes with equal leading rows."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lora(rows: int) -> LoRA:
    """A LoRA of rank 2 for this number of rows."""
    return LoRA(a=draw(2, WIDTH, seed=8), b=draw(rows, 2, seed=9), scale=1.0)


def saved(rows: int, *sites: str, name: str = "saved", kind: type = Replace) -> jaxmix.Adapter:
    """An adapter with these saved modules."""
    updates = {site: kind(weight=draw(rows, WIDTH, seed=i)) for i, site in enumerate(sites)}
    return jaxmix.Adapter(updates, name=name)


def weight_of(adapter: jaxmix.Adapter, site: str) -> Any:
    """The weight that it has for a site."""
    update = adapter.updates[site]
    assert isinstance(update, Replace | Rebase)
    return update.weight


def padded(params: dict[str, Any], rows: int, extra: dict[str, Any]) -> dict[str, Any]:
    """The base's params in the adapters' shapes: cut, or with these rows at the end."""
    out = dict(params)
    for site, array in extra.items():
        old_rows = out[f"{site}.weight"][:rows]
        out[f"{site}.weight"] = np.concatenate(
            [old_rows, array[len(old_rows) :].astype(old_rows.dtype)]
        )
    return out


@pytest.mark.parametrize(
    ("rows", "shards", "dtype"),
    [
        (VOCAB + 3, 1, np.float32),
        (VOCAB + 3, 3, ml_dtypes.bfloat16),
        (VOCAB - 2, 3, np.float32),
        (VOCAB - 2, 1, ml_dtypes.bfloat16),
    ],
)
def test_saved_modules(
    rows: int, shards: int, dtype: Any, adapters: Adapters, tmp_path: Path
) -> None:
    """Embedding and head get the file's rows; index and config agree; all else is unchanged."""
    config = {"vocab_size": VOCAB, "x_config": {"vocab_size": VOCAB, "y": 1}, "z": {}}
    config["vision_config"] = {"vocab_size": VOCAB}
    base = save_base(tmp_path / "base", shards=shards, dtype=dtype, config=config)
    adapter = saved(rows, EMBED, HEAD)
    mix, out = jaxmix.mix(mixed(adapters), adapter), tmp_path / "out"
    merged = merge_checkpoint(base, mix, out, resize=True, verify=True)
    names = [f"{EMBED}.weight", f"{HEAD}.weight"]
    assert merged.resized == dict.fromkeys(names, (VOCAB, rows))
    assert merged.verified is not None and merged.verified.ok
    loaded = load(out)
    weights = {site: weight_of(adapter, site) for site in (EMBED, HEAD)}
    expected = jaxmix.compose(padded(load(base), rows, weights), mix)
    assert loaded.keys() == expected.keys()
    for name, array in loaded.items():
        assert array.tobytes() == np.asarray(expected[name]).tobytes(), name
    for site in (EMBED, HEAD):
        assert np.array_equal(loaded[f"{site}.weight"], weights[site].astype(dtype))
    new_config = json.loads((out / "config.json").read_text())
    changed = {"vocab_size": rows, "x_config": {"vocab_size": rows, "y": 1}}
    assert new_config == {**config, **changed}
    if shards > 1:
        new_config = json.loads((out / "model.safetensors.index.json").read_text())["metadata"]
        assert new_config["total_size"] == sum(array.nbytes for array in loaded.values())
        assert new_config["total_parameters"] == 1 + 2 * (rows - VOCAB) * WIDTH
    assert all(len(header(out / shard)) % 8 == 0 for shard in merged.shards)
    assert verify_merge(base, mix, out, resize=True).ok
    lines = "".join(
        f"\n  {site}: the adapter fits shape ({rows}, 6), {site}.weight has shape (14, 6)"
        for site in (EMBED, HEAD)
    )
    message = full_text(
        f"{base} has another number of tokens or labels than the adapters:{lines}\nIf they were "
        "trained on this model after resizing, use resize=True to give these tensors the adapters' "
        "rows, and update config.json."
    )
    with pytest.raises(ShapeError, match=message):
        verify_merge(base, mix, out)


def test_resizing_without_the_option_is_refused(tmp_path: Path) -> None:
    """The error lists all such tensors and names the option, as in `compose`."""
    base = save_base(tmp_path / "base")
    adapter = saved(VOCAB + 3, EMBED, HEAD)
    with pytest.raises(ShapeError) as caught:
        merge_checkpoint(base, adapter, tmp_path / "out")
    assert str(caught.value) == (
        f"{base} has another number of tokens or labels than the adapters:\n"
        "  model.embed_tokens: the adapter fits shape (17, 6), model.embed_tokens.weight has shape "
        "(14, 6)\n"
        "  lm_head: the adapter fits shape (17, 6), lm_head.weight has shape (14, 6)\n"
        "If they were trained on this model after resizing, use resize=True "
        "to give these tensors the adapters' rows, and update config.json."
    )
    message = full_text(
        "factors that do not fit the params:\n"
        "  model.embed_tokens: saved weight has shape (17, 6), expected (14, 6)\n"
        "  lm_head: saved weight has shape (17, 6), expected (14, 6)\n"
        "Was the adapter trained on another model, or on a base of another size? If it was trained "
        "with more tokens, resize these leaves of the params first, or merge into the checkpoint "
        "with jaxmix.merge_checkpoint(..., resize=True)."
    )
    with pytest.raises(ShapeError, match=message):
        jaxmix.compose(load(base), adapter)
    assert not (tmp_path / "out").exists()


def test_new_rows_come_from_the_first_adapter_that_has_them(tmp_path: Path) -> None:
    """Strengths apply to the base's rows; a row that only files have is the file's."""
    base = save_base(tmp_path / "base")
    rows = VOCAB + 2
    small, large = (
        jaxmix.Adapter({s: Rebase(draw(rows, WIDTH, seed=k)) for s in (EMBED, HEAD)}, name=str(k))
        for k in (1, 2)
    )
    merge_checkpoint(base, [0.5 * small, large], tmp_path / "out", resize=True, verify=True)
    loaded, before = load(tmp_path / "out"), load(base)
    first, second = (weight_of(adapter, EMBED) for adapter in (small, large))
    for site in (EMBED, HEAD):
        name, weight = f"{site}.weight", before[f"{site}.weight"]
        expected = weight + (first[:VOCAB] - weight) / 2
        expected = expected + second[:VOCAB] - (weight + (first[:VOCAB] - weight) / 2)
        assert np.allclose(loaded[name][VOCAB:], second[VOCAB:], atol=1e-6)
        assert loaded[name].shape == (rows, WIDTH)
    merge_checkpoint(base, 0.5 * saved(rows, EMBED, HEAD), tmp_path / "half", resize=True)
    half = load(tmp_path / "half")[f"{EMBED}.weight"]
    weight = draw(rows, WIDTH, seed=0)
    assert np.allclose(half[:VOCAB], (before[f"{EMBED}.weight"] + weight[:VOCAB]) / 2)
    assert np.array_equal(half[VOCAB:], weight[VOCAB:])


@pytest.mark.parametrize("rows", [VOCAB + 3, VOCAB - 2])
def test_lora_over_saved_rows(rows: int, tmp_path: Path) -> None:
    """PEFT's ``save_embedding_layers``: factors of the new size, with the resized base."""
    base = save_base(tmp_path / "base", shards=3)
    weights = {site: draw(rows, WIDTH, seed=i) for i, site in enumerate((EMBED, HEAD))}
    updates: dict[str, Update] = {
        site: Together((Rebase(weight), lora(rows))) for site, weight in weights.items()
    }
    adapter = jaxmix.Adapter(updates)
    merge_checkpoint(base, adapter, tmp_path / "out", resize=True, verify=True)
    loaded = load(tmp_path / "out")
    for site, weight in weights.items():
        expected = weight + lora(rows).b @ lora(rows).a
        np.testing.assert_allclose(loaded[f"{site}.weight"], expected, atol=1e-5)


def test_fewer_rows_need_no_file(tmp_path: Path) -> None:
    """Removed rows are the base's own: an unsaved head and a bias are cut too."""
    extra = {"lm_head.bias": draw(VOCAB), "final_logits_bias": draw(1, VOCAB)}
    base = save_base(tmp_path / "base", extra=extra, config={"text_config": {"a": 1}})
    rows = VOCAB - 4
    adapter = jaxmix.Adapter({EMBED: lora(rows)})
    merged = merge_checkpoint(base, adapter, tmp_path / "out", resize=True, verify=True)
    names = ["final_logits_bias", "lm_head.bias", "lm_head.weight", f"{EMBED}.weight"]
    assert dict(merged.resized) == dict.fromkeys(names, (VOCAB, rows))
    assert merged.changed == (f"{EMBED}.weight",)
    before, loaded = load(base), load(tmp_path / "out")
    assert np.array_equal(loaded["lm_head.weight"], before["lm_head.weight"][:rows])
    assert np.array_equal(loaded["lm_head.bias"], extra["lm_head.bias"][:rows])
    assert np.array_equal(loaded["final_logits_bias"], extra["final_logits_bias"][:, :rows])
    new_config = json.loads((tmp_path / "out/config.json").read_text())
    assert new_config == {"text_config": {"a": 1, "vocab_size": rows}}


def test_new_rows_of_biases_are_zero(tmp_path: Path) -> None:
    """The same holds in transformers; a trained bias comes from the file."""
    extra = {"lm_head.bias": draw(VOCAB), "cls.predictions.bias": draw(VOCAB)}
    base = save_base(tmp_path / "base", extra=extra, config={})
    bias = draw(VOCAB + 1, seed=7)
    updates = {EMBED: Replace(draw(VOCAB + 1, WIDTH)), HEAD: Replace(draw(VOCAB + 1, WIDTH), bias)}
    merge_checkpoint(base, jaxmix.Adapter(updates), tmp_path / "out", resize=True, verify=True)
    loaded = load(tmp_path / "out")
    assert np.array_equal(loaded["lm_head.bias"], bias)
    assert np.array_equal(loaded["cls.predictions.bias"], [*extra["cls.predictions.bias"], 0])
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"vocab_size": VOCAB + 1}


@pytest.mark.parametrize("both", [False, True])
def test_tied_base(both: bool, tmp_path: Path) -> None:
    """Trained as one, or as tokens: the tie stays, and a head in the file grows too."""
    config = {"tie_word_embeddings": True, "vocab_size": VOCAB}
    base = save_base(tmp_path / "base", tied=True, config=config)
    if both:
        tensors = load(base)
        tensors[f"{HEAD}.weight"] = tensors[f"{EMBED}.weight"]
        save_file(tensors, base / "model.safetensors")
    rows, weight = VOCAB + 2, draw(VOCAB + 2, WIDTH)
    adapter = jaxmix.Adapter({site: Replace(weight) for site in (EMBED, HEAD)})
    merge_checkpoint(base, adapter, tmp_path / "one", resize=True, verify=True)
    tokens = Tokens(weight[-3:], np.arange(rows - 3, rows, dtype=np.int32))
    merge_checkpoint(base, jaxmix.Adapter({EMBED: tokens}), tmp_path / "two", resize=True)
    merged = [load(tmp_path / name) for name in ("one", "two")]
    assert np.array_equal(merged[0][f"{EMBED}.weight"], weight)
    expected = np.concatenate([load(base)[f"{EMBED}.weight"][:-1], weight[-3:]])
    assert np.array_equal(merged[1][f"{EMBED}.weight"], expected)
    for tensors in merged:
        assert (f"{HEAD}.weight" in tensors) == both
        assert tensors.get(f"{HEAD}.weight", np.ones((rows, 1))).shape[0] == rows
    new_config = json.loads((tmp_path / "one/config.json").read_text())
    assert new_config == {"tie_word_embeddings": True, "vocab_size": rows}


def test_rows_that_no_file_has(tmp_path: Path) -> None:
    """Factors of another size, an unsaved head, or a gap between tokens are refused."""
    base = save_base(tmp_path / "base")
    gap = Tokens(draw(1, WIDTH), np.array([VOCAB + 1], np.int32))
    for update, line in {
        lora(VOCAB + 2): "model.embed_tokens: the adapter fits shape (16, 6), ",
        gap: "model.embed_tokens: the adapter fits shape (16, 6), ",
        Replace(
            draw(VOCAB + 1, WIDTH)
        ): "lm_head.weight has 14 rows, 15 are needed, and no adapter",
    }.items():
        with pytest.raises(ShapeError) as caught:
            merge_checkpoint(base, jaxmix.Adapter({EMBED: update}), tmp_path / "out", resize=True)
        text = str(caught.value)
        assert f"can't be resized, since no adapter has the missing rows:\n  {line}" in text
        assert "(save_embedding_layers=True in PEFT's save_pretrained)" in text


def test_adapters_that_disagree(tmp_path: Path) -> None:
    """They disagree about one site, or about the embedding and the head."""
    base = save_base(tmp_path / "base")
    both = [saved(VOCAB + 1, EMBED, HEAD), saved(VOCAB + 2, EMBED, HEAD, name="other")]
    with pytest.raises(
        ShapeError,
        match=full_text(
            "adapters were trained with different numbers of tokens or "
            "labels:\n"
            "  model.embed_tokens: 15, 16 rows\n"
            "  lm_head: 15, 16 rows\n"
            "Merge only adapters of the same size."
        ),
    ):
        merge_checkpoint(base, both, tmp_path / "out", resize=True)
    disagreeing = [saved(VOCAB + 1, EMBED), saved(VOCAB + 2, HEAD, name="other")]
    with pytest.raises(
        ShapeError,
        match=full_text(
            f"{tmp_path}/base can't be resized, since no adapter has the "
            "missing rows:\n"
            "  lm_head: the adapter fits shape (16, 6), lm_head.weight "
            "has shape (14, 6)\n"
            "  model.embed_tokens: the adapter fits shape (15, 6), "
            "model.embed_tokens.weight has shape (14, 6)\n"
            "Save the adapter with its embeddings "
            "(save_embedding_layers=True in PEFT's save_pretrained), or "
            "merge into the resized base that it was trained on, saved "
            "with transformers."
        ),
    ):
        merge_checkpoint(base, disagreeing, tmp_path / "out", resize=True)


def test_new_rows_beyond_float16(tmp_path: Path) -> None:
    """They are an error before anything is written."""
    base = save_base(tmp_path / "base", dtype=np.float16)
    adapter = jaxmix.Adapter({s: Replace(draw(VOCAB + 1, WIDTH) * 1e6) for s in (EMBED, HEAD)})
    message = full_text(
        "model.embed_tokens.weight: the new rows exceed the range of F16. Convert the base to "
        "bfloat16 or float32 first."
    )
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoint(base, adapter, tmp_path / "out", resize=True)
    assert not (tmp_path / "out").exists()


def test_interrupted_resize_resumes(tmp_path: Path) -> None:
    """The bytes are those of an uninterrupted run; the option and rows must be the same."""
    base = save_base(tmp_path / "base", shards=3)
    adapter = saved(VOCAB + 3, EMBED, HEAD)
    layer = jaxmix.Adapter({"model.layers.1.q_proj": Replace(draw(8, WIDTH))}, name="layer")
    out = tmp_path / "out"
    with breaking(tmp_path / "out.partial", Stop()), pytest.raises(Stop):
        merge_checkpoint(base, [adapter, layer], out, resize=True)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/out.partial belongs to another merge, which can't be "
            "resumed. Different: the base's tensors, the changed side "
            "files, the adapters. Merge with the same arguments as "
            "before, or use force=True without resume=True to start over."
        ),
    ):
        larger = saved(VOCAB + 2, EMBED, HEAD)
        merge_checkpoint(base, [larger, layer], out, resize=True, resume=True)
    merged = merge_checkpoint(base, [adapter, layer], out, resize=True, resume=True)
    assert merged.resumed
    merge_checkpoint(base, [adapter, layer], tmp_path / "whole", resize=True)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 5])
def test_labels(count: int, tmp_path: Path) -> None:
    """A classifier of another size loses the labels' names; one of the same size keeps them."""
    names = {str(i): f"name {i}" for i in range(5)}
    config = {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
    extra = {"classifier.weight": draw(4, WIDTH), "classifier.bias": draw(4)}
    base = save_base(tmp_path / "base", extra=extra, config={**config, "num_labels": 4})
    weight, bias = draw(count, WIDTH, seed=1), draw(count, seed=2)
    adapter = jaxmix.Adapter({"classifier": Replace(weight, bias)})
    merge_checkpoint(base, adapter, tmp_path / "out", resize=True, verify=True)
    loaded = load(tmp_path / "out")
    assert np.array_equal(loaded["classifier.weight"], weight)
    assert np.array_equal(loaded["classifier.bias"], bias)
    new_config = json.loads((tmp_path / "out/config.json").read_text())
    new = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    assert new_config == {**(config if count == 5 else new), "num_labels": count}


def test_single_file(tmp_path: Path) -> None:
    """A single file has no config to update."""
    base = save_base(tmp_path / "base") / "model.safetensors"
    out = tmp_path / "out.safetensors"
    merged = merge_checkpoint(base, saved(VOCAB + 1, EMBED, HEAD), out, resize=True, verify=True)
    assert len(merged.resized) == 2 and not (tmp_path / "config.json").exists()
