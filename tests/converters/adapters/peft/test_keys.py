"""Each key is used, known to have no effect, or listed in one error."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.families import LoRA, Replace, Together

from ....messages import full_text
from .folders import FORMS, SITE, Form, factors, keyed, params, refused, save

ROOT = "base_model.model."
WHOLE = np.full((5, 3), 2.0, np.float32)


def lora(**more):
    """The keys of a valid LoRA, and more."""
    return keyed(factors(FORMS["lora"])) | {
        key.replace("__", "."): array for key, array in more.items()
    }


def test_prefix_may_be_absent(tmp_path):
    """Some tools write bare module paths."""
    bare = {key.removeprefix(ROOT): array for key, array in lora().items()}
    assert jaxmix.load(save(tmp_path, tensors=bare)).sites == (SITE,)


def test_keys_equal_after_normalization(tmp_path):
    """Such a pair is ambiguous and refused."""
    key = f"{ROOT}{SITE}.lora_A.weight"
    double = lora() | {f"{SITE}.lora_A.weight": np.ones((2, 4), np.float32)}
    text = refused(CheckpointError, save(tmp_path, tensors=double))
    assert f"{SITE}.lora_A.weight: the same as {key}; keep one of the two" in text


@pytest.mark.parametrize("other", ["loha", "oft", "shira", "adalora"])
def test_keys_of_another_family(other, tmp_path):
    """All of them are listed."""
    tensors = keyed(factors(FORMS[other]))
    text = refused(CheckpointError, save(tmp_path, "lora", lora() | tensors))
    for key in tensors:
        assert f"{key}: a parameter of another type, or one that this version does not know" in text


def test_unknown_key(tmp_path):
    """A key that names neither a parameter nor a leaf is refused."""
    text = refused(CheckpointError, save(tmp_path, tensors=lora(mystery__scale=WHOLE)))
    assert "mystery.scale: not a parameter of this type" in text


def test_adapter_without_weights(tmp_path):
    """An empty file, and a file with only copies of the base, are refused."""
    folder = save(tmp_path, tensors={})
    text = refused(CheckpointError, folder)
    assert (
        f"{folder / 'adapter_model.safetensors'} contains no tensors, expected an adapter's"
    ) in text
    folder = save(tmp_path, tensors={f"{ROOT}lm_head.weight": WHOLE})
    text = refused(CheckpointError, folder)
    assert f"{folder} has no weights of a LORA adapter, expected lora_A.weight, " in text
    assert "Was it saved before the adapter was added, or by only one of several processes?" in text


# ------------------------------------------------------------------ leaves that were saved whole


def test_modules_to_save_replace(tmp_path):
    """PEFT matches the ends of paths without a dot, so "head" matches lm_head too."""
    tensors = lora(lm_head__weight=WHOLE, lm_head__bias=WHOLE[:, 0])
    adapter = jaxmix.load(save(tmp_path, tensors=tensors, modules_to_save=["head", "absent"]))
    replaced: Any = adapter.updates["lm_head"]
    assert replaced.family == "Replace"
    assert np.array_equal(replaced.weight, WHOLE) and np.array_equal(replaced.bias, WHOLE[:, 0])


def test_leaves_of_saved_modules_under_any_name(tmp_path):
    """A running mean is a leaf too; an integer counter can't be mixed."""
    tensors = lora(norm__running_mean=WHOLE[:, 0])
    adapter = jaxmix.load(save(tmp_path, tensors=tensors, modules_to_save=["norm"]))
    replaced: Any = adapter.updates["norm.running_mean"]
    assert np.array_equal(replaced.weight, WHOLE[:, 0])
    tensors |= {"norm.num_batches_tracked": np.array(3, np.int64)}
    text = refused(UnsupportedError, save(tmp_path, tensors=tensors, modules_to_save=["norm"]))
    assert "norm.num_batches_tracked: a buffer of int64, which jaxmix can't mix; remove it" in text


def test_missing_modules_to_save(tmp_path):
    """The config lists modules that the file lacks."""
    folder = save(tmp_path, modules_to_save=["score"])
    text = refused(CheckpointError, folder)
    assert f"{folder / 'adapter_config.json'}: modules_to_save is ['score'], but the file" in text
    assert "has none of their leaves. Save it again, or set modules_to_save to null" in text


def test_heads_of_the_task_that_the_model_does_not_have(tmp_path):
    """PEFT writes its usual names to the config; BART's head, for example, has another."""
    usual: Any = {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}
    folder = save(tmp_path, **usual)
    assert jaxmix.load(folder).sites == (SITE,)
    base = {f"{SITE}.weight": np.zeros((5, 4), np.float32)}
    assert jaxmix.load(folder, base=base).sites == (SITE,)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/adapter_config.json: modules_to_save is ['classifier', "
            "'score'], but the file has none of their leaves. Save it "
            "again, or set modules_to_save to null if they were not "
            "trained."
        ),
    ):
        jaxmix.load(folder, base=base | {"score.weight": np.zeros((2, 4), np.float32)})


def test_wrapper_next_to_a_saved_module(tmp_path):
    """With new tokens PEFT writes each saved embedding three times, and reads one."""
    tensors = lora(
        lm_head__weight=WHOLE,
        lm_head__modules_to_save__weight=WHOLE,
        lm_head__original_module__weight=0 * WHOLE,
    )
    adapter = jaxmix.load(save(tmp_path, tensors=tensors, modules_to_save=["lm_head"]))
    assert adapter.sites == (SITE, "lm_head")
    replaced: Any = adapter.updates["lm_head"]
    assert np.array_equal(replaced.weight, WHOLE)
    del tensors["lm_head.weight"], tensors["lm_head.modules_to_save.weight"]
    text = refused(CheckpointError, save(tmp_path, tensors=tensors, modules_to_save=["lm_head"]))
    assert (
        "lm_head.original_module.weight: a part of PEFT's wrapper, but "
        "lm_head.weight, which PEFT reads, is missing" in text
    )


@pytest.mark.parametrize("key", ["lm_head.weight", "lm_head.base_layer.weight"])
def test_copy_of_the_base(key, tmp_path):
    """It is applied before the adapters, and has no effect if the base already equals it."""
    adapter = jaxmix.load(save(tmp_path, tensors=lora() | {ROOT + key: WHOLE}))
    base = {**params(FORMS["lora"]), "lm_head.weight": WHOLE - 1}
    before = jaxmix.Adapter(
        {"lm_head": LoRA(jnp.ones((1, 3)), jnp.ones((5, 1)), 1.0)}, name="before"
    )
    out = jaxmix.compose(base, [before, adapter])
    assert np.allclose(out["lm_head.weight"], WHOLE + 1)
    with pytest.raises(
        jaxmix.errors.ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  lm_head: the base weight in the file has shape (5, 3), "
            "expected (4, 3). If the adapter was trained with new "
            "tokens, resize the base's vocabulary first\n"
            "Was the adapter trained on another model, or on a base of "
            "another size? If it was trained with more tokens, resize "
            "these leaves of the params first, or merge into the "
            "checkpoint with jaxmix.merge_checkpoint(..., resize=True)."
        ),
    ):
        jaxmix.compose({**base, "lm_head.weight": WHOLE[:4]}, [adapter])


def test_trained_bias_comes_first(tmp_path):
    """PEFT adds it to the base, below the adapter."""
    tensors = lora() | {f"{ROOT}{SITE}.base_layer.bias": np.ones(6, np.float32)}
    update = jaxmix.load(save(tmp_path, tensors=tensors, bias="all")).updates[SITE]
    assert isinstance(update, Together)
    assert [type(part) for part in update.parts] == [Replace, LoRA]


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_plain_leaf_next_to_factors(leaf, tmp_path):
    """PEFT would not read it, because it looks below the wrapper."""
    tensors = lora() | {
        f"{ROOT}{SITE}.{leaf}": np.ones((6, 4)[: 1 + (leaf == "weight")], np.float32)
    }
    text = refused(CheckpointError, save(tmp_path, tensors=tensors, bias="all"))
    expected = f"for a module with factors PEFT reads {SITE}.base_layer.{leaf}; rename it"
    assert f"{ROOT}{SITE}.{leaf}: {expected}" in text


# ------------------------------------------------------------------------- what is not read yet


def test_training_state_is_skipped(tmp_path):
    """VeLoRA's direction and MonteCLoRA's distribution do not affect the forward."""
    tensors = lora() | {
        f"{ROOT}{SITE}.lora_velora_embed": np.ones(4, np.float32),
        f"{ROOT}{SITE}.lora_monteclora_sampler.expert_weights": np.ones(8, np.float32),
    }
    assert jaxmix.load(save(tmp_path, tensors=tensors)).updates[SITE].family == "LoRA"
    tensors = keyed(factors(FORMS["loha"])) | {
        f"{ROOT}{SITE}.lora_velora_embed": np.ones(4, np.float32)
    }
    assert "a parameter of another type, or one that this version does not know" in refused(
        CheckpointError, save(tmp_path, "loha", tensors)
    )


def test_unknown_wrappers(tmp_path):
    """They raise an UnsupportedError if nothing else is wrong."""
    key = "attn.base_layer.other.hada_w1_a"
    reason = "part of a wrapped module of an unknown kind in LOHA; remove that module"
    tensors = keyed(factors(FORMS["loha"])) | {key: WHOLE}
    assert f"{key}: {reason}" in refused(UnsupportedError, save(tmp_path, "loha", tensors))
    tensors |= {"mystery.scale": WHOLE}
    text = refused(CheckpointError, save(tmp_path, "loha", tensors))
    assert f"{key}: {reason}" in text and "mystery.scale: not a parameter" in text


def test_duplicate_shared_tensor(tmp_path):
    """The two spellings that PEFT has for its path are refused together."""
    tensors = {f"base_model.{x}vera_A": np.ones((2, 4), np.float32) for x in ("", "model.")}
    tensors |= {"base_model.vera_B": np.ones((6, 2), np.float32)}
    site = {"vera_lambda_b": np.ones(6, np.float32), "vera_lambda_d": np.ones(2, np.float32)}
    form = Form("VERA", {"r": 2, "projection_prng_key": 0, "save_projection": True}, {})
    text = refused(CheckpointError, save(tmp_path, form, tensors | keyed(site)))
    assert ": vera_A occurs twice; keep one of the two" in text
