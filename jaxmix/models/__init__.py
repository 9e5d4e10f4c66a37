"""Small models that load Hugging Face folders: decoders, GPT-2 and BERT.

The decoders are Llama, Mistral, Qwen2, Qwen3 and Gemma. Each model is an NNX module whose tree uses
Hugging Face's names. The models do not depend on adapters.
"""

from typing import TYPE_CHECKING

from jaxmix.first_use import importer

# For type checkers. At run time a name is imported when it is first used: Flax is slow.
if TYPE_CHECKING:
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

# Each public name, and the module that has it.
_HOMES = {
    "Bert": "jaxmix.models.bert",
    "BertConfig": "jaxmix.models.config",
    "Cache": "jaxmix.models.cache",
    "Decoder": "jaxmix.models.decoder",
    "DecoderConfig": "jaxmix.models.config",
    "GPT2": "jaxmix.models.gpt2",
    "GPT2Config": "jaxmix.models.config",
    "from_torch": "jaxmix.models.weights",
    "generate": "jaxmix.models.generation",
    "load": "jaxmix.models.weights",
    "read_config": "jaxmix.models.reading",
    "read_tensors": "jaxmix.models.checkpoint",
    "sentence_embeddings": "jaxmix.models.bert",
    "tensor_files": "jaxmix.models.checkpoint",
    "to_torch": "jaxmix.models.weights",
}
__getattr__ = importer("jaxmix.models", _HOMES)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
