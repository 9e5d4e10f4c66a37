"""`merge_checkpoint(new_head=True)`: the class of a head, and refusals."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import LoRA, Replace

from ...messages import full_text
from ..bases import Adapters, header, load, mixed, save_base
from ..cli.running import Captured, main

D = 6
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "id2label": {"0": "a"}}
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}


def draw(*shape: int) -> Any:
    """Numbers."""
    return np.random.default_rng(4).standard_normal(shape).astype(np.float32)


def head(*sites: str, rows: int = 3, bias: bool = True, task: str = "") -> jaxmix.Adapter:
    """An adapter with these saved modules; the last one has this number of rows."""
    sizes = [D] * (len(sites) - 1) + [rows]
    updates = {
        site: Replace(draw(n, D), draw(n) if bias else None)
        for site, n in zip(sites, sizes, strict=True)
    }
    adapter = jaxmix.Adapter(updates, name=f"of {rows}")
    object.__setattr__(adapter, "metadata", {"task_type": task})
    return adapter


def save(folder: Path, config: dict[str, Any], *names: str) -> Path:
    """A base with these tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: draw(D, D) for name in names}, folder / "model.safetensors")
    return folder


CLASSIFIER = "\n  classifier.weight (3, 6)\n  classifier.bias (3,)"
CHOOSE = (
    "It may be the head of BertForSequenceClassification or BertForTokenClassification. Choose "
    "one: new_head='BertForSequenceClassification'."
)
WRITE = (
    "It is the head of LlamaForSequenceClassification. Use new_head=True to write it as new "
    "tensors, and the class and its labels to config.json. Or save such a base with transformers, "
    "and merge into that: "
    "LlamaForSequenceClassification.from_pretrained(base).save_pretrained(folder)."
)


def lacking(base: Path, has: str, lines: str, rest: str) -> str:
    """Returns a pattern of the whole message about a head that a base lacks."""
    return full_text(
        f"the adapters have a head that {base} lacks (config.json names {has}):{lines}\n{rest}"
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_classifier_on_a_decoder(shards: int, adapters: Adapters, tmp_path: Path) -> None:
    """The new head has its own dtype, the old one is dropped; index, config and header agree."""
    base = save_base(tmp_path / "base", shards=shards, dtype=ml_dtypes.bfloat16, config=LLAMA)
    mix, out = jaxmix.mix(mixed(adapters), head("score", bias=False)), tmp_path / "out"
    merged = merge_checkpoint(base, mix, out, new_head=True, verify=True)
    assert merged.new_head == "LlamaForSequenceClassification"
    assert "lm_head.weight: LlamaForSequenceClassification has no such tensor" in merged.left_out
    assert "score.weight" in merged.changed
    loaded, before = load(out), load(base)
    copied = before.keys() - {"lm_head.weight"} - {"model.positions"}
    assert loaded.keys() == {*copied, "model.positions", "score.weight"}
    assert loaded["score.weight"].tobytes() == draw(3, D).tobytes()
    expected = jaxmix.compose(before, mixed(adapters))
    assert all(loaded[name].tobytes() == np.asarray(expected[name]).tobytes() for name in copied)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["label2id"] == {f"LABEL_{i}": i for i in range(3)}
    for shard in merged.shards:
        for name, entry in json.loads(header(out / shard)[8:]).items():
            assert name == "__metadata__" or entry["data_offsets"][0] % 2 == 0
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == loaded.keys()
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in loaded.values())


def test_shard_with_only_the_old_head(tmp_path: Path) -> None:
    """It stays, without tensors or with the new head."""
    base = tmp_path / "base"
    base.mkdir()
    where = {"lm_head.weight": "model-1.safetensors", "model.norm.weight": "model-2.safetensors"}
    for name, file in where.items():
        save_file({name: draw(D, D)}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (base / "config.json").write_text(json.dumps(LLAMA))
    merge_checkpoint(base, head("score", bias=False), tmp_path / "out", new_head=True, verify=True)
    assert load(tmp_path / "out").keys() == {"model.norm.weight", "score.weight"}


def test_names_of_the_class(tmp_path: Path) -> None:
    """A base without the class's prefix gets it, also where no adapter touches its body."""
    body = ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"]
    base = save(tmp_path / "base", BERT, *body, "pooler.dense.weight", "cls.predictions.bias")
    adapter = head("classifier", task="TOKEN_CLS")
    merged = merge_checkpoint(base, adapter, tmp_path / "out", new_head=True)
    new = {f"bert.{name}" for name in body} | {"classifier.weight", "classifier.bias"}
    assert load(tmp_path / "out").keys() == new
    assert len(merged.left_out) == 2
    lora = LoRA(draw(2, D), draw(D, 2), 1.0)
    more = jaxmix.Adapter({f"bert.{body[1].removesuffix('.weight')}": lora}, name="lora")
    merged = merge_checkpoint(base, [adapter, more], tmp_path / "two", new_head=True, verify=True)
    assert f"bert.{body[1]}" in merged.changed and load(tmp_path / "two").keys() == new


def test_new_head_can_be_refused(tmp_path: Path, capsys: Captured) -> None:
    """Switched off, the error names the class; by default the head is added, and reported."""
    base = save(tmp_path / "base", LLAMA, "model.norm.weight")
    adapter = head("score", bias=False)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, adapter, tmp_path / "out", new_head=False)
    assert str(caught.value) == (
        f"the adapters have a head that {base} lacks (config.json names LlamaForCausalLM):\n"
        "  score.weight (3, 6)\n"
        "It is the head of LlamaForSequenceClassification. Use new_head=True to write it as new "
        "tensors, and the class and its labels to config.json. Or save such a base with "
        "transformers, and merge into that: LlamaForSequenceClassification"
        ".from_pretrained(base).save_pretrained(folder)."
    )
    saved = jaxmix.save(adapter, tmp_path / "adapter")
    args = ("merge", base, "-a", saved, "-o", tmp_path / "out")
    assert main(*args, "--no-new-head") == 1 and main(*args) == 0
    assert "new head: the model is now a LlamaForSequenceClassification" in capsys.readouterr().out
    assert main(*args, "--force", "--new-head") == 0
    args = (*args, "--force", "--head-class", "LlamaForSequenceClassification")
    assert main(*args) == 0


def test_head_of_several_classes(tmp_path: Path) -> None:
    """The adapter's task decides, or the given class; otherwise an error lists them."""
    names = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "bert.x.weight"]
    base = save(tmp_path / "base", BERT, *names)
    message = lacking(base, "BertForMaskedLM", CLASSIFIER, CHOOSE)
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, head("classifier"), tmp_path / "no", new_head=True)
    for i, name in enumerate(["BertForSequenceClassification", "BertForTokenClassification"]):
        out = tmp_path / str(i)
        assert merge_checkpoint(base, head("classifier"), out, new_head=name).new_head == name
        assert ("bert.pooler.dense.weight" in load(out)) == (i == 0)
    choice = head("classifier", rows=1, task="MULTIPLE_CHOICE")
    merged = merge_checkpoint(base, choice, tmp_path / "one", new_head=True)
    assert merged.new_head == "BertForMultipleChoice"
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config == {**BERT, "architectures": ["BertForMultipleChoice"]}
    rest = (
        "LlamaModel has no such head, expected BertForSequenceClassification or "
        "BertForTokenClassification."
    )
    message = lacking(base, "BertForMaskedLM", CLASSIFIER, rest)
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, head("classifier"), tmp_path / "no", new_head="LlamaModel")


def test_class_by_name(tmp_path: Path) -> None:
    """PEFT writes the class if there is no task, as for image models."""
    base = save(tmp_path / "base", {"model_type": "vit"}, "layernorm.weight")
    adapter = head("classifier")
    auto = {"base_model_class": "ViTForImageClassification"}
    object.__setattr__(adapter, "metadata", {"auto_mapping": auto})
    merged = merge_checkpoint(base, adapter, tmp_path / "out", new_head=True)
    assert merged.new_head == "ViTForImageClassification"
    assert "vit.layernorm.weight" in load(tmp_path / "out")


def test_parts_that_no_file_has(tmp_path: Path) -> None:
    """A layer before the classifier, or a pooler, was random in training: refused."""
    base = save(tmp_path / "base", BERT, "bert.x.weight", "cls.predictions.bias")
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, head("classifier", task="SEQ_CLS"), tmp_path / "no", new_head=True)
    text = str(caught.value)
    assert f"has tensors that neither {base} nor an adapter has:\n  bert.pooler.dense.bias" in text
    assert "Train the adapter with these modules in modules_to_save" in text
    pooled = head("bert.pooler.dense", "classifier", task="SEQ_CLS")
    merge_checkpoint(base, pooled, tmp_path / "out", new_head=True, verify=True)
    assert "bert.pooler.dense.bias" in load(tmp_path / "out")
    folder = save(tmp_path / "other", {"model_type": "distilbert"}, "distilbert.x.weight")
    message = full_text(
        f"a DistilBertForSequenceClassification has tensors that neither {folder} nor an adapter "
        "has:\n  pre_classifier.bias\n  pre_classifier.weight\nThey were initialized at random for "
        "training and not saved. Train the adapter with these modules in modules_to_save, or save "
        "the base that it was trained on with transformers, and merge into that."
    )
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(folder, head("classifier", task="SEQ_CLS"), tmp_path / "no", new_head=True)


def test_absent_parts_are_reported_by_default(tmp_path: Path) -> None:
    """By default the class is written without them, as transformers would open it."""
    base = save(tmp_path / "base", BERT, "bert.x.weight", "cls.predictions.bias")
    merged = merge_checkpoint(base, head("classifier", task="SEQ_CLS"), tmp_path / "out")
    assert merged.new_head == "BertForSequenceClassification"
    random_note = "neither the base nor an adapter has it, so transformers initializes it at random"
    assert [line for line in merged.left_out if line.endswith(random_note)] == [
        f"bert.pooler.dense.{kind}: {random_note}" for kind in ("bias", "weight")
    ]
    assert load(tmp_path / "out").keys() == {
        "bert.x.weight",
        "classifier.weight",
        "classifier.bias",
    }


def test_doubtful_heads_are_refused_by_default(tmp_path: Path) -> None:
    """Several classes fit, or the only one that fits is for another task than the adapter's."""
    base = save(tmp_path / "base", BERT, "bert.x.weight")
    message = lacking(base, "BertForMaskedLM", CLASSIFIER, CHOOSE)
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(base, head("classifier"), tmp_path / "no")
    llama = save(tmp_path / "llama", LLAMA, "model.norm.weight")
    other = head("score", bias=False, task="TOKEN_CLS")
    message = lacking(llama, "LlamaForCausalLM", "\n  score.weight (3, 6)", WRITE)
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(llama, other, tmp_path / "no")
    merged = merge_checkpoint(llama, other, tmp_path / "out", new_head=True)
    assert merged.new_head == "LlamaForSequenceClassification"


def test_heads_of_no_known_class(tmp_path: Path) -> None:
    """The model is not in the table, or the head is of another kind."""
    base = save(tmp_path / "base", {"model_type": "mine"}, "x.weight")
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"the adapters have a head that {tmp_path}/base lacks (config.json "
            "names mine):\n"
            "  classifier.out_proj.weight (3, 6)\n"
            "  classifier.out_proj.bias (3,)\n"
            "jaxmix knows no transformers class of this model with such "
            "a head. Save the base with the class that the adapter was "
            "trained with, and merge into that."
        ),
    ):
        merge_checkpoint(base, head("classifier.out_proj"), tmp_path / "no", new_head=True)
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"the adapters have a head that {tmp_path}/base lacks (config.json "
            "names mine):\n"
            "  score.weight (3, 6)\n"
            "  score.bias (3,)\n"
            "jaxmix knows no transformers class of this model with such "
            "a head. Save the base with the class that the adapter was "
            "trained with, and merge into that."
        ),
    ):
        merge_checkpoint(base, head("score"), tmp_path / "no")
    unknown = save(tmp_path / "other", {}, "x.weight")
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"the adapters have a head that {tmp_path}/other lacks (config.json "
            "names no class):\n"
            "  score.weight (3, 6)\n"
            "  score.bias (3,)\n"
            "jaxmix knows no transformers class of this model with such "
            "a head. Save the base with the class that the adapter was "
            "trained with, and merge into that."
        ),
    ):
        merge_checkpoint(unknown, head("score"), tmp_path / "no")


def test_heads_of_different_sizes(tmp_path: Path) -> None:
    """Two adapters that contradict each other are refused."""
    base = save(tmp_path / "base", LLAMA, "model.norm.weight")
    both = [head("score", bias=False), head("score", bias=False, rows=5)]
    message = full_text(
        "adapters have heads of different sizes:\n  score.weight: (3, 6) and (5, 6)\nMerge only "
        "one of them."
    )
    with pytest.raises(ShapeError, match=message):
        merge_checkpoint(base, both, tmp_path / "no", new_head=True)


def test_base_has_the_head(tmp_path: Path) -> None:
    """Then no head is new, with any option."""
    base = save(tmp_path / "base", LLAMA, "model.norm.weight")
    tensors = {**load(base), "score.weight": draw(3, D)}
    save_file(tensors, base / "model.safetensors")
    merged = merge_checkpoint(base, head("score", bias=False), tmp_path / "out", new_head=True)
    assert merged.new_head is None and load(tmp_path / "out").keys() == tensors.keys()


def test_base_has_another_head_of_that_name(tmp_path: Path) -> None:
    """A token classifier on a sequence classifier: task and class decide."""
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    names = [*(f"bert.pooler.dense.{kind}" for kind in ("weight", "bias")), "bert.x.weight"]
    base = save(tmp_path / "base", config, *names)
    tensors = {**load(base), "classifier.weight": draw(2, D), "classifier.bias": draw(2)}
    save_file(tensors, base / "model.safetensors")
    tokens = head("classifier", rows=2, task="TOKEN_CLS")
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"the adapters have a head that {tmp_path}/base lacks (config.json "
            "names BertForSequenceClassification):\n"
            "  classifier.weight (2, 6)\n"
            "  classifier.bias (2,)\n"
            "It is the head of BertForTokenClassification. Use "
            "new_head=True to write it as new tensors, and the class and "
            "its labels to config.json. Or save such a base with "
            "transformers, and merge into that: "
            "BertForTokenClassification.from_pretrained(base).save_pretrained(folder)."
        ),
    ):
        merge_checkpoint(base, tokens, tmp_path / "out", new_head=False)
    merged = merge_checkpoint(base, tokens, tmp_path / "out", verify=True)
    assert merged.new_head == "BertForTokenClassification"
    assert "classifier.weight: replaced by the new head" in merged.left_out
    assert load(tmp_path / "out").keys() == {
        "bert.x.weight",
        "classifier.weight",
        "classifier.bias",
    }
    # For the same task with more labels it is resized, with either option.
    more = head("classifier", rows=4, task="SEQ_CLS")
    with pytest.raises(
        ShapeError,
        match=full_text(
            f"{tmp_path}/base has another number of tokens or labels than the "
            "adapters:\n"
            "  classifier: the adapter fits shape (4, 6), "
            "classifier.weight has shape (2, 6)\n"
            "  classifier: the adapter fits shape (4,), classifier.bias "
            "has shape (2,)\n"
            "If they were trained on this model after resizing, use "
            "resize=True to give these tensors the adapters' rows, and "
            "update config.json."
        ),
    ):
        merge_checkpoint(base, more, tmp_path / "more")
    merged = merge_checkpoint(base, more, tmp_path / "more", new_head=True)
    assert merged.new_head is None and set(merged.resized.values()) == {(2, 4)}


@pytest.mark.parametrize("classes", [0.5, "LlamaForCausalLM", {"a": 1}, [None, 3]])
@pytest.mark.parametrize("task", ["", {"x": 1}, 7])
def test_config_without_classes(classes: Any, task: Any, tmp_path: Path) -> None:
    """Without a new head neither this nor an adapter without a task matters."""
    base = save(tmp_path / "base", {**LLAMA, "architectures": classes}, "model.q.weight")
    adapter = head("model.q", rows=D, bias=False, task=task)
    assert merge_checkpoint(base, adapter, tmp_path / "out").new_head is None
    message = lacking(base, "llama", "\n  score.weight (3, 6)", WRITE)
    with pytest.raises(LayoutError, match=message):
        merge_checkpoint(
            base, head("score", bias=False, task=task), tmp_path / "more", new_head=False
        )
