"""AdaLoRA's rank schedule prunes like PEFT's allocator for the same values."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import AdapterError
from jaxmix.families import AdaLoRA
from jaxmix.training import RankSchedule, orthogonality, trainable

from .samples import PARAMS, lora, normal

SIZES = {"one": (4, 8, 6), "two": (4, 6, 4)}


def adalora() -> Adapter:
    """Returns an AdaLoRA at both sites."""
    updates: Any = {
        site: AdaLoRA(normal(i, r, size), normal(i + 1, out, r), normal(i + 2, r), 0.5)
        for i, (site, (r, size, out)) in enumerate(SIZES.items())
    }
    return Adapter(updates, name="ada")


# ---------------------------------------------------------------- compared with PEFT

# target_rank, steps, warmup, final, every
SCHEDULES = {
    "from the first step": (1, 12, 0, 0, 1),
    "with warmup and final steps": (2, 20, 3, 5, 1),
    "every third step": (1, 25, 4, 6, 3),
    "to rank 0": (0, 9, 1, 2, 2),
}


@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_matches_peft_step_for_step(settings: tuple[int, ...]) -> None:
    """Singular values, kept ranks and the pattern match PEFT's while the values change."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from ..parity.harness import build, exact
    from ..parity.layer_cases import NETS

    target, steps, warmup, final, every = settings
    config = peft.AdaLoraConfig(
        init_r=4, target_r=target, total_step=steps, tinit=warmup, tfinal=final, deltaT=every,
        beta1=0.8, beta2=0.9, target_modules=["one", "two"],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with exact():
        model: Any = peft.get_peft_model(build(NETS["linear"]), config)
    tensors = parameters(model)
    schedule = RankSchedule(
        target, steps, warmup=warmup, final=final, every=every, beta1=0.8, beta2=0.9
    )
    rank_counts = []
    with jax.enable_x64(True), exact():
        state = schedule.start(values_of(tensors))
        run = jax.jit(schedule.step)
        for step in range(steps + 2):
            for param in tensors.values():
                param.copy_(param + 0.3 * torch.from_numpy(rng.normal(size=param.shape)))
                param.grad = torch.from_numpy(rng.normal(size=param.shape))
            gradients = values_of({name: param.grad for name, param in tensors.items()})
            values, state = run(state, values_of(tensors), gradients, step)
            model.base_model.update_and_allocate(step)
            for site in ("one", "two"):
                singular_values = values["ada"]["updates"][site]["e"]
                np.testing.assert_allclose(
                    singular_values, tensors[f"{site}.e"][:, 0], rtol=1e-12, atol=0
                )
            rank_counts.append(sum(int(x.sum()) for x in state.kept.values()))
    pattern = model.peft_config["default"].rank_pattern
    for site in ("one", "two"):
        expected = next(ranks for name, ranks in pattern.items() if site in name)
        assert state.kept[f"ada/updates/{site}"].tolist() == expected
    assert rank_counts[0] == 8 and rank_counts[-1] == 2 * target and len(set(rank_counts)) > 2


def test_orthogonality_matches_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT adds the orthogonality to a zero loss; value and gradient match."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from ..parity.harness import build, exact
    from ..parity.layer_cases import NETS

    config = peft.AdaLoraConfig(init_r=4, total_step=9, target_modules=["one", "two"])
    with exact():
        model: Any = peft.get_peft_model(build(NETS["linear"]), config)
        parameters_by_name = parameters(model)
        inner = model.base_model.model
        monkeypatch.setattr(
            inner, "forward", lambda: SimpleNamespace(loss=torch.zeros((), requires_grad=True) * 1)
        )
        with torch.enable_grad():
            loss = model.base_model().loss
            loss.backward()
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(lambda v: 0.5 * orthogonality(v))(
            values_of(parameters_by_name)
        )
    assert float(value) == pytest.approx(loss.item(), rel=1e-12)
    for name, param in parameters_by_name.items():
        site, factor = name.split(".")
        if factor != "e":
            np.testing.assert_allclose(
                gradient["ada"]["updates"][site][factor], param.grad, rtol=1e-10, atol=1e-14
            )


def parameters(model: Any) -> dict[str, Any]:
    """Returns PEFT's parameters under jaxmix's names."""
    return {
        f"{site}.{kind}": model.base_model.model.get_submodule(site).get_parameter(
            f"lora_{kind.upper()}.default"
        )
        for site in ("one", "two")
        for kind in ("a", "b", "e")
    }


def values_of(tensors: dict[str, Any]) -> dict[str, Any]:
    """Returns torch tensors under the names of `trainable`."""
    flat = {name: x.detach().numpy().copy() for name, x in tensors.items()}
    return {
        "ada": {
            "updates": {
                site: {"a": flat[f"{site}.a"], "b": flat[f"{site}.b"], "e": flat[f"{site}.e"][:, 0]}
                for site in ("one", "two")
            }
        }
    }


# ---------------------------------------------------------------- without PEFT


def test_schedule_prunes_while_training() -> None:
    """Ranks are pruned while the loss falls; another adapter of the mix is unchanged."""
    expected = jaxmix.compose(PARAMS, adalora())
    mixed = jaxmix.mix(lora(), jax.tree.map(lambda x: 0.5 * x, adalora()))
    schedule = RankSchedule(target_rank=2, steps=30, warmup=5, final=10)
    values, rebuild = trainable(mixed)
    state = schedule.start(values)

    def loss(values: Any) -> Any:
        params = jaxmix.compose(PARAMS, rebuild(values))
        return sum(jnp.mean((params[name] - expected[name]) ** 2) for name in expected)

    @jax.jit
    def step(values: Any, state: Any, number: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(values)
        values = jax.tree.map(lambda x, gradient: x - 0.1 * gradient, values, gradients)
        return *schedule.step(state, values, gradients, number), value

    losses = []
    for number in range(30):
        values, state, value = step(values, state, number)
        losses.append(float(value))
    ranks = {site: int(kept.sum()) for site, kept in state.kept.items()}
    assert sum(ranks.values()) == 4
    nonzero = {s: int(np.sum(np.asarray(u["e"]) != 0)) for s, u in values["ada"]["updates"].items()}
    assert nonzero == {site.split("/")[-1]: rank for site, rank in ranks.items()}
    assert losses[-1] < losses[0]


def test_budget_of_all_ranks_prunes_nothing() -> None:
    """Nothing is masked; PEFT raises, because it selects the zeroth smallest score."""
    values, _ = trainable(adalora())
    schedule = RankSchedule(target_rank=4, steps=3)
    state = schedule.start(values)
    for step in range(4):
        values, state = schedule.step(state, values, values, step)
        assert all(kept.all() for kept in state.kept.values())
    assert all(np.asarray(site["e"]).all() for site in values["ada"]["updates"].values())


def test_orthonormal_factors_have_zero_gradient() -> None:
    """It is zero rather than NaN."""
    eye = {"proj": {"a": jnp.eye(2, 3), "b": jnp.eye(4, 2), "e": jnp.ones(2)}}
    value, gradient = jax.value_and_grad(orthogonality)(eye)
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(gradient))


VALUES: Any = {"lora": {"updates": {"one": {"a": jnp.ones(1), "b": jnp.ones(1)}}}}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "numbers": (
        lambda: RankSchedule(-1, 0, warmup=-1, final=-2, every=0, beta1=0.0, beta2=1.0),
        "invalid rank schedule:\n"
        "  target_rank is -1, expected at least 0\n"
        "  steps is 0, expected at least 1\n"
        "  warmup is -1, expected at least 0\n"
        "  final is -2, expected at least 0\n"
        "  every is 0, expected at least 1\n"
        "  beta1 is 0.0, expected a number between 0 and 1\n"
        "  beta2 is 1.0, expected a number between 0 and 1",
    ),
    "too short": (
        lambda: RankSchedule(1, 10, warmup=4, final=6),
        "invalid rank schedule:\n  warmup + final is 10, expected less than the 10 steps",
    ),
    "no site": (
        lambda: RankSchedule(1, 10).start(VALUES),
        "the rank schedule got values without an AdaLoRA site, expected arrays a, b and e, as "
        "jaxmix.trainable returns them for an AdaLoRA adapter.",
    ),
    "too few ranks": (
        lambda: RankSchedule(5, 10).start(trainable(adalora())[0]),
        "the rank schedule has target_rank 5 for 2 sites, but they have 8 ranks in total, expected "
        "at least 10.",
    ),
    "orthogonality": (
        lambda: orthogonality(VALUES),
        "orthogonality got values without an AdaLoRA site, expected arrays a, b and e.",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_schedule_errors(call: Callable[[], Any], message: str) -> None:
    """The error states the wrong value, the expected one and the remedy."""
    with pytest.raises(AdapterError) as caught:
        call()
    assert str(caught.value) == message
