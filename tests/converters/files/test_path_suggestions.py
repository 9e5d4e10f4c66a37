"""Suggestions for mistyped paths."""

from pathlib import Path

import pytest

from jaxmix.converters.files.path_suggestions import (
    MistypedPathError,
    refuse_mistyped,
    suggest_paths,
)

from ...messages import full_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a base, two adapters, and a link to nothing."""
    for name in ("base", "adapters/lora", "adapters/loha"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "nowhere").symlink_to("no/x")
    return tmp_path


def test_close_names_are_suggested(folder: Path) -> None:
    """Also of a folder above the last name, under which the rest of the path exists."""
    assert suggest_paths(f"{folder}/bse") == f" Did you mean {folder}/base?"
    assert suggest_paths(f"{folder}/adaptors/lora") == f" Did you mean {folder}/adapters/lora?"
    assert suggest_paths(f"{folder}/other") == ""


def test_link_to_nothing_is_not_suggested(folder: Path) -> None:
    """Neither for its own name nor for one like it."""
    assert suggest_paths(f"{folder}/nowhere") == suggest_paths(f"{folder}/nowher") == ""
    refuse_mistyped(f"{folder}/nowhere")


def test_mistyped_path_is_refused(folder: Path) -> None:
    """With the way to the hub, if the text may be an id of a repository there."""
    typed = f"{folder}/adapters/lorra"
    with pytest.raises(MistypedPathError) as caught:
        refuse_mistyped(typed, "pass --revision main")
    assert str(caught.value) == (
        f"{typed!r} does not exist. Did you mean {folder}/adapters/lora? If it is on the hub, pass "
        "--revision main."
    )
    assert (caught.value.path, caught.value.near) == (typed, f"{folder}/adapters/lora")


def test_names_that_differ_in_numbers_are_ids(tmp_path: Path) -> None:
    """They are different models, so the hub is asked."""
    (tmp_path / "model-3b").mkdir()
    refuse_mistyped(f"{tmp_path}/model-1b", "pass --revision main")
    with pytest.raises(
        MistypedPathError,
        match=full_text(f"'{tmp_path}/model-1b' does not exist. Did you mean {tmp_path}/model-3b?"),
    ):
        refuse_mistyped(f"{tmp_path}/model-1b")
