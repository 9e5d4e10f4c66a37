"""PyTorch's names of a model's leaves, and the names that files use for them.

PyTorch's name of a leaf is its path in the tree with the last part renamed. Files may include or
omit the prefix of the model without its head, contain buffers, and use older names.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jaxmix.models.config import BertConfig, DecoderConfig, GPT2Config
from jaxmix.models.tree import LeafPath

__all__ = ["Config", "NameMatch", "is_transposed", "match_names", "torch_name"]

Config = DecoderConfig | GPT2Config | BertConfig

_TORCH_LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# Old suffixes, which transformers renames as well.
_OLD = {".gamma": ".weight", ".beta": ".bias"}


def torch_name(path: LeafPath) -> str:
    """Returns PyTorch's name of a leaf."""
    return ".".join([*map(str, path[:-1]), _TORCH_LEAF[str(path[-1])]])


def is_transposed(config: Config, path: LeafPath) -> bool:
    """Whether PyTorch stores the leaf's transpose, as in a Linear but not in GPT-2's Conv1D."""
    conv1d = isinstance(config, GPT2Config) and path[0] == "transformer"
    return path[-1] == "kernel" and not conv1d


@dataclass(frozen=True)
class NameMatch:
    """The names of a file's tensors, matched with the names of the tree.

    Args:
        files: ``{name in the tree: name in the file}``.
        duplicates: A line for each tensor that the file contains under two names.
    """

    files: dict[str, str]
    duplicates: list[str]


def match_names(config: Config, names: Iterable[str], ignore: Iterable[str]) -> NameMatch:
    """Matches the names of a file's tensors with those of the tree.

    Args:
        config: The model's config.
        names: The names of the file's tensors.
        ignore: The modules of the file to ignore.

    Returns:
        All tensors except ignored ones and buffers, including those that the tree does not have.
    """
    spell = _SPELLING[type(config)]
    files: dict[str, str] = {}
    duplicates: list[str] = []
    for name in names:
        if any(name == module or name.startswith(f"{module}.") for module in ignore):
            continue
        tree_name = spell(name)
        if tree_name in files:
            duplicates.append(f"duplicate: {files[tree_name]} and {name}")
        elif tree_name is not None:
            files[tree_name] = name
    return NameMatch(files, duplicates)


def _decoder(name: str) -> str | None:
    return None if name.endswith("rotary_emb.inv_freq") else name


def _gpt2(name: str) -> str | None:
    # Buffers: the causal mask and the value of masked scores.
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
