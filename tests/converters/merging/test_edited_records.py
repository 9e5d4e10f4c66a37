"""Edited records of an interrupted merge are checked, or not used.

`test_locking` tests the journal, by which a folder is recognized as a merge's.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError

from ..bases import Adapters, contents, mixed

EDITED = ("", "{", "null", "[]", "[1]", "1", '"x"', "true", "[" * 5000, "9" * 5000, "\0" * 9)


@pytest.mark.parametrize("text", EDITED, ids=lambda text: text[:9])
def test_edited_record_of_the_mix(
    text: str, broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """The complete shards are not used, because they may belong to another mix."""
    (broken / "merge.json").write_text(text)
    changed = 2.0 * mixed(adapters)
    merge_checkpoint(sharded, changed, tmp_path / "out", resume=True, verify=True)
    merge_checkpoint(sharded, changed, tmp_path / "plain")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert not broken.exists()


@pytest.mark.parametrize("value", [None, [], {}, -1, "x", 2**70, True, {"a": 1}, 1.5])
def test_edited_fields_of_the_mix(
    value: Any, broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """All fields are compared; an additional or missing field means another merge."""
    record = json.loads((broken / "merge.json").read_text())
    for key in [*record, "more"]:
        if record.get(key) == value:
            continue
        (broken / "merge.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(CheckpointError) as caught:
            merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", resume=True)
        assert f"belongs to another merge, which can't be resumed. Different: {key}. " in (
            str(caught.value)
        )


@pytest.mark.parametrize("text", [*EDITED, '{"size": 1}', '{"losses": {"a": [[[]]]}}'])
def test_edited_record_of_a_shard(
    text: str, broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """The shard is written again."""
    (broken / "whole" / "0.json").write_text(text)
    out = tmp_path / "out"
    merged = merge_checkpoint(sharded, mixed(adapters), out, resume=True, verify=True)
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "plain")
    assert merged.resumed < 2 and contents(out) == contents(tmp_path / "plain")


@pytest.mark.parametrize("text", [*EDITED, "5", "-1", "1.5", str(2**80)])
def test_edited_seal(
    text: str, broken: Path, sharded: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """The seal states that the output is in place; the output's contents are still checked."""
    (broken / "sealed.json").write_text(text)
    merged = merge_checkpoint(sharded, mixed(adapters), tmp_path / "out", resume=True)
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "plain")
    assert merged.resumed and contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert not broken.exists()
