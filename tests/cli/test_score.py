"""`score` and `compare` on the tiny published model, and with a stand-in where only the calls matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dina_lrm import Adaptive, RewardModel
from dina_lrm.types import Comparison, Reward
from tests.golden_fixtures import PIPELINE, PUBLISHED


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for i, size in enumerate([(32, 32), (32, 32), (48, 32), (32, 32)]):
        pixels = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    return paths


class StandIn:
    """Answers with the width of each picture, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def encode_prompts(self, prompts: list[str]) -> list[str]:
        return prompts

    def score(self, *, images: list[Image.Image], **asked: Any) -> Reward:
        self.calls.append({"sizes": [image.size for image in images], **asked})
        values = torch.tensor([float(image.width) for image in images])
        sigmas, spent = torch.tensor(asked["sigmas"]), torch.ones(len(values), dtype=torch.int64)
        return Reward(values, values / 2, values, values, values[:, None], sigmas, asked["seed"], spent)

    def compare(self, **asked: Any) -> Comparison:
        self.calls.append(asked)
        return Comparison(0.75, (0.7, 0.8), 0.5, 2.0, 1.5, tie_band=0.05, decided=True, spent=8)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    model = StandIn()

    def load(path: Any, **kwargs: Any) -> StandIn:
        model.calls.append({"path": path, **kwargs})
        return model

    monkeypatch.setattr(RewardModel, "from_pretrained", load)
    return model


def test_lines_of_json_in_the_order_given(dina, pictures: list[Path], stand_in: StandIn) -> None:
    ran = dina("score", "--model", "m", "--prompt", "a cat", *pictures, "--json", "--seed", 3, "--ensemble", "0.2,0.5")
    assert ran.status == 0 and ran.err == ""
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in pictures]
    assert [row["reward"] for row in rows] == [32, 32, 48, 32]
    assert rows[2] == {
        "image": str(pictures[2]),
        "prompt": "a cat",
        "reward": 48.0,
        "utility": 24.0,
        "utility_std": 48.0,
        "standard_error": 48.0,
        "sigmas": [0.2, 0.5],
        "seed": 3,
        "model": "m",
        "spent": 1,
    }
    assert [call["sizes"] for call in stand_in.calls[1:]] == [[(32, 32), (32, 32), (48, 32), (32, 32)]]


def test_options_reach_the_model(dina, pictures: list[Path], stand_in: StandIn) -> None:
    asked = (
        "--sigma",
        0.1,
        "--draws",
        3,
        "--fusion",
        "tokens",
        "--base",
        "b",
        "--dtype",
        "bfloat16",
        "--revision",
        "r",
    )
    assert dina("score", "--model", "m", "--prompt", "p", pictures[0], *asked).status == 0
    assert stand_in.calls[0] == {"path": "m", "base": "b", "device": "cpu", "dtype": torch.bfloat16, "revision": "r"}
    call = stand_in.calls[1]
    assert (call["sigmas"], call["draws"], call["fusion"], call["antithetic"]) == ((0.1,), 3, "tokens", False)


def test_draws_may_be_left_to_the_model(dina, pictures: list[Path], stand_in: StandIn) -> None:
    asked = ("--adaptive", 6, "--standard-error", 0.1, "--antithetic", "--fusion", "weighted")
    assert dina("score", "--model", "m", "--prompt", "p", pictures[0], *asked).status == 0
    call = stand_in.calls[1]
    assert call["draws"] == Adaptive(6, standard_error=0.1)
    assert (call["antithetic"], call["fusion"]) == (True, "weighted")
    asked = ("--adaptive", 12, "--error-rate", 0.01, "--tie-band", 0.1)
    assert dina("compare", "--model", "m", "--prompt", "p", *pictures[:2], *asked).status == 0
    assert stand_in.calls[3]["draws"] == Adaptive(12, 0.01) and stand_in.calls[3]["tie_band"] == 0.1
    ran = dina("score", "--model", "m", "--prompt", "p", pictures[0], "--adaptive", 6, "--draws", 2)
    assert ran.status == 2 and "either --draws or --adaptive" in ran.one_line()


def test_many_pictures_come_in_batches(dina, pictures: list[Path], stand_in: StandIn) -> None:
    ran = dina("score", "--model", "m", "--prompt", "p", *pictures[:1] * 20)
    assert len(ran.out.splitlines()) == 20
    assert [len(call["sizes"]) for call in stand_in.calls[1:]] == [16, 4]


def test_a_bad_picture_is_told_before_any_model_is_loaded(dina, pictures: list[Path], stand_in: StandIn) -> None:
    pictures[1].write_bytes(pictures[1].read_bytes()[:200])
    ran = dina("score", "--model", "m", "--prompt", "p", *pictures)
    assert ran.status == 2 and str(pictures[1]) in ran.one_line()
    assert stand_in.calls == []


def test_compare(dina, pictures: list[Path], stand_in: StandIn) -> None:
    ran = dina("compare", "--model", "m", "--prompt", "a cat", *pictures[:2], "--json", "--draws", 8)
    row = json.loads(ran.out)
    assert (row["probability"], row["interval"], row["margin"]) == (0.75, [0.7, 0.8], 0.5)
    assert (row["reward_a"], row["reward_b"], row["draws"], row["seed"]) == (2.0, 1.5, 8, 0)
    assert (row["verdict"], row["tie_band"], row["decided"], row["spent"]) == ("a", 0.05, True, 8)
    text = dina("compare", "--model", "m", "--prompt", "a cat", *pictures[:2]).out
    assert "0.750, 95 % interval 0.700 to 0.800" in text and str(pictures[1]) in text


def test_on_a_real_model_the_same_twice_and_alone(dina, pictures: list[Path]) -> None:
    asked = ("--model", PUBLISHED, "--base", PIPELINE, "--prompt", "a red cube", "--json")
    first, again = dina("score", *asked, *pictures), dina("score", *asked, *pictures)
    assert first.status == 0 and first.out == again.out
    together = [json.loads(line)["reward"] for line in first.out.splitlines()]
    alone = json.loads(dina("score", *asked, pictures[1]).out)["reward"]
    assert alone == pytest.approx(together[1], abs=1e-5)
    compared = json.loads(dina("compare", *asked, *pictures[:2]).out)
    low, high = compared["interval"]
    assert 0 <= low <= compared["probability"] <= high <= 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--model", "nowhere/to-be-found"), "nowhere/to-be-found"),
        (("--model", PUBLISHED, "--base", PIPELINE, "--draws", 0), "draws must be 1 or more, got 0"),
        (("--model", PUBLISHED, "--base", PIPELINE, "--seed", -1), "seed must be 0 or more and below 2^63, got -1"),
        (("--model", PUBLISHED, "--base", "nowhere/to-be-found"), "nowhere/to-be-found"),
    ],
)
def test_wrong_input_is_one_line_and_2(dina, pictures: list[Path], asked: tuple[object, ...], says: str) -> None:
    ran = dina("score", "--prompt", "p", pictures[0], *asked)
    assert ran.status == 2
    assert says in ran.one_line()


@pytest.mark.parametrize("verb", ["score", "compare"])
def test_a_prompt_that_is_not_read_to_its_end_is_refused_unless_it_may_be_cut(dina, pictures, verb) -> None:
    words = " ".join(f"word{i}" for i in range(300))
    ask = [verb, "--model", str(PUBLISHED), "--base", str(PIPELINE), "--prompt", words, *map(str, pictures[:2])]
    refused = dina(*ask)
    assert refused.status == 2 and "cut off was" in refused.err and "--cut-prompt" in refused.err
    assert dina(*ask, "--cut-prompt").status == 0
