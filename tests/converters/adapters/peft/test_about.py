"""An adapter's model and task are kept from one file to the next."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import CheckpointError

from ....messages import full_text
from .test_export import CONFIG, FORMS, lora, n

SAID = {
    "base_model_name_or_path": "owner/base",
    "revision": "main",
    "task_type": "CAUSAL_LM",
    "auto_mapping": None,
}
PARAMS = {"a.q.weight": n(6, 4), "b.q.weight": n(6, 4)}


def config(folder: Path) -> dict[str, Any]:
    """The config's fields about model and task."""
    values = json.loads((folder / CONFIG).read_text())
    return {key: values[key] for key in SAID}


def saved(folder: Path, **fields: Any) -> Adapter:
    """An adapter read from a folder with these fields."""
    jaxmix.export_peft(Adapter(FORMS["lora"]), folder)
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    adapter = jaxmix.load(folder)
    assert isinstance(adapter, Adapter)
    return adapter


def test_kept_from_file_to_file(tmp_path: Path) -> None:
    """They survive loading, strengths, new names, saving, attaching, `to_lora` and `combine`."""
    original = saved(tmp_path / "in", **SAID)
    second = saved(tmp_path / "other", **{**SAID, "revision": None, "task_type": "SEQ_CLS"})
    attached = jaxmix.attach(PARAMS, original)
    fields = {
        "again": original,
        "half": (0.5 * original).renamed("half"),
        "ours": jaxmix.load(jaxmix.save(original, tmp_path / "mix")),
        "detached": jaxmix.detach(attached)[1][0],
        "tree": jax.tree.map(jnp.asarray, original),
        "to_lora": jaxmix.to_lora(jaxmix.mix(original, original.renamed("b")), PARAMS, rank=2),
        "cat": jaxmix.combine([original, original], method="cat"),
        "linear": jaxmix.combine([original, original], method="linear"),
    }
    for name, adapter in fields.items():
        assert config(jaxmix.export_peft(adapter, tmp_path / name)) == SAID, name
    joined = jaxmix.combine([original, second], method="linear")
    assert config(jaxmix.export_peft(joined, tmp_path / "joined")) == {**SAID, "task_type": None}
    out = jaxmix.export_peft(jaxmix.mix(original, second.renamed("two")), tmp_path / "two")
    assert config(out / "01-in")["task_type"] == "CAUSAL_LM"
    assert config(out / "02-two")["task_type"] == "SEQ_CLS"


def test_options_override_the_file(tmp_path: Path) -> None:
    """Another base does not keep the file's revision."""
    saved_adapter = saved(tmp_path / "in", **SAID)
    out = jaxmix.export_peft(
        saved_adapter, tmp_path / "out", base_model_name_or_path="my/base", task_type="SEQ_CLS"
    )
    assert config(out) == {
        **dict.fromkeys(SAID),
        "base_model_name_or_path": "my/base",
        "task_type": "SEQ_CLS",
    }
    plain = jaxmix.export_peft(Adapter(FORMS["lora"]), tmp_path / "plain")
    assert config(plain) == dict.fromkeys(SAID)


def test_class_of_the_model(tmp_path: Path) -> None:
    """It is kept where PEFT knows no task; a task takes precedence."""
    mapping = {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama"}
    saved_adapter = saved(tmp_path / "in", auto_mapping=mapping)
    assert config(jaxmix.export_peft(saved_adapter, tmp_path / "out"))["auto_mapping"] == mapping
    out = jaxmix.export_peft(saved_adapter, tmp_path / "task", task_type="CAUSAL_LM")
    assert config(out)["auto_mapping"] is None


def test_empty_fields_are_not_kept(tmp_path: Path) -> None:
    """They affect no result, so they are no error."""
    fields = {
        "base_model_name_or_path": 5,
        "revision": "",
        "task_type": ["x"],
        "auto_mapping": {"a": 1},
    }
    assert saved(tmp_path / "in", **fields).metadata == {}


def test_head_that_peft_would_not_load(tmp_path: Path) -> None:
    """A trained head that became a LoRA: PEFT ignores it for this task, so the task is omitted."""
    updates = {"q": lora(), "score": lora()}
    adapter = Adapter(updates, metadata={"task_type": "SEQ_CLS", "revision": "x"})
    written = config(jaxmix.export_peft(adapter, tmp_path / "out"))
    assert written == {**dict.fromkeys(SAID), "revision": "x"}


def test_metadata_is_not_part_of_the_structure() -> None:
    """Adapters for other tasks use the same program."""
    first, second = (
        Adapter(FORMS["lora"], metadata={"task_type": x}) for x in ("CAUSAL_LM", "SEQ_CLS")
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    traces: list[int] = []

    @jax.jit
    def total(adapter: Any) -> Any:
        traces.append(1)
        return sum(jnp.sum(x) for x in jax.tree.leaves(adapter))

    assert total(first) == total(second) and len(traces) == 1


def test_saved_mix_with_other_metadata(tmp_path: Path) -> None:
    jaxmix.save(Adapter(FORMS["lora"], metadata={"revision": "x"}), tmp_path / "mix")
    path = tmp_path / "mix" / "mix.json"
    path.write_text(path.read_text().replace('{"revision": "x"}', "3"))
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/mix/mix.json: not a valid mix:\n"
            "  part 1: metadata is 3, expected an object\n"
            "Expected the file that jaxmix writes, or a recipe: "
            '{"format": "jaxmix", "version": 1, "parts": [{"source": '
            '"…", "strength": 1}]}.'
        ),
    ):
        jaxmix.load(tmp_path / "mix")
