"""Small models that load Hugging Face folders: decoders, GPT-2 and BERT.

The decoders are Llama, Mistral, Qwen2, Qwen3 and Gemma. Each model is an NNX module whose tree uses
Hugging Face's names. The models do not depend on adapters.
"""

from jaxmix.models.bert import Bert, sentence_embeddings
from jaxmix.models.cache import Cache
from jaxmix.models.checkpoint import read_tensors, tensor_files
from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.decoder import Decoder
from jaxmix.models.generation import generate
from jaxmix.models.gpt2 import GPT2
from jaxmix.models.reading import read_config
from jaxmix.models.weights import from_torch, load, to_torch

__all__ = [
    "GPT2",
    "Bert",
    "BertConfig",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "GPT2Config",
    "from_torch",
    "generate",
    "load",
    "read_config",
    "read_tensors",
    "sentence_embeddings",
    "tensor_files",
    "to_torch",
]
