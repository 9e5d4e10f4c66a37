"""What every test runs under: strict promotion, no lazy defaults, the same draws on CI.

Eight host devices are asked for before JAX starts, so that sharding is tested everywhere; one
thread of torch, since two workers share the machine. Most programs here run once, so LLVM is told
not to optimise them: that takes longer than they do. Up to JAX 0.10 two thirds of a compilation on
CPU is XLA's emitter of fusions, so it is off there; later versions don't know the flag and stop.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0".strip()
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
from jaxtyping import install_import_hook

from .house import checking

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Shapes and types of every call are checked in the rooms that compute. Not at the faces: these
# refuse bad arguments in words of their own, which are tested. Import jaxmix only after this.
CHECKED = ("operators", "affine", "plan", "models.layers", "models.rope")
install_import_hook([f"jaxmix.{room}" for room in CHECKED], f"{checking.__name__}.check")

hypothesis.settings.register_profile("dev", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=500)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
)

if find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)
