"""A table of networks and configs that covers every family in every form and layer type.

``truth`` is ``mixed`` (the unmerged forward of PEFT's mixed model), ``merged`` (its merged weight:
OFT on a convolution, whose forward sums overlapping patches), or ``single`` (the forward of a plain
PeftModel: AdaLoRA with pruned ranks, which the mixed model does not load).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig
from peft import ShiraConfig as Shira

from ..goldens.nets import MLP, Layer, Net

__all__ = ["CASES", "NETS", "Case"]


@dataclass(frozen=True)
class Case:
    """One row: adapters on a network, and which of PEFT's results is the reference."""

    name: str
    net: str
    adapters: tuple[tuple[type[PeftConfig], dict[str, Any]], ...]
    truth: Literal["mixed", "merged", "single"] = "mixed"

    def configs(self) -> list[PeftConfig]:
        """Returns new configs for the adapters, because PEFT changes the configs that it gets."""
        return [
            config_class(**{"target_modules": ["one", "two"], **options})
            for config_class, options in self.adapters
        ]


def _net(kind: str, *sizes: tuple[int, int], **options: Any) -> Net:
    return tuple(
        Layer(name, kind, size, **options) for name, size in zip(("one", "two"), sizes, strict=True)
    )


NETS: dict[str, Net] = {
    "mlp": MLP,
    "deep": tuple(replace(layer, name=f"model.{layer.name}") for layer in MLP),
    "linear": _net("linear", (12, 20), (20, 6)),
    "no_bias": _net("linear", (12, 20), (20, 6), bias=False),
    "gpt2": _net("gpt2", (8, 14), (14, 6)),
    "gpt2_square": _net("gpt2", (8, 8), (8, 8)),
    "conv1d": _net("conv1d", (4, 6), (6, 8), kernel=(3,)),
    "conv2d": _net("conv2d", (4, 6), (6, 8), kernel=(3, 2)),
    "conv2d_square": _net("conv2d", (4, 6), (6, 8), kernel=(3, 3)),
    "conv2d_groups": _net("conv2d", (4, 6), (6, 8), kernel=(3, 2), groups=2),
    "conv2d_point": _net("conv2d", (4, 6), (6, 8), kernel=(1, 1)),
    "conv1d_groups": _net("conv1d", (4, 6), (6, 8), kernel=(3,), groups=2),
    "conv1d_wide": _net("conv1d", (10, 15), (15, 6), kernel=(3,)),
    "conv2d_wide": _net("conv2d", (10, 15), (15, 6), kernel=(3, 2)),
    "conv3d": _net("conv3d", (3, 4), (4, 5), kernel=(2, 3, 2)),
    "embedding": (Layer("one", "embedding", (11, 8)), Layer("two", "linear", (8, 6))),
    "embedding_square": (Layer("one", "embedding", (8, 8)), Layer("two", "linear", (8, 6))),
    "wide": _net("linear", (36, 48), (48, 30)),
}


def _case(
    name: str, net: str, config_class: type[PeftConfig], truth: Any = "mixed", **options: Any
) -> Case:
    return Case(name, net, ((config_class, options),), truth)


_LORA = {"r": 3, "lora_alpha": 5}
_ADALORA = {"init_r": 4, "lora_alpha": 7, "total_step": 10}
_FAN_IN = {"fan_in_fan_out": True}
_PATTERN = {"rank_pattern": {"two": 2}, "alpha_pattern": {"one": 9}}


def _lora() -> list[Case]:
    cases = []
    for net in ("linear", "gpt2", "gpt2_square", "conv1d", "conv2d", "conv3d", "embedding"):
        base = {**_LORA, **(_FAN_IN if net.startswith("gpt2") else {})}
        forms: dict[str, dict] = {
            "plain": {},
            "rslora": {"use_rslora": True},
            "patterns": _PATTERN,
            "dora": {"use_dora": True},
            "dora_rslora_patterns": {"use_dora": True, "use_rslora": True, **_PATTERN},
        }
        if net != "embedding":
            forms["bias"] = {"lora_bias": True, "use_rslora": True}
        cases += [_case(f"lora-{net}-{k}", net, LoraConfig, **base, **v) for k, v in forms.items()]
    square = {"target_modules": ["one"], **_LORA}
    return [
        *cases,
        _case("lora-embedding_square-plain", "embedding_square", LoraConfig, **square),
        _case("lora-embedding_square-dora", "embedding_square", LoraConfig, use_dora=True,
              **square),
        _case("lora-no_bias-dora", "no_bias", LoraConfig, use_dora=True, **_LORA),
        _case("lora-conv2d_point-dora", "conv2d_point", LoraConfig, use_dora=True, **_LORA),
        _case("lora-regex", "mlp", LoraConfig, **{**_LORA, "target_modules": r".*\.[02]\.lin"}),
        _case("lora-exclude", "mlp", LoraConfig, target_modules=["lin"],
             exclude_modules=["layers.1.lin"], **_LORA),
        _case("lora-transform", "deep", LoraConfig, target_modules=["lin"],
             layers_to_transform=[1, 2], **_LORA),
    ]  # fmt: skip


def _adalora() -> list[Case]:
    mask = [True, False, True, True]
    pruned = {"one.lora_E": mask, "two.lora_E": [False, True, False, True]}
    return [
        _case("adalora-linear", "linear", AdaLoraConfig, **_ADALORA),
        _case("adalora-gpt2", "gpt2", AdaLoraConfig, **_ADALORA, **_FAN_IN),
        _case("adalora-gpt2_square", "gpt2_square", AdaLoraConfig, **_ADALORA, **_FAN_IN),
        _case("adalora-conv2d", "conv2d", AdaLoraConfig, **_ADALORA),
        _case("adalora-alpha0", "linear", AdaLoraConfig, **{**_ADALORA, "lora_alpha": 0}),
        _case("adalora-pruned", "linear", AdaLoraConfig, "single", **_ADALORA, rank_pattern=pruned),
    ]


def _loha() -> list[Case]:
    base, tucker = {"r": 3, "alpha": 4}, {"use_effective_conv2d": True}
    nets = ("linear", "conv1d", "conv2d", "conv2d_point", "conv2d_groups", "conv1d_groups")
    return [
        *(_case(f"loha-{net}", net, LoHaConfig, **base) for net in nets),
        *(_case(f"loha-{net}-effective", net, LoHaConfig, **base, **tucker) for net in nets),
        _case("loha-linear-patterns", "linear", LoHaConfig, **base, **_PATTERN),
    ]


def _lokr() -> list[Case]:
    low, full = {"r": 1, "alpha": 3}, {"r": 9, "alpha": 7}
    tucker, both = {"use_effective_conv2d": True}, {"decompose_both": True}
    cases = []
    for net in ("linear", "conv1d", "conv2d", "conv2d_point", "conv2d_groups", "conv1d_groups"):
        cases += [
            _case(f"lokr-{net}-low", net, LoKrConfig, **low),
            _case(f"lokr-{net}-full", net, LoKrConfig, **full),
            _case(f"lokr-{net}-factor2", net, LoKrConfig, **low, decompose_factor=2),
        ]
        # torch.kron raises for a Tucker w2 of rank 1 on a Conv1d, so that form uses a wider
        # network.
        if net.startswith("conv2d"):
            cases += [_case(f"lokr-{net}-tucker", net, LoKrConfig, **low, **tucker, **both)]
    return [
        *cases,
        _case("lokr-conv1d_wide-tucker", "conv1d_wide", LoKrConfig, r=2, alpha=3, **tucker),
        _case("lokr-conv2d_wide-tucker", "conv2d_wide", LoKrConfig, r=2, alpha=3, **tucker),
        _case("lokr-conv1d_wide-low", "conv1d_wide", LoKrConfig, r=2, alpha=3),
        _case("lokr-wide-both", "wide", LoKrConfig, r=2, alpha=3, **both),
        _case("lokr-wide-both-factor6", "wide", LoKrConfig, **low, **both, decompose_factor=6),
        _case("lokr-linear-patterns", "linear", LoKrConfig, r=1, alpha=3, **_PATTERN),
    ]


def _oft() -> list[Case]:
    block4, exact = {"oft_block_size": 4}, {"use_cayley_neumann": False}
    coft = {"coft": True, "eps": 0.5}
    terms = (1, 2, 3, 4, 5, 6, 7)
    return [
        *(_case(f"oft-neumann{n}", "linear", OFTConfig, **block4, num_cayley_neumann_terms=n)
          for n in terms),
        _case("oft-exact", "linear", OFTConfig, **block4, **exact),
        _case("oft-exact-by_r", "linear", OFTConfig, r=2, oft_block_size=0, **exact),
        _case("oft-one_block", "linear", OFTConfig, oft_block_size=64),
        _case("oft-share", "linear", OFTConfig, **block4, block_share=True),
        _case("oft-share-exact", "linear", OFTConfig, **block4, **exact, block_share=True),
        _case("oft-coft", "linear", OFTConfig, **block4, **coft),
        _case("oft-coft-exact", "linear", OFTConfig, **block4, **exact, **coft),
        _case("oft-coft-share", "linear", OFTConfig, **block4, **coft, block_share=True),
        _case("oft-coft-default_eps", "linear", OFTConfig, **block4, coft=True),
        _case("oft-embedding", "embedding", OFTConfig, **block4),
        _case("oft-embedding-exact", "embedding", OFTConfig, **block4, **exact),
        _case("oft-embedding-share", "embedding", OFTConfig, **block4, block_share=True),
        _case("oft-embedding_square", "embedding_square", OFTConfig, oft_block_size=2),
        _case("oft-conv2d_point", "conv2d_point", OFTConfig, oft_block_size=2),
        _case("oft-conv2d", "conv2d_square", OFTConfig, "merged", oft_block_size=3),
        _case("oft-conv2d-exact", "conv2d_square", OFTConfig, "merged", oft_block_size=6, **exact),
        _case("oft-conv2d-share", "conv2d_square", OFTConfig, "merged", oft_block_size=9,
             block_share=True),
    ]  # fmt: skip


def _with_biases_and_saved_modules() -> list[Case]:
    layers = {"target_modules": ["layers.0.lin", "layers.2.lin"]}
    save = {"target_modules": ["layers.0.lin"], "modules_to_save": ["layers.2.lin"]}
    oft = {"oft_block_size": 4}
    return [
        _case("shira", "linear", Shira, r=2),
        _case("bias-all", "mlp", LoraConfig, bias="all", **layers, **_LORA),
        _case("bias-lora_only", "mlp", LoraConfig, bias="lora_only", **layers, **_LORA),
        _case("bias-dora-all", "mlp", LoraConfig, bias="all", use_dora=True, **layers, **_LORA),
        _case("bias-oft-all", "mlp", OFTConfig, bias="all", **layers, **oft),
        _case("bias-oft_only", "mlp", OFTConfig, bias="oft_only", **layers, **oft),
        _case("save-lora", "mlp", LoraConfig, **save, **_LORA),
        _case("save-loha", "mlp", LoHaConfig, **save, r=2, alpha=3),
        _case("save-lokr", "mlp", LoKrConfig, **save, r=2, alpha=3),
        _case("save-adalora", "mlp", AdaLoraConfig, **save, **_ADALORA),
        _case("save-oft", "mlp", OFTConfig, **save, **oft),
        _case("save-shira", "mlp", Shira, **save, r=1),
        _case("save-conv", "conv2d", LoraConfig, target_modules=["one"], modules_to_save=["two"],
             **_LORA),
    ]  # fmt: skip


def _stacked() -> list[Case]:
    lora, dora = (LoraConfig, _LORA), (LoraConfig, {**_LORA, "use_dora": True})
    fan = (LoraConfig, {**_LORA, **_FAN_IN})
    fan_dora = (LoraConfig, {"r": 2, "lora_alpha": 3, "use_dora": True, **_FAN_IN})
    loha = (LoHaConfig, {"r": 2, "alpha": 3})
    lokr = (LoKrConfig, {"r": 1, "alpha": 2})
    tucker = (LoHaConfig, {"r": 2, "alpha": 1, "use_effective_conv2d": True})
    ada, ada_fan = (AdaLoraConfig, _ADALORA), (AdaLoraConfig, {**_ADALORA, **_FAN_IN})
    oft2 = (OFTConfig, {"oft_block_size": 2})
    oft4 = (OFTConfig, {"oft_block_size": 4, "use_cayley_neumann": False})
    lora_b = (LoraConfig, {**_LORA, "lora_bias": True})
    saver = (LoHaConfig, {"target_modules": ["one"], "modules_to_save": ["two"], "r": 2})
    first = (LoraConfig, {**_LORA, "target_modules": ["one"]})
    biased = (LoraConfig, {**_LORA, "bias": "all"})
    rows = {
        "gpt2": [(fan, ada_fan, fan), (ada_fan, fan_dora), (fan, fan_dora, ada_fan)],
        "conv1d": [(lora, loha, lokr), (lora, dora, loha), (dora, lora, tucker, lokr)],
        "conv2d": [(lora, ada, loha, lokr), (dora, tucker, lokr, ada), (lora, dora, lora)],
        "conv2d_point": [(lora, oft2, loha), (loha, oft2, oft4, lokr), (oft2, tucker, oft4)],
        "conv3d": [(lora, dora), (dora, lora)],
        "embedding": [(lora, oft2), (oft2, lora), (oft2, oft4), (dora, oft4), (lora, dora, oft2)],
        "linear": [(lora_b, oft4, lora_b), (first, saver), (biased, loha, oft2), (dora, lora_b)],
        "no_bias": [(lora, dora), (dora, oft2, lora)],
        "conv1d_wide": [(lora_b, loha)],
    }
    # PEFT's DoRA also scales a bias that an earlier adapter added by lora_bias.
    bias_then_dora = [
        Case("stack-lora_bias-dora", "linear", (lora_b, dora)),
        Case("stack-lora_bias-loha-dora", "linear", (lora_b, loha, dora)),
        Case("stack-lora_bias-dora-conv2d", "conv2d", (lora_b, dora)),
    ]
    return bias_then_dora + [
        Case(f"stack-{net}-{i}", net, stack)
        for net, stacks in rows.items()
        for i, stack in enumerate(stacks)
    ]


def _inside_stack() -> list[Case]:
    """Returns forms of LoRA and OFT between an inner LoRA and an outer LoHa."""
    lora, loha = (LoraConfig, _LORA), (LoHaConfig, {"r": 2, "alpha": 3})
    oft, exact = {"oft_block_size": 4}, {"use_cayley_neumann": False}
    two = {"target_modules": ["two"]}
    forms: dict[str, tuple[str, tuple[type[PeftConfig], dict[str, Any]]]] = {
        "lora_bias": ("linear", (LoraConfig, {**_LORA, "lora_bias": True})),
        "bias-all": ("linear", (LoraConfig, {**_LORA, "bias": "all"})),
        "lora-saved": ("mlp", (LoraConfig, {**_LORA, "target_modules": ["layers.1.lin"],
                                           "modules_to_save": ["layers.2.lin"]})),
        "lora-embedding": ("embedding", (LoraConfig, _LORA)),
        "oft-exact": ("linear", (OFTConfig, {**oft, **exact})),
        "oft-neumann": ("linear", (OFTConfig, oft)),
        "oft-shared": ("linear", (OFTConfig, {**oft, "block_share": True})),
        "oft-coft": ("linear", (OFTConfig, {**oft, "coft": True, "eps": 0.5})),
    }  # fmt: skip
    targets = {"mlp": {"target_modules": ["layers.0.lin", "layers.1.lin"]}, "embedding": two}

    def targeting(net: str, config_class: type[PeftConfig], options: dict[str, Any]) -> Any:
        return config_class, {**options, **targets.get(net, {})}

    return [
        Case(f"between-{name}", net, (targeting(net, *lora), form, targeting(net, *loha)))
        for name, (net, form) in forms.items()
    ]


CASES = [
    *_lora(),
    *_adalora(),
    *_loha(),
    *_lokr(),
    *_oft(),
    *_with_biases_and_saved_modules(),
    *_stacked(),
    *_inside_stack(),
]
