"""Converts between PyTorch's flat dict of tensors and a model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxmix.errors import (
    CheckpointError,
    JaxmixError,
    ShapeError,
    UnsupportedError,
    listing,
    remedy,
)
from jaxmix.models.bert import Bert
from jaxmix.models.causal import CausalLM
from jaxmix.models.checkpoint import read_tensors
from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.decoder import Decoder
from jaxmix.models.gpt2 import GPT2
from jaxmix.models.reading import read_config
from jaxmix.models.torch_names import Config, NameMatch, is_transposed, match_names, torch_name
from jaxmix.models.tree import LeafPath, assemble, skeleton

__all__ = ["MODELS", "from_torch", "load", "to_torch"]

MODELS: dict[type, type[Decoder] | type[GPT2] | type[Bert]] = {
    DecoderConfig: Decoder,
    GPT2Config: GPT2,
    BertConfig: Bert,
}
_DTYPES = ("float64", "float32", "float16", "bfloat16")
_HEAD = "lm_head.weight"


# The return type is Any, so that callers who know the model need not narrow a union.
def load(folder: str | os.PathLike[str], *, dtype: Any = None, ignore: Sequence[str] = ()) -> Any:
    """Reads a model from a Hugging Face folder.

    Args:
        folder: A folder with config.json, and model.safetensors or shards with an index.
        dtype: The dtype of the weights; by default that of the file. Activations have the
            embedding's dtype; norms, softmax and angles are computed in at least float32.
        ignore: As for `from_torch`.

    Returns:
        A `Decoder`, `GPT2` or `Bert`, according to ``model_type``. Its logits or hidden states
        equal those of transformers.

    Raises:
        CheckpointError: If a file is missing, damaged or invalid, or tensors are missing or unused;
            the error lists all of them.
        ShapeError: If tensors have other shapes than in the config.
        UnsupportedError: If the model type, a field of the config or a dtype is not supported.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder has no config.json; found no such folder.
        Pass a folder that transformers' save_pretrained wrote.

    Source: ``from_pretrained`` of ``transformers.AutoModelForCausalLM``, for BERT of ``AutoModel``.
    """
    config = read_config(folder)
    tensors = read_tensors(folder)
    try:
        return from_torch(config, tensors, dtype=dtype, ignore=ignore)
    except JaxmixError as error:
        raise type(error)(f"{os.fspath(folder)}: {error}") from error


@overload
def from_torch(
    config: DecoderConfig,
    tensors: Mapping[str, Any],
    *,
    dtype: Any = None,
    ignore: Sequence[str] = (),
) -> Decoder: ...


@overload
def from_torch(
    config: GPT2Config, tensors: Mapping[str, Any], *, dtype: Any = None, ignore: Sequence[str] = ()
) -> GPT2: ...


@overload
def from_torch(
    config: BertConfig, tensors: Mapping[str, Any], *, dtype: Any = None, ignore: Sequence[str] = ()
) -> Bert: ...


def from_torch(
    config: Config, tensors: Mapping[str, Any], *, dtype: Any = None, ignore: Sequence[str] = ()
) -> Decoder | GPT2 | Bert:
    """Builds a model from tensors by PyTorch's names, with ``kernel = weightᵀ`` (except Conv1D).

    Args:
        config: The config. Whether a BERT has a pooler is determined by the tensors.
        tensors: NumPy or JAX arrays by PyTorch's names, with PyTorch's axis order: a weight is
            (out, in), or (in, out) in GPT-2's Conv1D. They are copied, one at a time. For GPT-2 the
            prefix ``transformer.`` is optional, for BERT ``bert.``. Buffers
            (``rotary_emb.inv_freq``, ``attn.bias``, ``position_ids``) are skipped, and so is an
            ``lm_head.weight`` that is tied and equal to the embedding.
        dtype: The dtype to cast to; by default each tensor keeps its own.
        ignore: Modules whose tensors are skipped, such as ``["cls"]`` for the heads of a BERT.

    Returns:
        The model.

    Raises:
        CheckpointError: If tensors are missing, unused, or present under two names.
        ShapeError: If tensors have other shapes than in the config.
        UnsupportedError: If tensors are not floats, or are wider than JAX's configuration allows.

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

    Source: the state dict of transformers' ``*ForCausalLM``, ``GPT2LMHeadModel``, ``BertModel``.
    """
    match = match_names(config, tensors, ignore)
    if isinstance(config, BertConfig):
        config = replace(config, pooler="pooler.dense.weight" in match.files)
    graph, empty = skeleton(MODELS[type(config)], config)
    paths = {torch_name(path): path for path in empty}
    _check_names(paths, match, tensors, config)
    leaves: dict[LeafPath, Array] = {}
    misshaped, unsupported = [], []
    for tree_name, path in paths.items():
        name, transposed = match.files[tree_name], is_transposed(config, path)
        tensor = tensors[name]
        expected = empty[path].shape[::-1] if transposed else empty[path].shape
        target = np.dtype(tensor.dtype if dtype is None else dtype)
        if tuple(tensor.shape) != expected:
            misshaped.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        elif np.dtype(tensor.dtype).name not in _DTYPES:
            dtypes = ", ".join(_DTYPES)
            unsupported.append(f"{name} is {tensor.dtype}, expected one of {dtypes}")
        elif jax.dtypes.canonicalize_dtype(target) != target:
            reason = "which JAX rounds unless jax_enable_x64 is set"
            unsupported.append(f"{name} would be {target}, {reason}")
        else:
            # Always copy: the caller's array may change later.
            leaves[path] = jnp.array(tensor.T if transposed else tensor, target)
    if misshaped:
        raise ShapeError(
            f"tensors that do not fit the config:{listing(misshaped)}\n"
            "Is the config of another size of this model?"
        )
    if unsupported:
        raise UnsupportedError(
            f"tensors of an unsupported dtype:{listing(unsupported)}\n"
            "Use an unquantized checkpoint, or pass dtype=jnp.float32."
        )
    return assemble(graph, empty, leaves)


def to_torch(model: Decoder | GPT2 | Bert) -> dict[str, Array]:
    """Returns a model's weights by PyTorch's names, with ``weight = kernelᵀ`` (except Conv1D).

    Args:
        model: The model.

    Returns:
        ``{name: array}`` with PyTorch's axis order and the model's dtypes, in the tree's order. A
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

    Source: the state dict of transformers' ``*ForCausalLM``, ``GPT2LMHeadModel``, ``BertModel``.
    """
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        torch_name(path): leaf[...].T if is_transposed(model.config, path) else leaf[...]
        for path, leaf in leaves
    }


def _check_names(
    paths: Mapping[str, Any], match: NameMatch, tensors: Mapping[str, Any], config: Config
) -> None:
    """Checks that the tensors are exactly those of the config."""
    missing = [f"missing: {name}" for name in paths if name not in match.files]
    unused = {name: file for name, file in match.files.items() if name not in paths}
    module = MODELS[type(config)]
    if _HEAD in unused and issubclass(module, CausalLM):
        # The head is unused, so it is tied.
        embedding = torch_name(module.EMBEDDING)
        if embedding in match.files:
            _check_tied(tensors, unused.pop(_HEAD), match.files[embedding])
    wrong = [*missing, *(f"unused: {file}" for file in unused.values()), *match.duplicates]
    if wrong:
        model = "an encoder" if isinstance(config, BertConfig) else "a causal language model"
        raise CheckpointError(
            f"tensors that do not fit a {config.kind} with {config.num_hidden_layers} layers:"
            f"{listing(wrong)}\nIs it a complete checkpoint of {model} of this type, without "
            "tensors of adapters?"
            + remedy(" To skip a head, name its modules, such as ignore=['cls'].", "")
        )


def _check_tied(tensors: Mapping[str, Any], head: str, embedding: str) -> None:
    """Checks that a head that the config ties equals the embedding."""
    if not np.array_equal(np.asarray(tensors[head]), np.asarray(tensors[embedding])):
        raise CheckpointError(
            f"{head} differs from {embedding}, though the config ties them. "
            "Set tie_word_embeddings to false to use both."
        )
