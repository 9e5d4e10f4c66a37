"""The Python code of docs/scale.md runs as one program on eight devices."""

import os
import re
import subprocess
import sys

import pytest

from ..house.sources import ROOT

PAGE = ROOT / "docs" / "scale.md"


def blocks() -> list[str]:
    """Returns the runnable blocks (```python); ```py marks code that needs several hosts."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.thorough
def test_it_runs() -> None:
    """All blocks run in order, and their results are checked."""
    checks = """
assert len(jax.devices()) == 8 and logits.shape == answers.shape == (8, 32, 256)
assert bool(jnp.isfinite(logits).all()) and float(before) > 0
whole_model = jaxmix.models.from_torch(config, composed)
gap = jnp.abs(jax.jit(lambda model: model(tokens))(whole_model) - logits).max()
assert float(gap) < 1e-3, gap
print("as it says")
"""
    # The last flag: code that runs once need not be optimized.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags}
    program = [sys.executable, "-W", "error", "-c", "\n".join([*blocks(), checks])]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and done.stdout == "as it says\n", done.stderr[-4000:]


def test_every_step_is_there() -> None:
    """The page covers loading onto a mesh, compose, running, Bank, training and saving."""
    assert len(blocks()) == 6
