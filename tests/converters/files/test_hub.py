"""Which strings are ids of repositories on the hub."""

import pytest

from jaxmix.converters.files.hub import is_hub_id


@pytest.mark.parametrize("text", ["owner/llama-3.2", "a/b", "o_1/x.y-z"])
def test_ids(text: str) -> None:
    """An owner and a name."""
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text", ["", "name", "a/b/c", "./a/b", "../b", "~/b", "/b", "a/b c", "é/b"]
)
def test_paths_are_no_ids(text: str) -> None:
    """Not even with a revision."""
    assert not is_hub_id(text) and not is_hub_id(text, "main")


@pytest.mark.parametrize("suffix", ["safetensors", "json", "bin", "pt", "ckpt", "gguf"])
def test_name_that_ends_like_a_files_is_an_id_with_a_revision(suffix: str) -> None:
    """Without one it is taken for a path."""
    assert not is_hub_id(f"loras/style.{suffix}")
    assert is_hub_id(f"loras/style.{suffix}", "main")
