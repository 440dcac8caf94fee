"""Pictures and votes on disk to a calibrated, measured model: `encode`, `train`, `calibrate`, `eval`, `info`, on a tiny base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dina_lrm.data import PreferenceData
from dina_lrm.evals import prompt_seed
from dina_lrm.scoring import RewardModel, open_image
from tests.golden_fixtures import PIPELINE, PUBLISHED

PROMPTS, EACH, DEVIATION = 10, 4, 0.5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts with four pictures each: a colour, and noise over it."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PROMPTS * EACH):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 255, (1, 1, 3)) + rng.normal(0, 60 * (i % 3), (64, 64, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def write_rows(pictures: Path, name: str, votes: Callable[[int, int], int]) -> Path:
    """All pairs of each prompt; `votes(a, b)` of nine prefer a."""
    rows = []
    for prompt in range(PROMPTS):
        places = range(prompt * EACH, (prompt + 1) * EACH)
        for a in places:
            for b in range(places.start, a):
                row = {"prompt": f"prompt {prompt}", "images": [f"{a}.png", f"{b}.png"]}
                rows.append({**row, "votes": [votes(a, b), 9 - votes(a, b)]})
    path = pictures / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def utilities(model: RewardModel, data: PreferenceData) -> torch.Tensor:
    """Of each picture under its prompt, by its number."""
    rows = dict(zip(data.candidates["candidate"].to_pylist(), data.candidates["latents_row"].to_pylist(), strict=True))
    asked = [(f"prompt {i}", [rows[f"{i * EACH + j}.png"] for j in range(EACH)]) for i in range(PROMPTS)]
    found = [
        model.score(prompts=[prompt], latents=data.latents(places), sigmas=(0.3,), seed=prompt_seed(prompt, 0)).utility
        for prompt, places in asked
    ]
    return torch.cat(found).double()


@pytest.mark.slow
def test_from_pictures_to_probabilities(dina: Callable[..., Any], pictures: Path, tmp_path: Path) -> None:
    source = write_rows(pictures, "train.jsonl", lambda a, b: (7 * a + 3 * b) % 10)
    ran = dina(
        "encode", source, "--base", PIPELINE, "--out", tmp_path / "train", "--side", 32, "--held-out", 0.4, "--json"
    )
    assert ran.status == 0, ran.err
    encoded = json.loads(ran.out)
    assert encoded["pictures"] == 40 and sum(encoded["pairs"].values()) == 60 and encoded["errors"] == {}
    assert dina("verify", tmp_path / "train").status == 0

    ran = dina(
        "train", "tiny", "--set", f"data={tmp_path / 'train'}", "--set", f"base={PIPELINE}", "--out", tmp_path / "run",
        "--set", "num_steps=4", "--json",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    folder = Path(json.loads(ran.out)["model"])

    # People who happen to agree with the model, more or less: what there is to calibrate.
    model = RewardModel.from_pretrained(folder)
    margin = utilities(model, PreferenceData.open(tmp_path / "train"))
    unit = margin.view(PROMPTS, EACH).std(dim=1).mean()
    rng = np.random.default_rng(0)

    def votes(a: int, b: int) -> int:
        return int(rng.binomial(9, float(torch.special.ndtr((margin[a] - margin[b]) / unit / DEVIATION))))

    found: dict[tuple[int, int], int] = {}
    people = write_rows(pictures, "people.jsonl", lambda a, b: found.setdefault((a, b), votes(a, b)))
    shards = tmp_path / "people"
    assert (
        dina("encode", people, "--base", PIPELINE, "--out", shards, "--side", 32, "--split", "validation").status == 0
    )

    ran = dina("calibrate", "--model", folder, "--pairs", shards, "--sigmas", "0.2,0.3,0.7", "--draws", 2, "--json")
    assert ran.status == 0, ran.err
    fitted = json.loads(ran.out)
    assert fitted["fitted_on"] == "people, validation" and len(fitted["levels"]) == 3
    assert dina("verify", folder).status == 0
    assert {"calibration.json", "reliability.png", "config.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "calibration.json").read_text())["calibration"]["pairs"] == 60
    assert not (folder.parent / ".model.calibrating").exists()

    told = dina("info", folder).out
    assert "fitted_on: people, validation" in told and "sigma 0.3: reward (utility - " in told and "ECE" in told

    ran = dina(
        "eval",
        "--model",
        folder,
        "--task",
        shards,
        "--split",
        "validation",
        "--sigma",
        0.3,
        "--out",
        tmp_path / "card.json",
    )
    assert ran.status == 0, ran.err
    assert "accuracy" in ran.out and "HPSv2" in ran.out and "fitted on people, validation" in ran.out
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["card"]["accuracy"]["value"] > 0.7 and card["task"]["rule"]["sigmas"] == [0.3]

    images = [open_image(pictures / f"{i}.png").resize((32, 32)) for i in range(EACH)]
    calibrated = RewardModel.from_pretrained(folder)
    reward = calibrated.score(prompts=["prompt 0"], images=images, sigmas=(0.3,)).reward
    plain = model.score(prompts=["prompt 0"], images=images, sigmas=(0.3,)).reward
    assert torch.equal(reward.argsort(), plain.argsort()) and not torch.allclose(reward, plain)


def test_a_published_model_is_calibrated_into_a_copy(dina: Callable[..., Any], tmp_path: Path) -> None:
    ran = dina("calibrate", "--model", PUBLISHED, "--base", PIPELINE, "--pairs", tmp_path)
    assert ran.status == 2 and "--out" in ran.one_line()


def test_a_place_that_cannot_be_written_is_told_before_the_work(dina: Callable[..., Any], tmp_path: Path) -> None:
    """The pairs are read after the place is checked, so a missing folder of pairs is never what is told."""
    folder = Path(shutil.copytree(PUBLISHED, tmp_path / "model"))
    (tmp_path / "file").touch()
    for out, told in (
        (folder, "keeps no calibration"),
        (folder / ".." / "model", "keeps no calibration"),
        (folder / "copy", "in one another"),
        (tmp_path / "file", "is a file"),
    ):
        ran = dina("calibrate", "--model", folder, "--base", PIPELINE, "--pairs", tmp_path / "none", "--out", out)
        assert ran.status == 2 and told in ran.one_line()


def test_what_calibrate_refuses(dina: Callable[..., Any], tmp_path: Path) -> None:
    ran = dina("calibrate", "--model", "someone/model", "--pairs", tmp_path)
    assert ran.status == 2 and "--out" in ran.one_line()
    (tmp_path / "thesis.txt").touch()
    ran = dina("calibrate", "--model", PUBLISHED, "--pairs", tmp_path, "--out", tmp_path)
    assert ran.status == 2 and "thesis.txt" in ran.one_line()
    ran = dina(
        "calibrate", "--model", PUBLISHED, "--pairs", tmp_path / "x", "--out", tmp_path / "y", "--sigmas", "0.2,x"
    )
    assert ran.status == 2 and "--sigmas" in ran.one_line()


def test_what_eval_refuses(dina: Callable[..., Any]) -> None:
    ran = dina("eval", "--model", PUBLISHED, "--task", "imagenet")
    assert ran.status == 2 and "emoji_unseen_style" in ran.one_line()
    ran = dina("eval", "--model", PUBLISHED, "--task", "emoji", "--sigma", 2)
    assert ran.status == 2 and "[0, 1]" in ran.one_line()


def test_what_encode_refuses_and_counts(dina: Callable[..., Any], pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("prompt,chosen,rejected\np,0.png,1.png\np,2.png,none.png\n")
    asked = ("encode", source, "--base", PIPELINE, "--out", tmp_path / "out", "--images", pictures, "--side", 32)
    ran = dina(*asked)
    assert ran.status == 2 and "there is no such picture" in ran.err and "--max-errors" in ran.err
    ran = dina(*asked, "--max-errors", 1)
    assert ran.status == 0 and "left out: 1 x there is no such picture" in ran.err and "1 in train" in ran.out
    assert dina("encode", tmp_path / "none.csv", "--base", PIPELINE, "--out", tmp_path / "out").status == 2
