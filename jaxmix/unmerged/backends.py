"""The choice between forms of one computation by the platform that a program is compiled for."""

from collections.abc import Callable
from typing import Any

from jax import lax

__all__ = ["by_platform"]


def by_platform(on_cpu: Callable[..., Any], on_accelerator: Callable[..., Any], *args: Any) -> Any:
    """Runs one of two equivalent functions.

    The platform is that for which JAX lowers the program. It may differ from the one on which it
    runs now, as with `jax.export`. The compiled program contains the chosen function only.

    Args:
        on_cpu: The form for CPU.
        on_accelerator: The form for TPU, GPU and all other platforms.
        *args: The arguments of both.

    Returns:
        The result; both must have the same shapes and dtypes.
    """
    return lax.platform_dependent(*args, cpu=on_cpu, default=on_accelerator)
