"""From PyTorch's names and orientation to a model's tree, and back."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxmix.errors import CheckpointError, JaxmixError, ShapeError, UnsupportedError, listing
from jaxmix.models.bert import Bert
from jaxmix.models.causal import CausalLM
from jaxmix.models.checkpoint import read_tensors
from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.decoder import Decoder
from jaxmix.models.gpt2 import GPT2
from jaxmix.models.reading import read_config
from jaxmix.models.spelling import Config, Found, find, is_transposed, torch_name
from jaxmix.models.tree import Path, assemble, skeleton

__all__ = ["MODELS", "from_torch", "load", "to_torch"]

MODELS: dict[type, type[Decoder] | type[GPT2] | type[Bert]] = {
    DecoderConfig: Decoder,
    GPT2Config: GPT2,
    BertConfig: Bert,
}
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_HEAD = "lm_head.weight"


# Any, so that whoever knows the folder need not narrow a union.
def load(folder: str | os.PathLike[str], *, dtype: Any = None, ignore: Sequence[str] = ()) -> Any:
    """Reads a model from a Hugging Face folder.

    Args:
        folder: With config.json, and model.safetensors or its shards and their index.
        dtype: What to cast the weights to; by default each keeps the file's. Activations have the
            embedding's dtype; norms, softmax and angles are computed in float32 at the least.
        ignore: As for `from_torch`.

    Returns:
        A `Decoder`, `GPT2` or `Bert`, by ``model_type``, with its config. The logits or hidden
        states are transformers'.

    Raises:
        CheckpointError: If a file is missing, damaged or makes no sense, or if tensors are missing
            or not used; all are listed.
        ShapeError: If tensors have other shapes than the config says.
        UnsupportedError: If the kind of model, a field of the config or a dtype would not be
            honoured.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder has no config.json; found no such folder.
        Give a folder that transformers' save_pretrained wrote.

    Source: ``transformers.AutoModelForCausalLM.from_pretrained``, for BERT ``AutoModel``'s.
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
    """A model from a flat dict of PyTorch's names: ``kernel = weightᵀ``, or the weight of a Conv1D.

    Args:
        config: What the model computes. Whether a BERT has a pooler goes by the tensors.
        tensors: NumPy or JAX arrays by PyTorch's names, in PyTorch's orientation: a weight is (out,
            in), in GPT-2's Conv1D (in, out). They are copied, one at a time. GPT-2's may lack the
            prefix ``transformer.``, BERT's may have ``bert.``. Buffers (``rotary_emb.inv_freq``,
            ``attn.bias``, ``position_ids``) are passed over, and so is ``lm_head.weight`` where it
            is tied and equal.
        dtype: What to cast them to; each keeps its own by default.
        ignore: modules whose tensors are left out, such as ``["cls"]``: no head of a BERT is built.

    Returns:
        The model.

    Raises:
        CheckpointError: If tensors are missing or not used, or are there under two names.
        ShapeError: If some have other shapes than the config says.
        UnsupportedError: If some are no floats, or are wider than JAX is set to.

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
    found = find(config, tensors, ignore)
    if isinstance(config, BertConfig):
        config = replace(config, pooler="pooler.dense.weight" in found.files)
    graph, empty = skeleton(MODELS[type(config)], config)
    paths = {torch_name(path): path for path in empty}
    _check_names(paths, found, tensors, config)
    leaves: dict[Path, Array] = {}
    misshaped, odd = [], []
    for own, path in paths.items():
        name, turned = found.files[own], is_transposed(config, path)
        tensor = tensors[name]
        expected = empty[path].shape[::-1] if turned else empty[path].shape
        target = np.dtype(tensor.dtype if dtype is None else dtype)
        if tuple(tensor.shape) != expected:
            misshaped.append(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        elif np.dtype(tensor.dtype).name not in _FLOATS:
            odd.append(f"{name} is {tensor.dtype}, expected one of {', '.join(_FLOATS)}")
        elif jax.dtypes.canonicalize_dtype(target) != target:
            odd.append(f"{name} would be {target}, which JAX rounds unless jax_enable_x64 is set")
        else:
            # A copy in any case: the caller's array may change later.
            leaves[path] = jnp.array(tensor.T if turned else tensor, target)
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


def to_torch(model: Decoder | GPT2 | Bert) -> dict[str, Array]:
    """The weights as a flat dict of PyTorch's names: ``weight = kernelᵀ``, or the kernel itself.

    Args:
        model: The model.

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

    Source: the state dict of transformers' ``*ForCausalLM``, ``GPT2LMHeadModel``, ``BertModel``.
    """
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        torch_name(path): leaf[...].T if is_transposed(model.config, path) else leaf[...]
        for path, leaf in leaves
    }


def _check_names(
    paths: Mapping[str, Any], found: Found, tensors: Mapping[str, Any], config: Config
) -> None:
    """Whether the tensors are just those of the config."""
    missing = [f"missing: {name}" for name in paths if name not in found.files]
    unused = {name: file for name, file in found.files.items() if name not in paths}
    module = MODELS[type(config)]
    if _HEAD in unused and issubclass(module, CausalLM):
        # Not used, so it is tied.
        embedding = torch_name(module.EMBEDDING)
        if embedding in found.files:
            _check_tied(tensors, unused.pop(_HEAD), found.files[embedding])
    wrong = [*missing, *(f"not used: {file}" for file in unused.values()), *found.twice]
    if wrong:
        what = "an encoder" if isinstance(config, BertConfig) else "a causal language model"
        raise CheckpointError(
            f"tensors that do not fit a {config.kind} of {config.num_hidden_layers} layers:"
            f"{listing(wrong)}\nIs it {what} of this kind, whole, and with no adapter's names in "
            "it? If it is one with a head that is not wanted, name the head's modules: "
            "ignore=['cls']."
        )


def _check_tied(tensors: Mapping[str, Any], head: str, embedding: str) -> None:
    """Whether a head that the config ties is the embedding."""
    if not np.array_equal(np.asarray(tensors[head]), np.asarray(tensors[embedding])):
        raise CheckpointError(
            f"{head} differs from {embedding}, though the config ties them. "
            "Set tie_word_embeddings to false to use both."
        )
