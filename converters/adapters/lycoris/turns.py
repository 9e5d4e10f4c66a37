"""Builds updates that multiply the weight from LyCORIS's tensors: Diag-OFT, IA3, GLoRA."""

import numpy as np

from jaxmix.converters.adapters.common.shapes import Factor, SiteTensors, describe_shapes, required
from jaxmix.errors import ShapeError, UnsupportedError
from jaxmix.families import BOFT, IA3, DiagOFT, GLoRA, Update

__all__ = ["diag_oft", "glora", "ia3", "scale_of"]


def diag_oft(factors: SiteTensors) -> Update:
    """Builds a Diag-OFT; alpha times the number of outputs, unless 0, bounds its generator."""
    (blocks,) = required(factors, "oft_blocks")
    if blocks.ndim == 4:
        return _boft(factors)
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or not blocks.size:
        raise ShapeError(f"{describe_shapes(factors)}, expected oft_blocks (blocks, b, b)")
    out_size = blocks.shape[0] * blocks.shape[1]
    return DiagOFT(blocks, _rescale(factors, out_size), _bound(factors, out_size))


def _boft(factors: SiteTensors) -> Update:
    """BOFT. LyCORIS rotates outputs, in the opposite direction to PEFT and by twice the angle."""
    blocks = factors["oft_blocks"]
    stages, count, b, _ = blocks.shape
    out_size = count * b
    if b != blocks.shape[3] or b % 2 or not blocks.size or out_size % (b << (stages - 1)):
        raise ShapeError(
            f"{describe_shapes(factors)}, expected oft_blocks (stages, blocks, b, b), b even"
        )
    places, orders = np.arange(out_size, dtype=np.int32), []
    for stage in range(stages):
        # The indices of 2ᵏ⁺¹ half blocks; the partner of each half is half a run away.
        runs = places.reshape(-1, 2, (b // 2) << stage).transpose(0, 2, 1)
        orders.append(np.argsort(runs.reshape(-1)).astype(np.int32))
    wide = np.asarray(blocks, np.float64)
    norm, bound = float(np.linalg.norm(wide - wide.swapaxes(2, 3))), _bound(factors, out_size)
    if bound is not None and norm > bound:
        wide = wide * (bound / norm)
    generator: Factor = (-2 * wide).astype(np.promote_types(blocks.dtype, np.float32))
    order: Factor = np.stack(orders)
    return BOFT(generator, _rescale(factors, out_size), order, on_output=True)


def _bound(factors: SiteTensors, out_size: int) -> float | None:
    """The bound on the norm of the generator; None if there is none, or it is 0."""
    if "alpha" not in factors:
        return None
    if factors["alpha"].size != 1:
        raise ShapeError(f"{describe_shapes(factors)}, expected alpha with one element")
    bound = float(factors["alpha"].reshape(())) * out_size
    return bound if bound > 0 else None


def _rescale(factors: SiteTensors, out_size: int) -> Factor | None:
    """The rescaling of the outputs, without the axes of length one."""
    rescale = factors.get("rescale")
    if rescale is None:
        return None
    if rescale.shape[:1] != (out_size,) or rescale.size != out_size:
        raise ShapeError(f"{describe_shapes(factors)}, expected rescale ({out_size}, 1 …)")
    return rescale.reshape(-1)


def ia3(factors: SiteTensors) -> Update:
    """Builds an IA3 that multiplies the weight by 1 + ``weight`` and not the bias."""
    weight, on_input = required(factors, "weight", "on_input")
    axes = [size for size in weight.shape if size != 1]
    fits = weight.ndim == 1 or (weight.ndim > 2 and weight.shape[0] == 1)
    if on_input.size != 1 or len(axes) > 1 or not fits or not weight.size:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected weight (n,) or (1, n, 1 …), on_input ()"
        )
    vector = weight.reshape(-1)
    one_more = vector + vector.dtype.type(1)
    if not on_input.reshape(()):
        return DiagOFT(rescale=one_more)
    return IA3(one_more, on_input=True, axes=max(weight.ndim - 2, 0))


def glora(factors: SiteTensors) -> Update:
    """Builds a GLoRA: ``W' = W + γ·(W A₁A₂ + B₁B₂)``; a convolution's A acts on the channels."""
    a1, a2, b1, b2 = required(factors, "a1.weight", "a2.weight", "b1.weight", "b2.weight")
    if "bm.weight" in factors:
        raise UnsupportedError(
            f"{describe_shapes(factors)}: bm.weight, which no version of LyCORIS can write"
        )
    rank = a2.shape[0] if a2.ndim else 0
    fits = all(x.ndim > 1 and x.size for x in (a1, a2, b1, b2)) and b2.shape[0] == rank
    points = [x.shape[2:] for x in (a1, a2, b1)]
    fits = fits and all(set(kernel) <= {1} for kernel in points)
    fits = fits and a1.shape[:2] == a2.shape[1::-1] and b1.shape[1] == rank
    if not fits:
        expected = f"a1 (in, {rank}), a2 ({rank}, in), b1 (out, {rank}), b2 ({rank}, in, kernel …)"
        raise ShapeError(f"{describe_shapes(factors)}, expected {expected}")
    scale = scale_of(factors, rank)
    a = a1.reshape(-1, rank), _times(a2.reshape(rank, -1), scale)
    b = b1.reshape(-1, rank), _times(b2.reshape(rank, -1), scale)
    return GLoRA(a, b, on_input=True)


def scale_of(factors: SiteTensors, rank: int | None) -> float:
    """Returns a `scale` in the file, as A1111 does, otherwise alpha / rank, or 1 without alpha.

    An alpha of 0 means the rank, both in kohya's scripts and in LyCORIS.
    """
    for name in ("scale", "alpha"):
        if name in factors and factors[name].size != 1:
            raise ShapeError(f"{describe_shapes(factors)}, expected {name} with one element")
    if "scale" in factors:
        return float(factors["scale"].reshape(()))
    alpha = float(factors["alpha"].reshape(())) if "alpha" in factors else 0.0
    return alpha / rank if alpha and rank else 1.0


def _times(x: Factor, scale: float) -> Factor:
    """``scale · x``, in float32 or wider."""
    return (np.asarray(x, np.float64) * scale).astype(np.promote_types(x.dtype, np.float32))
