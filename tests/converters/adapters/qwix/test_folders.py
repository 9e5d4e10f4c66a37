"""LoRA leaves in Orbax checkpoints, and the folders of runs."""

import json
from pathlib import Path
from typing import Any

import pytest

import jaxmix
from jaxmix.converters.adapters.qwix.folders import is_orbax, restore
from jaxmix.errors import CheckpointError

from ....messages import full_text
from ..peft.folders import refused
from .trees import drawn


def test_orbax_checkpoint_with_maxtext_metadata(tmp_path):
    """Alpha is read from the metadata; a contradicting option is refused, as in MaxText."""
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {
        "decoder": {"mlp": {"wi_0": {"kernel_lora_a": drawn(4, 2), "kernel_lora_b": drawn(2, 3)}}}
    }
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "0" / "items", tree)
    metadata = {"custom_metadata": {"lora": {"lora_rank": 2, "lora_alpha": 5.0}}}
    (tmp_path / "0" / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    for path in (tmp_path / "0", tmp_path / "0" / "items"):
        update: Any = jaxmix.load(path).updates["decoder.mlp.wi_0"]
        assert update.scale == 2.5 and update.a.shape == (2, 4) and update.b.shape == (3, 2)
    message = refused(CheckpointError, tmp_path / "0", alpha=6.0)
    assert "alpha = 6.0 was given, but the metadata has 5.0" in message


def test_run_of_several_steps_is_ambiguous(tmp_path: Path) -> None:
    """The user must choose a step."""
    for step in (5, 20):
        (tmp_path / str(step) / "model_params").mkdir(parents=True)
        (tmp_path / str(step) / "model_params" / "_METADATA").write_text(json.dumps({}))
    message = f"{tmp_path} has the steps 5, 20. Pass the folder of one of them."
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.load(tmp_path, alpha=5)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("_METADATA", True),
        ("items/manifest.ocdbt", True),
        ("7/params/_CHECKPOINT_METADATA", True),
        ("7/others/_METADATA", False),  # no item of a known library
        ("last/items/_METADATA", False),  # steps have numbers
        ("model.safetensors", False),
    ],
)
def test_checkpoints_are_recognised_by_their_files(
    file: str, expected: bool, tmp_path: Path
) -> None:
    """A folder, its item, or the folder of a run; nothing is opened."""
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert is_orbax(tmp_path) is expected


def test_steps_are_listed_by_number(tmp_path: Path) -> None:
    """Not as strings; folders without an item are no steps."""
    for name in ("100/items", "20/params", "3/model_params", "7/logs"):
        (tmp_path / name).mkdir(parents=True)
    message = f"{tmp_path} has the steps 3, 20, 100. Pass the folder of one of them."
    with pytest.raises(CheckpointError, match=full_text(message)):
        restore(tmp_path)
