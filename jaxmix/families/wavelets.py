"""The filters of Daubechies' wavelets, made from their definitions.

A ``dbN`` or ``symN`` is ``(1 + z)ᴺ·Q(z)`` with ``|Q|² = P(sin²(ω/2))`` on the unit circle and
``P(y) = Σ C(N − 1 + k, k) yᵏ`` for k < N. Each root y of P stands for two roots of Q, z and 1/z, of
which a filter takes one: ``dbN`` always the one inside the circle, ``symN`` those that make it most
symmetric. A ``coifN`` has 2N vanishing moments on both sides; its equations are solved by Newton's
way. Float64 is good to 1e-14 for the orders here.
"""

import math
from functools import lru_cache

import numpy as np

__all__ = ["WAVELETS", "low_pass"]

# For symN: bit i says that of the i-th pair of roots, in the order of the y's, the inner one is
# taken.
_SYMMETRIC = {2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 7: 6, 8: 5, 9: 9, 10: 10}
# Where Newton's way to a coifN starts, in thousandths: there are several such filters.
_COIFLETS = {
    1: (-73, 338, 853, 385, -73, -16),
    2: (16, -41, -67, 386, 813, 417, -76, -59, 24, 6, -2, -1),
    3: (-4, 8, 23, -66, -61, 405, 794, 428, -72, -82, 35, 16, -9, -3, 1, 0, 0, 0),
}

WAVELETS = (
    "haar",
    *(f"db{n}" for n in range(1, 11)),
    *(f"sym{n}" for n in _SYMMETRIC),
    *(f"coif{n}" for n in _COIFLETS),
)


@lru_cache
def low_pass(name: str) -> tuple[float, ...]:
    """The low-pass filter with which a wavelet is put together again.

    Args:
        name: One of ``WAVELETS``.

    Returns:
        Its numbers; their sum is √2, the sum of their squares 1.

    Example:
        >>> [round(x, 6) for x in low_pass("db2")]
        [0.482963, 0.836516, 0.224144, -0.12941]

    Source: I. Daubechies, Ten Lectures on Wavelets, 1992, chapters 6 and 8.
    """
    order = 1 if name == "haar" else int(name.lstrip("dbsymcoif"))
    if name.startswith("coif"):
        return tuple(_coiflet(order).tolist())
    numbers = np.ones(1)
    for _ in range(order):
        numbers = np.convolve(numbers, [1, 1])
    for i, y in enumerate(_roots(order)):
        takes_inner = not name.startswith("sym") or _SYMMETRIC[order] >> i & 1
        z = _inner(y) if takes_inner else 1 / _inner(y)
        numbers = np.convolve(numbers, [1, -2 * z.real, abs(z) ** 2] if y.imag else [1, -z.real])
    return tuple((numbers * math.sqrt(2) / numbers.sum()).tolist())


def _roots(order: int) -> list[complex]:
    """The roots of P, one of each conjugate pair, by their real parts."""
    numbers = [math.comb(order - 1 + k, k) for k in reversed(range(order))]
    found = [complex(y) for y in np.roots(numbers)]
    return sorted((y for y in found if y.imag >= 0), key=lambda y: (y.real, y.imag))


def _inner(y: complex) -> complex:
    """The root inside the unit circle of ``z + 1/z = 2 − 4y``."""
    half = 1 - 2 * y
    root = np.sqrt(complex(half * half - 1))
    return complex(min(half + root, half - root, key=abs))


def _coiflet(order: int) -> np.ndarray:
    """The filter h of 6N numbers with Σ h = √2, no lower moments, and no overlap by two and more.

    Moments are about 2N, of h and of h with alternating signs.
    """
    size = 6 * order
    places = np.arange(size)
    powers = ((places - 2 * order) / size)[None] ** np.arange(2 * order)[:, None]
    moments = np.concatenate([powers, powers * (-1.0) ** places])
    sought = np.zeros(len(moments) + size // 2)
    sought[[0, len(moments)]] = math.sqrt(2), 1
    h = np.asarray(_COIFLETS[order]) / 1000
    for _ in range(30):
        later = [np.pad(h, (0, 2 * m))[2 * m :] for m in range(size // 2)]
        earlier = [np.pad(h, (2 * m, 0))[:size] for m in range(size // 2)]
        found = np.concatenate([moments @ h, np.stack(later) @ h])
        slopes = np.concatenate([moments, np.stack(later) + np.stack(earlier)])
        step = np.linalg.lstsq(slopes, sought - found, rcond=None)[0]
        h = h + step
        if np.abs(step).max() < 1e-15:
            break
    return h
