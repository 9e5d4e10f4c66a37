"""AdaLoRA's rank schedule: step for step what PEFT's allocator does with the same numbers."""

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

from .made import PARAMS, lora, normal

SIZES = {"one": (4, 8, 6), "two": (4, 6, 4)}


def adalora() -> Adapter:
    """At both sites."""
    updates: Any = {
        site: AdaLoRA(normal(i, r, size), normal(i + 1, out, r), normal(i + 2, r), 0.5)
        for i, (site, (r, size, out)) in enumerate(SIZES.items())
    }
    return Adapter(updates, name="ada")


# ---------------------------------------------------------------- beside PEFT

# target_rank, steps, warmup, final, every
SCHEDULES = {
    "from the first step": (1, 12, 0, 0, 1),
    "with a beginning and an end": (2, 20, 3, 5, 1),
    "every third": (1, 25, 4, 6, 3),
    "to nothing": (0, 9, 1, 2, 2),
}


@pytest.mark.parametrize("numbers", SCHEDULES.values(), ids=SCHEDULES)
def test_step_for_step(numbers: tuple[int, ...]) -> None:
    """The singular values, the ranks kept and the loss, with numbers that move on all the while."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from ..parity.harness import build, exact
    from ..parity.layer_cases import NETS

    target, steps, warmup, final, every = numbers
    config = peft.AdaLoraConfig(
        init_r=4, target_r=target, total_step=steps, tinit=warmup, tfinal=final, deltaT=every,
        beta1=0.8, beta2=0.9, target_modules=["one", "two"],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with exact():
        model: Any = peft.get_peft_model(build(NETS["linear"]), config)
    theirs = parameters(model)
    schedule = RankSchedule(
        target, steps, warmup=warmup, final=final, every=every, beta1=0.8, beta2=0.9
    )
    kept = []
    with jax.enable_x64(True), exact():
        state = schedule.start(values_of(theirs))
        run = jax.jit(schedule.step)
        for step in range(steps + 2):
            for param in theirs.values():
                param.copy_(param + 0.3 * torch.from_numpy(rng.normal(size=param.shape)))
                param.grad = torch.from_numpy(rng.normal(size=param.shape))
            slopes = values_of({name: param.grad for name, param in theirs.items()})
            values, state = run(state, values_of(theirs), slopes, step)
            model.base_model.update_and_allocate(step)
            for site in ("one", "two"):
                found = values["ada"]["updates"][site]["e"]
                np.testing.assert_allclose(found, theirs[f"{site}.e"][:, 0], rtol=1e-12, atol=0)
            kept.append(sum(int(x.sum()) for x in state.kept.values()))
    pattern = model.peft_config["default"].rank_pattern
    for site in ("one", "two"):
        told = next(ranks for name, ranks in pattern.items() if site in name)
        assert state.kept[f"ada/updates/{site}"].tolist() == told
    assert kept[0] == 8 and kept[-1] == 2 * target and len(set(kept)) > 2


def test_the_loss_that_keeps_them_orthogonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT adds it to a loss of nought here; and its slope."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from ..parity.harness import build, exact
    from ..parity.layer_cases import NETS

    config = peft.AdaLoraConfig(init_r=4, total_step=9, target_modules=["one", "two"])
    with exact():
        model: Any = peft.get_peft_model(build(NETS["linear"]), config)
        theirs = parameters(model)
        inner = model.base_model.model
        monkeypatch.setattr(
            inner, "forward", lambda: SimpleNamespace(loss=torch.zeros((), requires_grad=True) * 1)
        )
        with torch.enable_grad():
            loss = model.base_model().loss
            loss.backward()
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(lambda v: 0.5 * orthogonality(v))(values_of(theirs))
    assert float(value) == pytest.approx(loss.item(), rel=1e-12)
    for name, param in theirs.items():
        site, factor = name.split(".")
        if factor != "e":
            np.testing.assert_allclose(
                slope["ada"]["updates"][site][factor], param.grad, rtol=1e-10, atol=1e-14
            )


def parameters(model: Any) -> dict[str, Any]:
    """PEFT's parameters under jaxmix's names."""
    return {
        f"{site}.{kind}": model.base_model.model.get_submodule(site).get_parameter(
            f"lora_{kind.upper()}.default"
        )
        for site in ("one", "two")
        for kind in ("a", "b", "e")
    }


def values_of(tensors: dict[str, Any]) -> dict[str, Any]:
    """Torch's tensors as `trainable` would name them."""
    flat = {name: x.detach().numpy().copy() for name, x in tensors.items()}
    return {
        "ada": {
            "updates": {
                site: {"a": flat[f"{site}.a"], "b": flat[f"{site}.b"], "e": flat[f"{site}.e"][:, 0]}
                for site in ("one", "two")
            }
        }
    }


# ---------------------------------------------------------------- alone


def test_training_with_it() -> None:
    """Ranks go while it learns; another adapter of the mix is left alone."""
    aim = jaxmix.compose(PARAMS, adalora())
    mixed = jaxmix.mix(lora(), jax.tree.map(lambda x: 0.5 * x, adalora()))
    schedule = RankSchedule(target_rank=2, steps=30, warmup=5, final=10)
    values, whole = trainable(mixed)
    state = schedule.start(values)

    def loss(values: Any) -> Any:
        out = jaxmix.compose(PARAMS, whole(values))
        return sum(jnp.mean((out[name] - aim[name]) ** 2) for name in aim)

    @jax.jit
    def step(values: Any, state: Any, number: Any) -> Any:
        value, slopes = jax.value_and_grad(loss)(values)
        values = jax.tree.map(lambda x, slope: x - 0.1 * slope, values, slopes)
        return *schedule.step(state, values, slopes, number), value

    losses = []
    for number in range(30):
        values, state, value = step(values, state, number)
        losses.append(float(value))
    ranks = {site: int(kept.sum()) for site, kept in state.kept.items()}
    assert sum(ranks.values()) == 4
    left = {s: int(np.sum(np.asarray(u["e"]) != 0)) for s, u in values["ada"]["updates"].items()}
    assert left == {site.split("/")[-1]: rank for site, rank in ranks.items()}
    assert losses[-1] < losses[0]


def test_all_ranks_as_budget() -> None:
    """Nothing is masked; PEFT asks torch for the zeroth least score, and raises."""
    values, _ = trainable(adalora())
    schedule = RankSchedule(target_rank=4, steps=3)
    state = schedule.start(values)
    for step in range(4):
        values, state = schedule.step(state, values, values, step)
        assert all(kept.all() for kept in state.kept.values())
    assert all(np.asarray(site["e"]).all() for site in values["ada"]["updates"].values())


def test_orthonormal_factors_have_no_slope() -> None:
    """And no NaN."""
    eye = {"proj": {"a": jnp.eye(2, 3), "b": jnp.eye(4, 2), "e": jnp.ones(2)}}
    value, slope = jax.value_and_grad(orthogonality)(eye)
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(slope))


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


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(call: Callable[[], Any], text: str) -> None:
    """Where, what was found, what was expected, what to do."""
    with pytest.raises(AdapterError) as caught:
        call()
    assert str(caught.value) == text
