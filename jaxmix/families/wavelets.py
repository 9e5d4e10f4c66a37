"""The filters of Daubechies wavelets, computed from their definitions.

A ``dbN`` or ``symN`` filter is ``(1 + z)ᴺ·Q(z)`` with ``|Q|² = P(sin²(ω/2))`` on the unit circle
and ``P(y) = Σ C(N − 1 + k, k) yᵏ`` for k < N. Each root y of P gives two roots of Q, z and 1/z, of
which the filter uses one. ``dbN`` always uses the one inside the circle; ``symN`` chooses the roots
that make the filter as symmetric as possible. ``coifN`` has 2N vanishing moments of both the
wavelet and the scaling function, and its equations are solved with Newton's method. In float64 the
results are accurate to 1e-14 for the orders here.
"""

import math
from functools import lru_cache

import numpy as np

__all__ = ["WAVELETS", "low_pass"]

# For symN: bit i is set if the filter uses the inner root of the i-th pair, in the order of the y.
_SYMMETRIC = {2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 7: 6, 8: 5, 9: 9, 10: 10}
# Starting points of Newton's method for coifN, in thousandths; the equations have several
# solutions.
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
    """Returns the low-pass reconstruction filter of a wavelet.

    Args:
        name: One of ``WAVELETS``.

    Returns:
        The coefficients, whose sum is √2 and whose squares sum to 1.

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
    """Returns the roots of P, one of each conjugate pair, sorted by their real parts."""
    numbers = [math.comb(order - 1 + k, k) for k in reversed(range(order))]
    found = [complex(y) for y in np.roots(numbers)]
    return sorted((y for y in found if y.imag >= 0), key=lambda y: (y.real, y.imag))


def _inner(y: complex) -> complex:
    """Returns the solution of ``z + 1/z = 2 − 4y`` inside the unit circle."""
    half = 1 - 2 * y
    root = np.sqrt(complex(half * half - 1))
    return complex(min(half + root, half - root, key=abs))


def _coiflet(order: int) -> np.ndarray:
    """Returns the filter h with 6N coefficients.

    It satisfies Σ h = √2, its lower moments about 2N vanish, for h and for h with alternating
    signs, and it is orthonormal to its shifts by multiples of two.
    """
    size = 6 * order
    positions = np.arange(size)
    powers = ((positions - 2 * order) / size)[None] ** np.arange(2 * order)[:, None]
    moments = np.concatenate([powers, powers * (-1.0) ** positions])
    target = np.zeros(len(moments) + size // 2)
    target[[0, len(moments)]] = math.sqrt(2), 1
    h = np.asarray(_COIFLETS[order]) / 1000
    for _ in range(30):
        later = [np.pad(h, (0, 2 * m))[2 * m :] for m in range(size // 2)]
        earlier = [np.pad(h, (2 * m, 0))[:size] for m in range(size // 2)]
        found = np.concatenate([moments @ h, np.stack(later) @ h])
        jacobian = np.concatenate([moments, np.stack(later) + np.stack(earlier)])
        step = np.linalg.lstsq(jacobian, target - found, rcond=None)[0]
        h = h + step
        if np.abs(step).max() < 1e-15:
            break
    return h
