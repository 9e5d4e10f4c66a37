"""Orbax checkpoints that claim more than they hold."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.files import orbax_sizes
from jaxmix.errors import CheckpointError


def test_orbax_checkpoint_with_missing_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {
        "proj": {"lora_a": np.zeros((8, 4), np.float32), "lora_b": np.zeros((4, 8), np.float32)}
    }
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as writer:
        writer.save(tmp_path / "step", tree)
    array = tmp_path / "step" / "proj.lora_a" / ".zarray"
    metadata = json.loads(array.read_text())
    metadata["shape"] = metadata["chunks"] = [1 << 30, 1 << 30]
    array.write_text(json.dumps(metadata))
    message = (
        r"\A{} has [\d,]+ bytes on disk, but its metadata states arrays of {} bytes; the largest "
        r"are:\n  \['proj'\]\['lora_a'\]: {} bytes\n  \['proj'\]\['lora_b'\]: 128 bytes\n"
        r"Save or download it again\.\Z"
    )
    step, size = re.escape(str(tmp_path / "step")), 1 << 62
    expected = message.format(step, f"{size + 128:,}", f"{size:,}")
    with pytest.raises(CheckpointError, match=expected):
        jaxmix.load(tmp_path / "step", format="qwix", alpha=1.0)
    metadata["shape"] = metadata["chunks"] = [8, 4]
    array.write_text(json.dumps(metadata))
    with ocp.PyTreeCheckpointer() as reader:
        orbax_sizes.check_sizes(reader, tmp_path / "step")
        monkeypatch.setattr(orbax_sizes, "ALWAYS", 0)
        monkeypatch.setattr(orbax_sizes, "RATIO", 0)
        with pytest.raises(CheckpointError, match=message.format(step, 256, 128)):
            orbax_sizes.check_sizes(reader, tmp_path / "step")
