from __future__ import annotations

import torch
from torch import nn

from dina_lrm.runtime.accelerator import any_process, create_accelerator, mean_over_processes


def test_gradients_are_synchronised_once_per_accumulation() -> None:
    accelerator = create_accelerator(gradient_accumulation_steps=3, device="cpu")
    module = accelerator.prepare(nn.Linear(2, 1))
    seen = []
    for _ in range(6):
        with accelerator.accumulate(module):
            accelerator.backward(module(torch.ones(1, 2)).sum())
            seen.append(accelerator.sync_gradients)
    assert seen == [False, False, True] * 2
    assert torch.allclose(module.bias.grad, torch.tensor([2.0]))


def test_one_process_is_its_own_mean() -> None:
    accelerator = create_accelerator(device="cpu")
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(mean_over_processes(accelerator, value), value)
    assert any_process(accelerator, True)
    assert not any_process(accelerator, False)
