"""Untying by the names of tensors, of models that are in no table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmix.adapter import Adapter
from jaxmix.converters.checkpoints.huggingface import Checkpoint, Shard, Stored
from jaxmix.converters.merging.untying_by_name import untied_by_name
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA, Tokens
from jaxmix.mixing import Mix, mix

from ...messages import full_text

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA: Any = LoRA(np.ones((1, 3), np.float32), np.ones((7, 1), np.float32), 1.0)
ROWS: Any = (np.ones((1, 3), np.float32), np.array([1], np.int32))


def checkpoint(config: dict[str, Any], *names: str) -> Checkpoint:
    """A checkpoint with an embedding and these tensors."""
    header = json.dumps({name: {} for name in (EMBEDDING, *names)}).encode()
    tensors = (Stored(name, "F32", (7, 3), Path("x"), 0, 84) for name in (EMBEDDING, *names))
    shard = Shard("model.safetensors", bytes(8) + header, tuple(tensors))
    return Checkpoint(Path("base"), (shard,), texts={"config.json": json.dumps(config)})


def of(*sites: str) -> Mix:
    """A mix that changes these weights equally."""
    return mix(Adapter(dict.fromkeys(sites, LORA)))


@pytest.mark.parametrize(
    ("config", "names", "mixed"),
    [
        # A layer's embedding is not the model's, as in DeepSeek's layers that predict ahead.
        ({}, ["model.layers.3.embed_tokens.weight"], of("model.layers.3.embed_tokens")),
        ({"tie_word_embeddings": False}, [], of("model.embed_tokens")),  # it has no head
        ({}, [HEAD], of("model.embed_tokens")),  # the head has its own tensor
        ({"text_config": {"tie_word_embeddings": False}}, [], of("model.embed_tokens")),
        ({}, [], mix(Adapter({"model.embed_tokens": Tokens(*ROWS)}))),
    ],
)
def test_nothing_is_untied_without_need(config: Any, names: list[str], mixed: Mix) -> None:
    """The checkpoint and the mix are returned as they are."""
    base = checkpoint(config, *names)
    new, same, untied = untied_by_name(base, mixed, allowed=True)
    assert new is base and same is mixed and untied == ()


def test_head_gets_the_tensor_of_the_embedding() -> None:
    """Both configs say that it is untied, and other fields stay."""
    base = checkpoint({"d": 3, "text_config": {"tie_word_embeddings": True, "v": 7}})
    new, _, untied = untied_by_name(base, of("model.embed_tokens"), allowed=True)
    assert untied == (HEAD,)
    assert list(new.tensors) == [EMBEDDING, HEAD]
    assert new.tensors[HEAD].start == base.tensors[EMBEDDING].start
    assert new.json("config.json") == {
        "d": 3,
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False, "v": 7},
    }


def test_stored_head_stays_and_only_the_flag_changes() -> None:
    """As in old files with both tensors, whose config states that they are tied."""
    base = checkpoint({"tie_word_embeddings": True}, HEAD)
    new, _, untied = untied_by_name(base, of("lm_head"), allowed=True)
    assert untied == (HEAD,) and new.shards == base.shards
    assert new.json("config.json") == {"tie_word_embeddings": False}


def test_sites_that_were_trained_as_one_stay_tied() -> None:
    """The update of the head that the file lacks is the embedding's, and is applied once."""
    base = checkpoint({})
    new, mixed, untied = untied_by_name(base, of("lm_head", "model.embed_tokens"), allowed=False)
    assert new is base and untied == ()
    assert [list(part.updates) for part in mixed.parts] == [["model.embed_tokens"]]


def test_trained_tokens_do_not_mix_with_an_untied_head() -> None:
    """The rows would have to change in both tensors."""
    tokens = Adapter({"model.embed_tokens": Tokens(*ROWS)}, name="tokens")
    mixed = mix(tokens, *of("lm_head").parts)
    message = full_text(
        "one adapter trained tokens, which changes both tied tensors, and another changes only one "
        "of them:\n  model.embed_tokens\n  lm_head\nMerge the adapters one after the other."
    )
    with pytest.raises(LayoutError, match=message):
        untied_by_name(checkpoint({}), mixed, allowed=True)
