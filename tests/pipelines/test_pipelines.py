"""The tiny pipelines are what diffusers saves and loads, and they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from tests.pipelines import KINDS, build_pipeline, run_one_step, sigma_at

CLASSES = {
    "sd3": "StableDiffusion3Pipeline",
    "sd35": "StableDiffusion3Pipeline",
    "sd35_large": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux_schnell": "FluxPipeline",
    "zimage": "ZImagePipeline",
    "qwen_image": "QwenImagePipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd15": "StableDiffusionPipeline",
    "wan": "WanPipeline",
}
UNETS = ("sdxl", "sd15")
SIGMA = 0.35
# What the network is told of it: families count 0..1000, 0..1, or 0..1 towards the picture.
TIMESTEP = {
    "sd3": 350.0,
    "sd35": 350.0,
    "sd35_large": 350.0,
    "flux": 0.35,
    "flux_schnell": 0.35,
    "zimage": 0.65,
    "qwen_image": 0.35,
    "sdxl": 250.0,
    "sd15": 250.0,
    "wan": 350.0,
}
PROMPTS = ["a red fox", "two owls on a branch, at night"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline(kind, tmp_path_factory.mktemp("pipelines") / kind)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder)


def network(pipeline: Any) -> nn.Module:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def latents(kind: str, batch: int = 2) -> Tensor:
    shape = {"sdxl": (4, 8, 12), "sd15": (4, 8, 12), "wan": (16, 3, 8, 12)}.get(kind, (16, 8, 12))
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


def run(pipeline: Any, kind: str, states: Tensor, prompts: list[str] = PROMPTS) -> tuple[dict[str, Any], Tensor]:
    """What the network was called with, its positional arguments by their place, and what it said."""
    seen: dict[str, Any] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        assert not seen, "one step asks once"
        seen.update({str(place): value for place, value in enumerate(args)}, **kwargs, output=output[0])

    hook = network(pipeline).register_forward_hook(record, with_kwargs=True)
    try:
        sigma = sigma_at(250) if kind in UNETS else SIGMA
        run_one_step(pipeline, kind, prompts, states, sigma, max_sequence_length=48)
    finally:
        hook.remove()
    output = seen.pop("output")
    return seen, torch.stack(list(output)) if isinstance(output, list) else output


def test_small_and_of_the_real_class(kind: str, folder: Path, pipeline: Any) -> None:
    assert type(pipeline).__name__ == CLASSES[kind]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5_000_000


def test_every_parameter_counts(pipeline: Any) -> None:
    for part in (part for part in pipeline.components.values() if isinstance(part, nn.Module)):
        for name, parameter in part.named_parameters():
            assert parameter.dtype == torch.float32
            assert parameter.count_nonzero() == parameter.numel(), name


def test_one_step(kind: str, pipeline: Any) -> None:
    scheduler = pipeline.scheduler
    seen, output = run(pipeline, kind, latents(kind))
    timestep = seen["timestep"] if "timestep" in seen else seen["1"]
    torch.testing.assert_close(timestep.double().unique(), torch.tensor([TIMESTEP[kind]]).double(), rtol=0, atol=1e-4)
    assert output.shape[0] == 2 and output.isfinite().all()
    assert 0.05 < float(output.std()) < 20.0
    assert pipeline.scheduler is scheduler


def test_the_network_gets_the_latents_unchanged(kind: str, pipeline: Any) -> None:
    states = latents(kind)
    seen, _ = run(pipeline, kind, states)
    got = seen["hidden_states"] if "hidden_states" in seen else seen["0"]
    if isinstance(got, list):
        got = torch.stack(got).squeeze(2)
    if got.ndim == 3:
        got = pipeline._unpack_latents(got, 64, 96, 8).reshape(states.shape)
    assert torch.equal(got, states)


def test_prompts_and_latents_matter(kind: str, pipeline: Any) -> None:
    states = latents(kind)
    _, output = run(pipeline, kind, states)
    _, reworded = run(pipeline, kind, states, ["a blue fox", PROMPTS[1]])
    assert not torch.allclose(output[0], reworded[0], atol=1e-4)
    torch.testing.assert_close(output[1], reworded[1])


def test_the_same_weights_at_every_call(tmp_path: Path) -> None:
    first, second = (build_pipeline("flux", tmp_path / name) for name in ("first", "second"))
    for file in first.rglob("*.safetensors"):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def test_qwen_image_drops_its_own_words_only(tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(build_pipeline("qwen_image", tmp_path))
    before, _, _ = pipeline.prompt_template_encode.partition("{}")
    assert len(pipeline.tokenizer(before).input_ids) == pipeline.prompt_template_encode_start_idx


def test_a_sigma_between_time_steps_is_refused(tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(build_pipeline("sd15", tmp_path))
    between = (sigma_at(100) + sigma_at(101)) / 2
    with pytest.raises(ValueError, match="nearest"):
        run_one_step(pipeline, "sd15", PROMPTS, latents("sd15"), between, max_sequence_length=77)
