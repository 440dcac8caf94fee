from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dina_lrm.errors import ShapeError, ValueRangeError
from dina_lrm.preference import BradleyTerry, Calibration, Thurstone, fidelity, nll

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "sd3-tiny" / "cases.safetensors")


@pytest.mark.parametrize(
    ("name", "law", "objective"),
    [
        ("thurstone", Thurstone(), fidelity),
        ("thurstone-constant", Thurstone(0.0, 0.5), fidelity),
        ("bt", BradleyTerry(), nll),
        ("bt-margin", BradleyTerry(1.0), nll),
    ],
)
def test_losses_and_gradients_agree_with_the_release(name, law, objective):
    chosen = GOLDEN["loss.chosen"].flatten().clone().requires_grad_()
    loss = objective(law.log_prob(chosen, GOLDEN["loss.rejected"].flatten(), GOLDEN["loss.sigma"])).mean()
    loss.backward()
    assert loss.item() == pytest.approx(GOLDEN[f"loss.{name}"].item(), abs=1e-3)
    assert torch.allclose(chosen.grad, GOLDEN[f"loss.{name}.grad"].flatten(), atol=1e-3)


@pytest.mark.parametrize("objective", [fidelity, nll])
def test_a_soft_label_of_one_is_the_hard_label(objective):
    log_prob = torch.linspace(-3, -0.01, 9)
    other = torch.log(-torch.expm1(log_prob))
    assert torch.allclose(objective(log_prob, torch.ones(9), other), objective(log_prob), atol=1e-6)


@pytest.mark.parametrize("objective", [fidelity, nll])
@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
def test_the_best_probability_is_the_share_of_votes(objective, target):
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    loss = objective(p.log(), torch.full_like(p, target), (1 - p).log())
    assert p[loss.argmin()].item() == pytest.approx(target, abs=0.011)


def test_fidelity_is_between_nothing_and_one_and_needs_no_epsilon():
    loss = fidelity(torch.tensor([0.0, -1e-8, -300.0]))
    assert loss.tolist() == pytest.approx([0, 5e-9, 1], abs=1e-7)
    assert (loss >= 0).all()


@pytest.mark.parametrize("objective", [fidelity, nll])
def test_a_soft_label_needs_both_orders(objective):
    with pytest.raises(ShapeError, match="log_prob_reversed"):
        objective(torch.zeros(2), torch.ones(2))


def test_calibration_keeps_the_order():
    utility = torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(Calibration(0.1, 1.0)(utility).argsort(), utility.argsort())
    assert torch.equal(Calibration()(utility), utility)
    with pytest.raises(ValueRangeError):
        Calibration(0.0)
