"""From PyTorch's names and orientation to the decoder's tree, and back."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError, listing
from jaxmix.models.checkpoint import read_tensors
from jaxmix.models.config import DecoderConfig
from jaxmix.models.decoder import Decoder, Path, assemble, skeleton
from jaxmix.models.reading import read_config

__all__ = ["from_torch", "load", "to_torch", "torch_name"]

_TORCH_LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load(folder: str | os.PathLike[str], *, dtype: Any = None) -> Decoder:
    """Reads a decoder from a Hugging Face folder.

    Args:
        folder: with config.json, and model.safetensors or its shards and their index.
        dtype: what to cast the weights to; by default each keeps the file's. Activations have the
            embedding's dtype; norms, softmax and angles are computed in float32 at the least.

    Returns:
        The model, with its config. The logits are transformers'.

    Raises:
        CheckpointError: if a file is missing, damaged or makes no sense, or if tensors are missing
            or not used; all are listed.
        ShapeError: if tensors have other shapes than the config says.
        UnsupportedError: if the kind of model, a field of the config or a dtype would not be
            honoured.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder has no config.json; found no such folder.
        Give a folder that transformers' save_pretrained wrote.

    Source: ``transformers.AutoModelForCausalLM.from_pretrained``.
    """
    config = read_config(folder)
    tensors = read_tensors(folder)
    try:
        return from_torch(config, tensors, dtype=dtype)
    except JaxmixError as error:
        raise type(error)(f"{os.fspath(folder)}: {error}") from error


def from_torch(config: DecoderConfig, tensors: Mapping[str, Any], *, dtype: Any = None) -> Decoder:
    """A decoder from a flat dict of PyTorch's names: ``kernel = weightᵀ``.

    Args:
        config: what the model computes.
        tensors: NumPy or JAX arrays by PyTorch's names, in PyTorch's orientation: a weight is (out,
            in). They are copied, one at a time. ``rotary_emb.inv_freq`` is passed over, and so is
            ``lm_head.weight`` where it is tied and equal.
        dtype: what to cast them to; each keeps its own by default.

    Returns:
        The model.

    Raises:
        CheckpointError: if tensors are missing or not used.
        ShapeError: if some have other shapes than the config says.
        UnsupportedError: if some are no floats, or are wider than JAX is set to.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
        ... )
        >>> tensors = to_torch(Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        >>> tensors["model.layers.1.mlp.up_proj.weight"].shape
        (12, 8)
        >>> from_torch(config, tensors)(jnp.array([[1, 2]])).shape
        (1, 2, 11)

    Source: the state dict of transformers' ``*ForCausalLM``.
    """
    graph, empty = skeleton(config)
    paths = {torch_name(path): path for path in empty}
    _check_names(paths, tensors, config)
    leaves: dict[Path, Array] = {}
    misshaped, odd = [], []
    for name, path in paths.items():
        tensor = tensors[name]
        expected = empty[path].shape
        expected = expected[::-1] if path[-1] == "kernel" else expected
        target = np.dtype(tensor.dtype if dtype is None else dtype)
        if tuple(tensor.shape) != expected:
            misshaped.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        elif np.dtype(tensor.dtype).name not in _FLOATS:
            odd.append(f"{name} is {tensor.dtype}, expected one of {', '.join(_FLOATS)}")
        elif jax.dtypes.canonicalize_dtype(target) != target:
            odd.append(f"{name} would be {target}, which JAX rounds unless jax_enable_x64 is set")
        else:
            # A copy in any case: the caller's array may change later.
            leaves[path] = jnp.array(tensor.T if path[-1] == "kernel" else tensor, target)
    if misshaped:
        raise ShapeError(
            f"tensors that do not fit the config:{listing(misshaped)}\n"
            "Is the config of another size of this model?"
        )
    if odd:
        raise UnsupportedError(
            f"tensors of a dtype that is not done here:{listing(odd)}\n"
            "Take an unquantized checkpoint, or say dtype=jnp.float32."
        )
    return assemble(graph, empty, leaves)


def to_torch(model: Decoder) -> dict[str, Array]:
    """The weights as a flat dict of PyTorch's names: ``weight = kernelᵀ``.

    Args:
        model: the decoder.

    Returns:
        ``{name: array}`` in PyTorch's orientation and the model's dtypes, in the tree's order. A
        tied model has no ``lm_head.weight``.

    Example:
        >>> from jaxmix.models import Decoder
        >>> config = read_config(
        ...     dict(model_type="llama", vocab_size=11, hidden_size=8, intermediate_size=12)
        ...     | dict(num_hidden_layers=2, num_attention_heads=4)
        ... )
        >>> model = Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> again = from_torch(config, to_torch(model))
        >>> to_torch(model)["lm_head.weight"].shape, jax.tree.all(
        ...     jax.tree.map(jnp.array_equal, nnx.state(again), nnx.state(model))
        ... )
        ((11, 8), True)

    Source: the state dict of transformers' ``*ForCausalLM``.
    """
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        torch_name(path): leaf[...].T if path[-1] == "kernel" else leaf[...]
        for path, leaf in leaves
    }


def torch_name(path: Path) -> str:
    """PyTorch's name of a leaf."""
    return ".".join([*map(str, path[:-1]), _TORCH_LEAF[str(path[-1])]])


def _check_names(
    paths: Mapping[str, Any], tensors: Mapping[str, Any], config: DecoderConfig
) -> None:
    """Whether the tensors are just those of the config."""
    missing = [f"missing: {name}" for name in paths if name not in tensors]
    unused = [
        f"not used: {name}"
        for name in tensors
        if name not in paths and not name.endswith("rotary_emb.inv_freq")
    ]
    if config.tie_word_embeddings and f"not used: {_HEAD}" in unused and _EMBEDDING in tensors:
        if not np.array_equal(np.asarray(tensors[_HEAD]), np.asarray(tensors[_EMBEDDING])):
            raise CheckpointError(
                f"{_HEAD} differs from {_EMBEDDING}, though the config ties them. "
                "Set tie_word_embeddings to false to use both."
            )
        unused.remove(f"not used: {_HEAD}")
    if missing or unused:
        raise CheckpointError(
            f"tensors that do not fit a {config.kind} of {config.num_hidden_layers} layers:"
            f"{listing(missing + unused)}\nIs it a causal language model of this kind, whole, and "
            "with no adapter's names in it?"
        )
