"""Tensors of diffusers' models under the names of the models' authors."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from .configs import FLUX, SD3

__all__ = ["State", "as_torch", "module", "original_flux", "original_sd3"]

State = Mapping[str, np.ndarray]


def module(name: str) -> Any:
    """A module of a library that is not installed with the tests."""
    return importlib.import_module(name)


def as_torch(state: State) -> dict[str, Any]:
    """Returns the tensors as PyTorch's."""
    import torch

    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in state.items()}


def original_flux(state: State) -> dict[str, np.ndarray]:
    """Renames a state of diffusers' Flux to Black Forest Labs' names by diffusers' converter."""
    utils = module("diffusers.loaders.single_file_utils")

    width = 12
    top = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
    }
    double = {
        "img_mod.lin": "norm1.linear",
        "txt_mod.lin": "norm1_context.linear",
        "img_attn.proj": "attn.to_out.0",
        "txt_attn.proj": "attn.to_add_out",
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
    }
    norms = {
        "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
        "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
        "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
        "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    }
    tensors: dict[str, np.ndarray] = {}
    for part in ("weight", "bias"):
        tensors |= {f"{new}.{part}": state[f"{old}.{part}"] for new, old in top.items()}
        halves = np.split(state[f"norm_out.linear.{part}"], 2)
        tensors[f"final_layer.adaLN_modulation.1.{part}"] = np.concatenate(halves[::-1])
        for i in range(FLUX["num_layers"]):
            old_block, new = f"transformer_blocks.{i}", f"double_blocks.{i}"
            tensors |= {
                f"{new}.{n}.{part}": state[f"{old_block}.{o}.{part}"] for n, o in double.items()
            }
            for stream, names in (
                ("img", ("to_q", "to_k", "to_v")),
                ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
            ):
                qkv = [state[f"{old_block}.attn.{name}.{part}"] for name in names]
                tensors[f"{new}.{stream}_attn.qkv.{part}"] = np.concatenate(qkv)
        for i in range(FLUX["num_single_layers"]):
            old_block, new = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
            names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            fused = [state[f"{old_block}.{name}.{part}"] for name in names]
            tensors[f"{new}.linear1.{part}"] = np.concatenate(fused)
            tensors[f"{new}.linear2.{part}"] = state[f"{old_block}.proj_out.{part}"]
            tensors[f"{new}.modulation.lin.{part}"] = state[f"{old_block}.norm.linear.{part}"]
    for i in range(FLUX["num_layers"]):
        for new, old in norms.items():
            tensors[f"double_blocks.{i}.{new}"] = state[f"transformer_blocks.{i}.{old}"]
    for i in range(FLUX["num_single_layers"]):
        for x, y in (("query", "q"), ("key", "k")):
            old = f"single_transformer_blocks.{i}.attn.norm_{y}.weight"
            tensors[f"single_blocks.{i}.norm.{x}_norm.scale"] = state[old]
    # diffusers' own converter, whose width is fixed, leads back.
    source = inspect.getsource(utils.convert_flux_transformer_checkpoint_to_diffusers)
    space: dict[str, Any] = {"torch": utils.torch}
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), space)
    converted = space["convert_flux_transformer_checkpoint_to_diffusers"](as_torch(tensors))
    assert set(converted) == set(state)
    assert all((converted[name].numpy() == tensor).all() for name, tensor in state.items())
    return tensors


def original_sd3(state: State) -> dict[str, np.ndarray]:
    """Returns a state of diffusers' Stable Diffusion 3 under its authors' names."""
    utils = module("diffusers.loaders.single_file_utils")

    names = {
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        **{
            f"{short}_embedder.mlp.{i}": f"time_text_embed.{long}_embedder.linear_{j}"
            for short, long in (("t", "timestep"), ("y", "text"))
            for i, j in ((0, 1), (2, 2))
        },
        "final_layer.linear": "proj_out",
    }
    tensors = {"pos_embed": state["pos_embed.pos_embed"]}
    swapped = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
    for i in range(SD3["num_layers"]):
        last = i == SD3["num_layers"] - 1
        for block, norm, parts, out, ff in (
            ("x_block", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
            (
                *("context_block", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj")),
                *("to_add_out", "ff_context"),
            ),
        ):
            new, old = f"joint_blocks.{i}.{block}", f"transformer_blocks.{i}"
            norms = swapped if last and block == "context_block" else names
            norms[f"{new}.adaLN_modulation.1"] = f"{old}.{norm}.linear"
            added = "added_" if block == "context_block" else ""
            for attn in ("attn", "attn2"):
                if f"{old}.{attn}.{parts[0]}.weight" not in state:
                    continue
                for part in ("weight", "bias"):
                    qkv = [state[f"{old}.{attn}.{name}.{part}"] for name in parts]
                    tensors[f"{new}.{attn}.qkv.{part}"] = np.concatenate(qkv)
                for x in "qk":
                    tensors[f"{new}.{attn}.ln_{x}.weight"] = state[
                        f"{old}.{attn}.norm_{added}{x}.weight"
                    ]
                if norms is names:
                    names[f"{new}.{attn}.proj"] = f"{old}.{attn}.{out}"
            if norms is names:
                names[f"{new}.mlp.fc1"] = f"{old}.{ff}.net.0.proj"
                names[f"{new}.mlp.fc2"] = f"{old}.{ff}.net.2"
    for part in ("weight", "bias"):
        tensors |= {f"{new}.{part}": state[f"{old}.{part}"] for new, old in names.items()}
        for new, old in swapped.items():
            halves = np.split(state[f"{old}.{part}"], 2)
            tensors[f"{new}.{part}"] = np.concatenate(halves[::-1])
    converted = utils.convert_sd3_transformer_checkpoint_to_diffusers(as_torch(tensors))
    assert set(converted) == set(state), set(converted) ^ set(state)
    assert all((converted[name].numpy() == tensor).all() for name, tensor in state.items())
    return tensors
