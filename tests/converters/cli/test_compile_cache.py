"""Where the program keeps compiled functions, and when it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmix.converters.cli.compile_cache import cache_folder, use_compile_cache


def test_users_cache_folder_is_used(tmp_path: Path) -> None:
    """With the time from which JAX keeps a program."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    use_compile_cache(environment)
    folder = tmp_path / "cache" / "jaxmix" / "compiled"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(folder) and folder.is_dir()
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_settings_of_the_environment_are_kept(tmp_path: Path) -> None:
    """A folder that the user chose, or the empty string for none."""
    for chosen in ("/elsewhere", ""):
        environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": chosen}
        use_compile_cache(environment)
        assert environment["JAX_COMPILATION_CACHE_DIR"] == chosen
    assert not (tmp_path / "jaxmix").exists()


def test_folder_that_cannot_be_made_is_not_used(tmp_path: Path) -> None:
    """The program runs without it."""
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    use_compile_cache(environment)
    assert "JAX_COMPILATION_CACHE_DIR" not in environment


@pytest.mark.parametrize(
    ("platform", "within"), [("linux", ".cache"), ("darwin", "Library/Caches")]
)
def test_default_folder_is_the_systems_cache(
    platform: str, within: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a folder in the environment."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({}) == tmp_path / within / "jaxmix" / "compiled"


def test_only_the_program_chooses_a_folder(tmp_path: Path) -> None:
    """Not `main` with arguments, which belongs to another program."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env["XDG_CACHE_HOME"] = str(tmp_path)
    code = "import os, sys; from jaxmix.converters.cli import main; main({}); print(*os.environ)"
    for given, is_chosen in (("", True), ("['--version']", False)):
        command = [sys.executable, "-c", code.format(given), "--version"]
        shown = subprocess.check_output(command, env=env, text=True).split()
        assert ("JAX_COMPILATION_CACHE_DIR" in shown) == is_chosen
