"""Every backbone of the package passes the suite, on a tiny pipeline of its family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dina_lrm.backbones import BackboneConfig
from tests.conformance.case import Case
from tests.conformance.families import whole_of
from tests.conformance.suite import BackboneSuite, VariantSuite
from tests.pipelines import build_pipeline, sigma_at

FLOW_SIGMAS = (0.02, 0.35, 0.9)
TRAINED_SIGMAS = (sigma_at(20), sigma_at(400), sigma_at(900))


def shift_and_scale(vae: Any, raw: Tensor) -> Tensor:
    return (raw - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def mean_and_std(vae: Any, raw: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values)[:, None, None, None] for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (raw - mean) / std


def taps(kind: str, image: tuple[int, ...], text: tuple[int, ...]) -> BackboneConfig:
    return BackboneConfig(kind=kind, image_taps=image, text_taps=text, adapter=None)


SD3 = dict(
    config=taps("sd3", (0, 2, 5), (0, 1, 4)),
    last_taps=(5, 4),  # the last block returns no text
    latent_shapes=((16, 8, 12), (16, 2, 6), (16, 14, 4)),
    sigmas=FLOW_SIGMAS,
    lengths=(64, 16),
    output_layers=("norm_out", "proj_out"),
    standardised=shift_and_scale,
    clip_tokens=77,
    # Of the last block: it makes queries of the text and throws them away.
    idle=("transformer_blocks.4.attn.add_q_proj", "transformer_blocks.4.attn.norm_added_q"),
)
FLUX = dict(
    config=taps("flux", (0, 2, 3, 5), (0, 3, 4, 5)),
    last_taps=(5, 5),  # three blocks of two streams, two of one
    latent_shapes=((16, 8, 12), (16, 2, 6), (16, 14, 4)),
    sigmas=FLOW_SIGMAS,
    lengths=(64, 16),
    output_layers=("norm_out", "proj_out"),
    standardised=shift_and_scale,
)
CASES: dict[str, dict[str, Any]] = {
    "sd3": SD3,
    "sd35": SD3,
    "sd35_large": SD3,
    "flux": FLUX,
    "flux_schnell": FLUX,
    "zimage": dict(
        config=taps("zimage", (0, 2, 4), (0, 3, 4)),
        last_taps=(4, 4),
        # 24, 3, 32 and 35 tokens: below, at and above the length that the network pads to.
        latent_shapes=((16, 8, 12), (16, 2, 6), (16, 16, 8), (16, 10, 14)),
        sigmas=FLOW_SIGMAS,
        lengths=(96, 40),
        output_layers=("all_final_layer",),
        standardised=shift_and_scale,
    ),
    "qwen_image": dict(
        config=taps("qwen_image", (0, 2, 4), (0, 3, 4)),
        last_taps=(4, 4),
        latent_shapes=((16, 8, 12), (16, 2, 6), (16, 14, 4)),
        sigmas=FLOW_SIGMAS,
        lengths=(64, 16),
        output_layers=("norm_out", "proj_out"),
        standardised=mean_and_std,
        framed=True,
    ),
    "sdxl": dict(
        config=taps("sdxl", (0, 2, 4), (0,)),
        last_taps=(7, 0),
        latent_shapes=((4, 8, 12), (4, 4, 8), (4, 16, 4)),
        sigmas=TRAINED_SIGMAS,
        lengths=(77, 77),
        output_layers=("conv_norm_out", "conv_out"),
        standardised=shift_and_scale,
        shortens=False,
    ),
    "sd15": dict(
        config=taps("sd15", (0, 2, 5, 6), (0,)),
        last_taps=(9, 0),
        latent_shapes=((4, 8, 16), (4, 8, 8), (4, 24, 8)),
        sigmas=TRAINED_SIGMAS,
        lengths=(77, 77),
        output_layers=("conv_norm_out", "conv_out"),
        standardised=shift_and_scale,
        shortens=False,
    ),
    "wan": dict(
        config=taps("wan", (0, 2, 4), (0,)),
        last_taps=(4, 0),
        latent_shapes=((16, 3, 8, 12), (16, 1, 2, 6), (16, 2, 6, 4)),
        sigmas=FLOW_SIGMAS,
        lengths=(64, 16),
        output_layers=("norm_out", "proj_out"),
        standardised=mean_and_std,
        idle=("scale_shift_table",),
        frames=5,
    ),
}


VARIANTS = ("sd35", "sd35_large", "flux_schnell")


def build(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Case:
    kind = request.param
    return Case(folder=build_pipeline(kind, factory.mktemp("pipelines") / kind), whole=whole_of(kind), **CASES[kind])


class TestBackbones(BackboneSuite):
    """One run of the suite a backbone."""

    @pytest.fixture(scope="class", params=[kind for kind in CASES if kind not in VARIANTS])
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
        return build(request, tmp_path_factory)


class TestVariants(VariantSuite):
    """Networks with a second attention, with normed queries, without guidance."""

    @pytest.fixture(scope="class", params=VARIANTS)
    @classmethod
    def case(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
        return build(request, tmp_path_factory)
