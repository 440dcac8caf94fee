"""The pixel rival: what is saved is what is asked, every word is read, gradients reach the pixels, a run is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dina_lrm.data import Candidate, Origin, PreferenceData, PreferencePair, write_preference_data
from dina_lrm.errors import CheckpointError, ShapeError
from dina_lrm.runtime.metrics_log import read_metrics
from studies.alignment import rival_training
from studies.alignment.rival import SIZES, Rival, RivalConfig, letter_groups
from studies.alignment.rival_data import Captions, Material, shown_concepts
from studies.alignment.rival_report import score_rival
from studies.alignment.rival_training import FAST, train_rival, train_rivals

TINY = RivalConfig(widths=(8, 8, 8, 8), texture_filters=4, text_width=16, text_layers=1, buckets=64, hidden=16)
PROMPTS = ("a red fox, flat style", "a cat", "owl")
CONCEPTS, STYLES = ("red fox", "cat", "owl"), ("flat", "noto")


@pytest.fixture
def rival() -> Rival:
    made = Rival(TINY, ["a", "cat", "flat", "fox", "red", "style"])
    for reader in (made.texture_quality, made.quality, made.agreement):  # silent until they have learned
        torch.nn.init.normal_(reader[-1].weight)
    made.standardise.running_mean.uniform_(-1, 1)
    return made.eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32)


def test_what_is_saved_is_what_is_asked(rival: Rival, pixels: torch.Tensor, tmp_path: Path) -> None:
    rival.requires_grad_(False).save(tmp_path / "rival")
    loaded = Rival.from_folder(tmp_path / "rival")
    assert loaded.config == rival.config and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(pixels, PROMPTS), rival(pixels, PROMPTS), rtol=0, atol=0)


def test_a_folder_that_is_not_whole_is_refused(rival: Rival, tmp_path: Path) -> None:
    rival.save(tmp_path / "rival")
    (tmp_path / "rival" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="holds no whole rival"):
        Rival.from_folder(tmp_path / "rival")


def test_alone_is_as_in_a_batch(rival: Rival, pixels: torch.Tensor) -> None:
    together = rival(pixels, PROMPTS)
    alone = torch.cat([rival(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_picture(rival: Rival, pixels: torch.Tensor) -> None:
    rival.requires_grad_(False)
    leaf = pixels.requires_grad_()
    rival(leaf, PROMPTS).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_plain_pictures_have_finite_gradients(rival: Rival) -> None:
    white = torch.ones(1, 3, 32, 32, requires_grad=True)
    rival(white, ["a cat"]).sum().backward()
    assert white.grad is not None and white.grad.isfinite().all()


def test_words_never_seen_are_read(rival: Rival) -> None:
    found = rival.text(["a zebra", "a yak", "a zebra", ""])
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1]) and found[3].isfinite().all()


def test_groups_of_letters_are_the_same_everywhere() -> None:
    assert letter_groups("cat", 64) == letter_groups("cat", 64) and min(letter_groups("cat", 64)) >= 1
    assert len(letter_groups("cat", 64)) == 3 + 2 + 1  # of 3, 4 and 5 letters of <cat>


@pytest.mark.parametrize(("shape", "prompts"), [((1, 3, 30, 32), 1), ((1, 1, 32, 32), 1), ((2, 3, 32, 32), 1)])
def test_what_does_not_fit_is_refused(rival: Rival, shape: tuple[int, ...], prompts: int) -> None:
    with pytest.raises(ShapeError):
        rival(torch.rand(shape), ["a cat"] * prompts)


def test_sizes_are_those_of_the_kept_backbone_and_three_times_it() -> None:
    kept = 9_590_144
    counted = {
        size: sum(p.numel() for p in Rival(config, [f"w{i}" for i in range(1600)]).parameters())
        for size, config in SIZES.items()
    }
    assert counted["small"] == pytest.approx(kept, rel=0.03)
    assert counted["large"] == pytest.approx(3 * kept, rel=0.03)


# Training on a toy world: drawings of one colour a concept, striped where the style is noto; damage is grey.


def drawing(concept: str, style: str) -> torch.Tensor:
    picture = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    picture[CONCEPTS.index(concept), 4:28, 4:28] = 40
    if style == "noto":
        picture[:, ::4] = 255
    return picture


@pytest.fixture
def toy(tmp_path: Path) -> tuple[PreferenceData, Material]:
    shows = [(concept, style) for concept in CONCEPTS for style in STYLES]
    pictures = [drawing(*one) for one in shows]
    pictures += [(picture.float() * 0.5 + 60).to(torch.uint8) for picture in pictures]
    origins = [Origin("real", *one, "right") for one in shows] + [Origin("damaged", *one, "fade") for one in shows]
    candidates = [Candidate(f"c{k}", f"{shows[k % 6][0]}, {shows[k % 6][1]} style", k, origins[k]) for k in range(12)]
    pairs = [PreferencePair(candidates[k].prompt, f"c{k}", f"c{k + 6}", 8, 1, 0, "damage") for k in range(6)]
    splits = {"train": pairs, "validation": pairs}
    data = write_preference_data(tmp_path / "toy", candidates, torch.randn(12, 4, 2, 2), splits, "toy", {}, {})
    art = [{"concept": c, "style": s, "keywords": ["animal", c]} for c, s in shows]
    table = data.pairs("train")
    return data, Material(torch.stack(pictures), table, torch.stack(pictures[:6]), tuple(shows), Captions.of(art))


def test_a_batch_holds_each_picture_once_and_each_prompt_alike(toy: tuple[PreferenceData, Material]) -> None:
    _, material = toy
    assert len(material.groups) == len(CONCEPTS)
    batch = material.batch(np.arange(3))
    assert batch.rows.tolist() == list(range(12)) and len(batch.prompts) == 6
    assert float(batch.weight.sum()) == pytest.approx(1)
    rows = batch.rows[batch.picture]
    assert ((rows[batch.rejected] - rows[batch.chosen]) == 6).all()
    assert (batch.prompt[batch.chosen] == batch.prompt[batch.rejected]).all()


def test_captions_are_true_of_what_they_say(toy: tuple[PreferenceData, Material]) -> None:
    _, material = toy
    shown = [("red fox", "flat"), ("cat", "noto"), ("red fox", "noto")]
    for seed in range(20):
        texts, true = material.captions.draw(shown, torch.Generator().manual_seed(seed))
        assert texts[-2:] == ["flat style", "noto style"]
        assert true[:3].diagonal().all() and true[-2:].tolist() == [[True, False, False], [False, True, True]]
        for text, fits in zip(texts, true.tolist(), strict=True):
            if "red fox" in text:
                assert not fits[1]
            named = {style for style in STYLES if style in text}
            assert all(not named or {style} == named for (_, style), fit in zip(shown, fits, strict=True) if fit)


def test_training_orders_the_toy_world_and_is_not_repeated(
    toy: tuple[PreferenceData, Material], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, material = toy
    budget = rival_training.RivalBudget(8, 12, 60, 3, 4, (2e-3, 5e-3), measure_every=20)
    folder = train_rival(tmp_path / "rival", TINY, data, material, budget)
    rows = read_metrics(tmp_path / "rival.jsonl")
    votes = [row for row in rows if row["kind"] == "votes"]
    assert float(votes[-1]["loss"] or 9) < float(votes[0]["loss"] or 0)
    scored = score_rival(Rival.from_folder(folder), data, material.pictures, "train")
    assert (scored.margin > 0).all()

    def refuse(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(rival_training, "learn_votes", refuse)
    monkeypatch.setattr(rival_training, "learn_captions", refuse)
    before = (folder / "model.safetensors").read_bytes()
    assert train_rival(tmp_path / "rival", TINY, data, material, budget) == folder
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_run_that_was_killed_goes_on_after_its_first_stage(
    toy: tuple[PreferenceData, Material], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, material = toy

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rival_training, "learn_votes", kill)
        with pytest.raises(KeyboardInterrupt):
            train_rival(tmp_path / "rival", TINY, data, material, FAST)
    assert not (tmp_path / "rival").exists()
    monkeypatch.setattr(rival_training, "learn_captions", lambda *_: pytest.fail("the first stage again"))
    assert (train_rival(tmp_path / "rival", TINY, data, material, FAST) / "model.safetensors").is_file()


def test_the_same_seed_gives_the_same_rival(toy: tuple[PreferenceData, Material], tmp_path: Path) -> None:
    data, material = toy
    folders = [
        train_rival(tmp_path / name, TINY, data, material, FAST, seed)
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    ]
    first, again, other = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert first == again != other


def test_both_sizes_are_trained_under_the_study_and_finished_ones_left_alone(
    toy: tuple[PreferenceData, Material], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, material = toy
    monkeypatch.setattr(rival_training, "SIZES", {"small": TINY, "large": TINY})
    monkeypatch.setattr(rival_training, "read_material", lambda *_: material)
    train_rivals(tmp_path, data.folder, quick=True)
    assert all((tmp_path / name / "config.json").is_file() for name in ("rival-small", "rival-large"))
    monkeypatch.setattr(rival_training, "read_material", lambda *_: pytest.fail("read again"))
    train_rivals(tmp_path, data.folder, quick=True)


def test_no_held_out_concept_is_among_the_training_pairs(root: Path) -> None:
    data = PreferenceData.open(root / "worlds" / "emoji" / "preferences")
    trained = shown_concepts(data.pairs("train"))
    assert len(trained) > 500
    for split in ("validation", "test", "unseen_style", "unseen_damage"):
        assert not trained & shown_concepts(data.pairs(split))
