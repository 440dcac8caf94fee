"""`sample`: what it writes and says, and that it is what the functions find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dina_lrm.backbones import AdapterConfig
from dina_lrm.backbones.loading import load_pipeline
from dina_lrm.errors import CheckpointError
from dina_lrm.generation import Guided, Policy, read_adapter_config, rollout
from dina_lrm.scoring import RewardModel
from tests.golden_fixtures import PIPELINE, PUBLISHED
from tests.pipelines import build_pipeline

STEPS, SIDE = 4, 64
TINY = ("--base", PIPELINE, "--steps", STEPS, "--height", SIDE, "--width", SIDE, "--max-sequence-length", 16)
CHOOSING = (*TINY, "--model", PUBLISHED)


def expected(noises: int, guidance: float = 4.5, adapter: Path | None = None) -> torch.Tensor:
    """Pixels of what the policy makes of the first noises of seed 0."""
    policy = Policy(load_pipeline(str(PIPELINE), torch.float32), AdapterConfig(rank=3, alpha=6), 16)
    if adapter is not None:
        policy.load_adapter(adapter)
    backbone, generator = policy.backbone, torch.Generator().manual_seed(0)
    noise = torch.stack([torch.randn(16, SIDE // 8, SIDE // 8, generator=generator) for _ in range(noises)])
    field = Guided(policy, backbone.encode_prompts([""]), guidance)
    text = backbone.encode_prompts(["a red fox"])[torch.zeros(noises, dtype=torch.int64)]
    with torch.no_grad():
        grid = backbone.sampler_sigmas(STEPS, noise.shape[1:])
        return backbone.decode_latents(rollout(field, noise, text, grid).latents)


def close(path: Path, pixels: torch.Tensor) -> bool:
    shown = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
    return bool((shown.permute(2, 0, 1).float() / 255 - pixels).abs().max() < 2 / 255)


def test_without_a_model_it_samples(dina, tmp_path: Path) -> None:
    ran = dina("sample", "--prompt", "a red fox", *TINY, "--num", 3, "--out", tmp_path / "out", "--json")
    assert ran.status == 0 and ran.err == ""
    *rows, cost = map(json.loads, ran.out.splitlines())
    counted = {"network_passes": 24, "network_passes_of_all": 24, "states_read": 0, "choices": []}
    assert counted.items() <= cost.items() and cost["pruned"] is None and cost["seed"] == 0
    assert [row["candidate"] for row in rows] == [0, 1, 2] and {row["reward"] for row in rows} == {None}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["01.png", "02.png", "03.png"]
    assert all(close(Path(row["picture"]), one) for row, one in zip(rows, expected(3), strict=True))


def test_pruning_finishes_few_and_shows_what_the_others_would_have_become(dina, tmp_path: Path) -> None:
    asked = ("--num", 2, "--prune", "--start", 6, "--at", "0.9,0.5", "--keep", "4,2", "--guidance", 1)
    ran = dina("sample", "--prompt", "a red fox", *CHOOSING, *asked, "--out", tmp_path, "--json")
    assert ran.status == 0, ran.err
    *rows, cost = map(json.loads, ran.out.splitlines())
    kept = [(choice["candidates"], choice["kept"]) for choice in cost["choices"]]
    for choice, following in zip(cost["choices"], cost["choices"][1:], strict=False):
        assert (
            set(choice["kept_ids"]) <= set(choice["candidate_ids"]) and choice["kept_ids"] == following["candidate_ids"]
        )
    assert kept == [(6, 4), (4, 2), (2, 2)]
    passes = 6 * 1 + 4 * 1 + 2 * 2 if cost["choices"][1]["sigma"] > 0.4 else 6 * 1 + 4 * 2 + 2 * 1
    assert (cost["network_passes"], cost["network_passes_of_all"], cost["states_read"]) == (passes, 24, 12)
    assert rows[0]["reward"] >= rows[1]["reward"]
    pixels = expected(6, guidance=1.0)
    assert all(close(Path(row["picture"]), pixels[row["candidate"]]) for row in rows)
    with Image.open(tmp_path / "pruned.png") as picture:
        assert picture.width > 6 * 96 and picture.height > 3 * 96
    again = dina("sample", "--prompt", "a red fox", *CHOOSING, *asked, "--out", tmp_path, "--json")
    assert again.out == ran.out


def test_a_model_and_a_start_are_best_of_n_and_the_largest_reward_is_first(dina, tmp_path: Path) -> None:
    ran = dina("sample", "--prompt", "a red fox", *CHOOSING, "--start", 5, "--num", 2, "--out", tmp_path)
    assert ran.status == 0, ran.err
    assert (
        "sigma 0.000: 2 of 5 kept" in ran.out and "network passes: 40, to finish all 5 it takes 40 (100 %)" in ran.out
    )
    rewards = [float(line.split()[0]) for line in ran.out.splitlines() if ".png" in line]
    everyone = dina("sample", "--prompt", "a red fox", *CHOOSING, "--num", 5, "--out", tmp_path / "all", "--json")
    every = [json.loads(line)["reward"] for line in everyone.out.splitlines()[:-1]]
    assert rewards == pytest.approx(sorted(every, reverse=True)[:2], abs=1e-3)


def test_halving(dina, tmp_path: Path) -> None:
    ran = dina(
        "sample",
        "--prompt",
        "a red fox",
        *CHOOSING,
        "--prune",
        "--halving",
        "--start",
        8,
        "--num",
        1,
        "--out",
        tmp_path,
    )
    assert ran.status == 0, ran.err
    assert [line.split(": ")[1] for line in ran.out.splitlines()[:3]] == ["4 of 8 kept", "2 of 4 kept", "1 of 2 kept"]


def test_the_clean_picture_may_be_read_in_place_of_the_state(dina, tmp_path: Path) -> None:
    asked = ("--prune", "--start", 4, "--num", 1, "--at", "0.9", "--json", "--out", tmp_path)
    rewards = {}
    for read in ("state", "clean", "unsaid"):
        said = () if read == "unsaid" else ("--read", read)
        ran = dina("sample", "--prompt", "a red fox", *CHOOSING, *asked, *said)
        assert ran.status == 0, ran.err
        rewards[read] = [choice["rewards"] for choice in json.loads(ran.out.splitlines()[-1])["choices"]]
    assert [len(row) for row in rewards["state"]] == [4, 1]
    assert rewards["state"][0] != pytest.approx(rewards["clean"][0], abs=1e-3)
    assert rewards["unsaid"] == rewards["clean"]


def test_an_earlier_call_leaves_nothing_that_could_be_taken_for_this_one(dina, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert (
        dina(
            "sample", "--prompt", "a red fox", *CHOOSING, "--prune", "--start", 4, "--num", 2, "--out", tmp_path
        ).status
        == 0
    )
    assert {path.name for path in tmp_path.iterdir()} == {"01.png", "02.png", "pruned.png", "mine.png"}
    assert dina("sample", "--prompt", "a red fox", *TINY, "--num", 1, "--out", tmp_path).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"01.png", "mine.png"}


def trained(folder: Path) -> Path:
    policy = Policy(load_pipeline(str(PIPELINE), torch.float32), AdapterConfig(rank=3, alpha=6))
    generator = torch.Generator().manual_seed(5)
    for value in policy.trained.values():
        value.data = torch.randn(value.shape, generator=generator) * 0.05
    policy.save_pretrained(folder)
    return folder


def test_an_adapter_of_a_policy_is_taken_up(dina, tmp_path: Path) -> None:
    adapter = trained(tmp_path / "adapter")
    config = read_adapter_config(adapter)
    assert (config.rank, config.alpha) == (3, 6)
    ran = dina("sample", "--prompt", "a red fox", *TINY, "--num", 1, "--adapter", adapter, "--out", tmp_path)
    assert ran.status == 0, ran.err
    assert close(tmp_path / "01.png", expected(1, adapter=adapter)[0])
    assert not close(tmp_path / "01.png", expected(1)[0])


def test_an_adapter_that_is_something_else_is_refused(dina, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="is no adapter's folder"):
        read_adapter_config(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    said = {"transformer.r": 3, "transformer.lora_alpha": 6, "transformer.target_modules": ["to_q"]}
    for metadata, why in (
        ({}, "does not say its rank"),
        ({"lora_adapter_metadata": json.dumps({**said, "transformer.use_dora": True})}, "uses use_dora"),
    ):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=why):
            read_adapter_config(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_adapter_config(tmp_path)
    ran = dina("sample", "--prompt", "a red fox", *TINY, "--adapter", tmp_path)
    assert ran.status == 2 and "cannot be read as safetensors" in ran.one_line()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--at", "0.7"], "--at says how to prune: give --prune"),
        (["--halving"], "--halving says how to prune"),
        (["--prune"], "--prune chooses by a reward: name a reward model with --model"),
        (["--start", 4], "--start chooses by a reward"),
        (["--model", "m", "--prune", "--halving", "--at", "0.7"], "--halving finds levels and numbers by itself"),
        (["--model", "m", "--prune", "--start", 3], "--num 4 pictures cannot be chosen from --start 3"),
        (["--model", "m", "--prune", "--at", "0.7,0.5", "--keep", "8"], "got 1 for 2"),
        (["--model", "m", "--prune", "--at", "0.5,0.7"], "falling levels, got 0.5, 0.7"),
        (["--model", "m", "--prune", "--at", "0.5", "--keep", "2"], "--keep ends with 2, of which --num 4"),
        (["--model", "m", "--prune", "--keep", "8,x"], 'whole numbers such as 8,4, got "8,x"'),
        (["--model", "m", "--prune", "--at", "high"], '--at takes numbers such as 0.2,0.5,0.7, got "high"'),
        (["--base", "/nowhere"], "'/nowhere'"),
        (["--base", PIPELINE, "--height", 65], "multiples of 16 for this base, got 65 and 128"),
        (["--base", PIPELINE, "--device", "abacus"], '--device "abacus" is not to be had'),
        (["--base", PIPELINE, "--model", "/nowhere"], "/nowhere"),
        ([*TINY, "--model", PUBLISHED, "--prune", "--at", "0.9", "--keep", "20"], "keep 20 of the 16 samples"),
        ([*TINY, "--model", PUBLISHED, "--prune", "--halving", "--start", 64, "--num", 1], "the grid has"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_2(dina, tmp_path, options, says) -> None:
    ran = dina("sample", "--prompt", "a red fox", "--out", tmp_path / "out", *options)
    assert ran.status == 2 and says in ran.one_line()
    assert not (tmp_path / "out").exists()


def test_a_reward_of_another_latent_space_is_refused(dina, monkeypatch, golden_model, tmp_path: Path) -> None:
    load, bases = RewardModel.from_pretrained, []

    def on_its_own_base(path, *, base=None, **asked):
        bases.append(base)
        return golden_model if base is None else load(path, base=base, **asked)

    monkeypatch.setattr(RewardModel, "from_pretrained", on_its_own_base)
    base = build_pipeline("flux", tmp_path / "flux")
    ran = dina("sample", "--prompt", "a red fox", "--base", base, "--model", PUBLISHED, "--out", tmp_path / "out")
    told = ran.one_line()
    assert ran.status == 2 and not (tmp_path / "out").exists() and len(bases) == 2
    assert "FluxTransformer2DModel with VAE scaling_factor 0.3611" in told and "SD3Transformer2DModel" in told
    assert "take a reward model of the generator's own family" in told


def test_a_generator_of_clips_is_refused(dina, tmp_path: Path) -> None:
    base = build_pipeline("wan", tmp_path / "wan")
    ran = dina("sample", "--prompt", "a red fox", "--base", base)
    assert ran.status == 2 and "WanPipeline draws clips" in ran.one_line()
