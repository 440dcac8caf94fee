from __future__ import annotations

import pytest
import torch
from torch import nn

from dina_lrm.errors import CheckpointError, ValueRangeError
from dina_lrm.runtime.ema import Ema, warmed_decay


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.ones(3, dtype=dtype)), "b": nn.Parameter(torch.zeros(2, 2, dtype=dtype))}


def move(params: dict[str, nn.Parameter], by: float) -> None:
    with torch.no_grad():
        for p in params.values():
            p.add_(by)


def test_the_average_follows_the_formula_step_by_step() -> None:
    params = parameters()
    ema = Ema(params, decay=0.9)
    expected = 1.0
    for step in range(30):
        move(params, 0.5)
        ema.update()
        decay = warmed_decay(0.9, step)
        expected = decay * expected + (1 - decay) * float(params["a"].detach()[0])
    assert torch.allclose(ema.state_dict()["a"], torch.full((3,), expected))
    assert ema.num_updates == 30


def test_decay_warms_up_to_its_limit() -> None:
    decays = [warmed_decay(0.995, n) for n in range(5000)]
    assert decays[0] == pytest.approx(0.1)
    assert decays == sorted(decays)
    assert decays[-1] == 0.995


def test_bfloat16_parameters_move_a_float32_average() -> None:
    params = parameters(torch.bfloat16)
    ema = Ema(params, decay=0.995)
    ema.load_state_dict({**ema.state_dict(), "num_updates": torch.tensor(10_000)})
    with torch.no_grad():
        params["a"].fill_(1.0078125)  # the bfloat16 after 1
    for _ in range(200):
        ema.update()
    average = ema.state_dict()["a"]
    assert average.dtype == torch.float32
    assert torch.allclose(average, torch.tensor(1 + 0.0078125 * (1 - 0.995**200)), atol=1e-6)
    with ema.swapped():
        assert params["a"].dtype == torch.bfloat16


def test_swapping_restores_the_very_bits_also_after_an_error() -> None:
    params = parameters()
    ema = Ema(params, decay=0.5)
    move(params, 0.1)
    ema.update()
    before = params["a"].detach().clone()
    with ema.swapped():
        assert torch.equal(params["a"], ema.state_dict()["a"])
        assert not torch.equal(params["a"], before)
    assert torch.equal(params["a"], before)
    manager = ema.swapped()
    manager.__enter__()
    assert not manager.__exit__(RuntimeError, RuntimeError("inside"), None)
    assert torch.equal(params["a"], before)


def test_the_average_carries_no_gradient_and_leaves_the_parameters_alone() -> None:
    params = parameters()
    ema = Ema(params, decay=0.5)
    (params["a"] * 2).sum().backward()
    ema.update()
    assert not ema.state_dict()["a"].requires_grad
    assert torch.equal(params["a"], torch.ones(3))
    with ema.swapped():
        assert params["a"].requires_grad
    assert torch.equal(params["a"].grad, torch.full((3,), 2.0))


def test_a_loaded_average_continues_as_the_saved_one() -> None:
    params = parameters()
    first = Ema(params, decay=0.9)
    for _ in range(3):
        move(params, 1.0)
        first.update()
    second = Ema(parameters(), decay=0.9)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second._parameters = params
    for ema in (first, second):
        ema.update()
    assert torch.equal(first.state_dict()["a"], second.state_dict()["a"])
    second.copy_to_parameters()
    assert torch.equal(params["a"], first.state_dict()["a"])


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    ema = Ema(parameters())
    state = ema.state_dict()
    with pytest.raises(CheckpointError, match="b is on one side only"):
        ema.load_state_dict({"a": state["a"], "num_updates": state["num_updates"]})
    with pytest.raises(CheckpointError, match=r"a must be \[3\], got \[4\]"):
        ema.load_state_dict({**state, "a": torch.zeros(4), "b": torch.ones(2, 2)})
    assert torch.equal(ema.state_dict()["b"], torch.zeros(2, 2))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueRangeError, match="ema decay"):
        Ema(parameters(), decay)


def test_no_parameters_are_no_problem() -> None:
    ema = Ema({})
    ema.update()
    assert ema.num_updates == 1
