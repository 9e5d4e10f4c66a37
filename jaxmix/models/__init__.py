"""A small decoder to run: Llama, Mistral, Qwen2, Qwen3 and Gemma from a Hugging Face folder.

An NNX module whose tree keeps Hugging Face's names. It knows nothing of adapters.
"""

from jaxmix.models.cache import Cache
from jaxmix.models.checkpoint import read_tensors, tensor_files
from jaxmix.models.config import DecoderConfig
from jaxmix.models.decoder import Decoder
from jaxmix.models.generate import generate
from jaxmix.models.reading import read_config
from jaxmix.models.weights import from_torch, load, to_torch

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "from_torch",
    "generate",
    "load",
    "read_config",
    "read_tensors",
    "tensor_files",
    "to_torch",
]
