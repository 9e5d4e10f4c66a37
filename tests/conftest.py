"""Settings of all tests: strict promotion, no lazy defaults, equal random draws on CI.

JAX starts with eight host devices, so sharding is tested everywhere. Torch gets one thread, since
two workers share the machine. Most programs here run once, so compiling takes longer than running
them: LLVM does not optimize them, and XLA does not split them into parts to compile in parallel.
Up to JAX 0.10, XLA's emitter of fusions takes two thirds of a compilation on CPU, so it is off;
later versions stop at this unknown flag. NumPy runs operations outside of compiled functions where
its results are the same. Modules and JAX's caches live as long as the process, so the garbage
collector runs rarely, and only over new objects.
"""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1".strip()
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import jaxtyping
import pytest

from .by_numpy import EXACT, use_numpy
from .house import checking
from .jax_internals import take_shortcuts
from .longest import start_first
from .sampling import mark_others_thorough
from .small_programs import use_numpy_for_small_programs
from .uncompiled import uncompiled

gc.set_threshold(50_000, 20, 20)
take_shortcuts()
use_numpy(EXACT)
use_numpy_for_small_programs()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The types of every call are checked in the packages that compute. Public functions are not
# checked: tests pass them bad arguments and check their errors. Import jaxmix only after this.
CHECKED = ("operators", "affine", "apply.plan", "models.layers", "models.rope")
jaxtyping.install_import_hook(
    [f"jaxmix.{package}" for package in CHECKED], f"{checking.__name__}.check"
)
# A check takes longer than many functions, so it is left out in rooms whose calls others make.
UNCHECKED = {"combining", "converters", "fuzz", "laws", "parity", "placement", "training"}

hypothesis.settings.register_profile("dev", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=500)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
)

if find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks the types of calls in the rooms of tests where new ones are made."""
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.update("jaxtyping_disable", room in UNCHECKED)


@pytest.fixture
def no_compiling() -> Iterator[None]:
    """Runs a test uncompiled, for tests of many programs that each run once."""
    with uncompiled():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chooses and sorts the tests for `make test`, whose workers take files in order."""
    mark_others_thorough(items)
    start_first(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exempts all objects that exist before the first test from garbage collection."""
    gc.freeze()
