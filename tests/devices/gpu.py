"""The GPU's compiler without a device: the extra ``cuda-compiler``, and a description of an H100.

`make test-all` installs it into a folder of its own, ``cuda`` in the virtual environment. Next to
JAX, every program that starts JAX without a GPU would print that there is no CUDA.
"""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from jax.experimental import topologies

__all__ = ["H100", "has_gpu_compiler", "topology"]

FOLDER = Path(sys.prefix) / "cuda"
PLUGIN = "jax_plugins.xla_cuda12"
# The fields of XLA's GpuTargetConfigProto, with the figures of an H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 12 minor: 9 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def has_gpu_compiler() -> bool:
    """Whether JAX's CUDA plugin is installed, next to JAX or in its own folder."""
    return (FOLDER / PLUGIN.replace(".", "/")).is_dir() or _is_importable()


def _is_importable() -> bool:
    try:
        return importlib.util.find_spec(PLUGIN) is not None
    except ModuleNotFoundError:  # there is no jax_plugins at all
        return False


@cache
def topology() -> Any:
    """Returns four GPUs that only the compiler knows."""
    described = {"target_config": H100, "topology": "1x1x4"}
    try:
        return topologies.get_topology_desc("h100", "cuda", **described)
    except NotImplementedError:  # JAX has not found the plugin by itself
        if not _is_importable():
            sys.path.append(str(FOLDER))
        importlib.import_module(PLUGIN).initialize()
        return topologies.get_topology_desc("h100", "cuda", **described)
