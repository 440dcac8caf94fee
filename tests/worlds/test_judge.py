from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dina_lrm.worlds.judge import Judge


@pytest.fixture
def judge() -> Judge:
    judge = Judge(["apple", "pear", "bear"], (4, 4, 8, 8))
    judge(torch.rand(16, 3, 64, 64))  # running statistics other than their initial values
    return judge.eval().requires_grad_(False)


def test_readings_have_their_shapes_and_ranges(judge: Judge) -> None:
    pixels = torch.rand(5, 3, 64, 64)
    log_probs, quality = judge.concept_log_probs(pixels), judge.quality(pixels)
    assert log_probs.shape == (5, 3)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(5))
    assert quality.shape == (5,) and quality.min() > 0 and quality.max() < 1


def test_a_picture_reads_the_same_alone_and_in_a_batch(judge: Judge) -> None:
    pixels = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(judge.concept_log_probs(pixels)[1:2], judge.concept_log_probs(pixels[1:2]))


def test_other_sizes_are_resized(judge: Judge) -> None:
    flat = torch.rand(1, 3, 1, 1)
    small, large = flat.expand(1, 3, 64, 64), flat.expand(1, 3, 128, 96)
    torch.testing.assert_close(judge.quality(small), judge.quality(large))


def test_saving_and_loading_keeps_the_readings_to_half_precision(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    loaded = Judge.from_folder(tmp_path)
    pixels = torch.rand(3, 3, 64, 64)
    assert loaded.concepts == judge.concepts and not loaded.training
    torch.testing.assert_close(loaded.concept_log_probs(pixels), judge.concept_log_probs(pixels), atol=2e-2, rtol=2e-2)


def test_a_folder_that_lacks_a_weight_is_refused(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["concept_head.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks concept_head.bias"):
        Judge.from_folder(tmp_path)
