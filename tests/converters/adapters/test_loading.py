"""`load`: unreadable paths, and Python without torch and peft."""

import os
import subprocess
import sys
import textwrap

import pytest

from jaxmix.errors import CheckpointError

from .peft.folders import SITE, refused, save


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000, "a\0b", "\ud800"])
def test_unreadable_paths(path):
    """The system's reason is reported, and the path is shortened."""
    message = refused(CheckpointError, path)
    assert (
        message.startswith(f"the adapter {path[:79]!r}"[:-1]) and "can't be looked up: " in message
    )
    assert message.endswith(". Check its spelling.")


def test_folder_without_permission(tmp_path, monkeypatch):
    """Even listing it is forbidden."""
    folder = save(tmp_path)

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refused(CheckpointError, folder)
    assert message.endswith(" can't be looked up: Permission denied. Check its spelling.")


def test_torch_and_peft_are_not_imported(tmp_path):
    """Reading and composing import neither, and work without them."""
    save(tmp_path / "lora")
    save(tmp_path / "oft", "oft")
    program = f"""
        import sys
        blocked = ("torch", "peft", "transformers")
        for name in blocked:
            sys.modules[name] = None
            try:
                __import__(name)
            except ImportError:
                continue
            raise SystemExit("not blocked")
        import numpy as np
        import jaxmix
        adapters = [jaxmix.load({str(tmp_path)!r} + "/" + name) for name in ("lora", "oft")]
        out = jaxmix.compose({{"{SITE}.weight": np.ones((6, 4), np.float32)}}, adapters)
        assert not [m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m]]
        print(out["{SITE}.weight"].shape)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "(6, 4)\n"), process.stderr
