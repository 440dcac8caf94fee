"""Peak bytes against hand arithmetic, on meta and on the CPU alike."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from dina_lrm.runtime.memory import peak_bytes

BATCH, INPUT, HIDDEN, OUTPUT = 8, 32, 64, 16
DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


@DEVICES
def test_without_gradient_only_neighbours_live(device):
    network = nn.Sequential(nn.Linear(INPUT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUT)).to(device)
    pixels = torch.zeros(BATCH, INPUT, device=device)
    with torch.no_grad():
        assert peak_bytes(lambda: network(pixels)) == 4 * 2 * BATCH * HIDDEN


@DEVICES
def test_with_gradient_what_was_saved_lives_on(device):
    network = nn.Sequential(nn.Linear(INPUT, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, OUTPUT)).to(device)
    pixels = torch.zeros(BATCH, INPUT, device=device)
    assert peak_bytes(lambda: network(pixels)) == 4 * (2 * BATCH * HIDDEN + BATCH * OUTPUT)


@DEVICES
def test_views_and_in_place_results_are_nothing_new(device):
    def work():
        first = torch.zeros(100, device=device)
        view = first.view(10, 10).t()[2:]
        first.add_(1)
        view.mul_(2)
        return torch.add(first, 1, out=first)

    assert peak_bytes(work) == 400


@DEVICES
def test_what_is_dropped_is_gone_and_what_was_there_is_not_counted(device):
    given = torch.zeros(1000, device=device)

    def work():
        for _ in range(5):
            torch.zeros(100, device=device)
        return given.view(10, 100).add_(1), torch.zeros(50, device=device)

    assert peak_bytes(work) == 400


@pytest.mark.parametrize("with_gradient", [False, True])
def test_attention_makes_no_score_matrix(with_gradient):
    def work(device):
        q = torch.zeros(1, 2, 64, 8, device=device, requires_grad=with_gradient)
        return peak_bytes(lambda: functional.scaled_dot_product_attention(q, q, q))

    assert work("cpu") == work("meta") == 4 * (2 * 64 * 8 + 2 * 64)
