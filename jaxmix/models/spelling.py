"""How files spell the tensors of each kind of model, and which of them are no weights.

PyTorch's name of a leaf is its path in the tree with the last part renamed. Files may leave out the
prefix of the model without its head or have it, hold buffers, and use older names.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.tree import Path

__all__ = ["Config", "Found", "find", "is_transposed", "torch_name"]

Config = DecoderConfig | GPT2Config | BertConfig

_TORCH_LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# transformers renames these too.
_OLD = {".gamma": ".weight", ".beta": ".bias"}


def torch_name(path: Path) -> str:
    """PyTorch's name of a leaf."""
    return ".".join([*map(str, path[:-1]), _TORCH_LEAF[str(path[-1])]])


def is_transposed(config: Config, path: Path) -> bool:
    """Whether PyTorch's tensor is the leaf's transpose: of a Linear, but not of GPT-2's Conv1D."""
    conv1d = isinstance(config, GPT2Config) and path[0] == "transformer"
    return path[-1] == "kernel" and not conv1d


@dataclass(frozen=True)
class Found:
    """The tensors of a file by the names of the tree.

    Args:
        files: ``{name in the tree: name in the file}``.
        twice: A line for each tensor that the file holds under two names.
    """

    files: dict[str, str]
    twice: list[str]


def find(config: Config, names: Iterable[str], ignore: Iterable[str]) -> Found:
    """Which tensor of a file is which of the tree.

    Args:
        config: Of the model.
        names: The file's.
        ignore: modules of the file to leave out.

    Returns:
        All that are not ignored and no buffers, also those that the tree has no place for.
    """
    spell = _SPELLING[type(config)]
    files: dict[str, str] = {}
    twice: list[str] = []
    for name in names:
        if any(name == module or name.startswith(f"{module}.") for module in ignore):
            continue
        own = spell(name)
        if own in files:
            twice.append(f"twice: {files[own]} and {name}")
        elif own is not None:
            files[own] = name
    return Found(files, twice)


def _decoder(name: str) -> str | None:
    return None if name.endswith("rotary_emb.inv_freq") else name


def _gpt2(name: str) -> str | None:
    # The causal mask, and what hidden scores were set to.
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _bert(name: str) -> str | None:
    name = name.removeprefix("bert.")
    if name in ("embeddings.position_ids", "embeddings.token_type_ids"):
        return None
    for old, new in _OLD.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


_SPELLING: dict[type, Callable[[str], str | None]] = {
    DecoderConfig: _decoder,
    GPT2Config: _gpt2,
    BertConfig: _bert,
}
