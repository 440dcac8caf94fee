"""Which backbone a checkpoint needs, told from a pipeline's class, a repository's name or the names of layers.

Nothing here loads a network, or the library that would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from dina_lrm.backbones.registry import backbone_class
from dina_lrm.errors import BaseMismatchError, CheckpointError, InputError
from dina_lrm.runtime.hub import read_json

PIPELINES = {
    "FluxPipeline": "flux",
    "QwenImagePipeline": "qwen_image",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "WanPipeline": "wan",
    "ZImagePipeline": "zimage",
}
# Of pipelines by another name that hold the same network, such as one for inpainting.
NETWORKS = {
    "FluxTransformer2DModel": "flux",
    "QwenImageTransformer2DModel": "qwen_image",
    "SD3Transformer2DModel": "sd3",
    "WanTransformer3DModel": "wan",
    "ZImageTransformer2DModel": "zimage",
}
CALLED = {
    "flux": "FLUX",
    "qwen_image": "Qwen-Image",
    "sd15": "Stable Diffusion 1",
    "sd3": "Stable Diffusion 3",
    "sdxl": "Stable Diffusion XL",
    "wan": "Wan",
    "zimage": "Z-Image",
}
_WORDS = (
    (r"stable-?diffusion-?3|\bsd-?3", "sd3"),
    (r"stable-?diffusion-?xl|\bsdxl", "sdxl"),
    (r"stable-?diffusion-?v?1|\bsd-?v?1[.-]?[45]", "sd15"),
    (r"\bflux(?!\.?2)", "flux"),
    (r"\bz-?image", "zimage"),
    (r"\bqwen-?image", "qwen_image"),
    (r"\bwan-?\d", "wan"),
)
_LAYERS = (
    (r"(layers|noise_refiner|context_refiner)\.", ("zimage",)),
    (r"(down_blocks|mid_block|up_blocks)\.", ("sd15", "sdxl")),
    (r"blocks\.", ("wan",)),
    (r"single_transformer_blocks\.", ("flux",)),
    (r"transformer_blocks\.\d+\.attn2\.", ("sd3",)),
    (r"pos_embed\.proj\.", ("sd3",)),
    (r"(img_in|txt_in|txt_norm)\.", ("qwen_image",)),
    (r"transformer_blocks\.", ("flux", "qwen_image", "sd3")),
)

# What the release's published models were trained on: latents (z - shift) * scale of 16 channels.
_LATENTS_SD3 = {"latent_channels": 16, "vae_scaling_factor": 1.5305, "vae_shift_factor": 0.0609}
_LATENTS_FLUX = {"latent_channels": 16, "vae_scaling_factor": 0.3611, "vae_shift_factor": 0.1159}
RELEASE_LATENTS: dict[str, dict[str, Any]] = {"sd3": _LATENTS_SD3, "flux": _LATENTS_FLUX, "zimage": _LATENTS_FLUX}


def kind_of_base(base: Any, revision: str | None = None) -> str:
    """The backbone that reads a base: a pipeline folder, a hub id, or a loaded pipeline.

    Raises:
        InputError: the base is out of reach, or no diffusers pipeline.
        BaseMismatchError: a pipeline that no backbone reads.
    """
    if isinstance(base, str):
        index = read_json(base, "model_index.json", revision)
        if index is None:
            raise InputError(
                f"base {base!r} has no model_index.json: it is no diffusers pipeline; name the folder or hub id of one"
            )
        pipeline, parts = str(index.get("_class_name")), [v[-1] for v in index.values() if isinstance(v, list) and v]
    else:
        network = getattr(base, "transformer", None)
        pipeline, parts = type(base).__name__, [] if network is None else [type(network).__name__]
    known = PIPELINES | _third_party()
    if pipeline in known:
        return known[pipeline]
    for part in parts:
        if part in NETWORKS:
            return NETWORKS[part]
    told = f"base {base!r} is a {pipeline}" if isinstance(base, str) else f"the base given is a {pipeline}"
    raise BaseMismatchError(f"{told}, which no backbone reads; read are {', '.join(sorted(known))}")


def _third_party() -> dict[str, str]:
    classes = {point.name: backbone_class(point.name) for point in entry_points(group="dina_lrm.backbones")}
    return {
        pipeline.__name__: kind
        for kind, cls in classes.items()
        if (pipeline := getattr(cls, "pipeline_class", None)) is not None
    }


def kind_of_name(name: str) -> str | None:
    """The backbone that a repository's name speaks of: its own part first, then its owner's."""
    words = re.sub(r"[\s_]+", "-", name.lower())
    for part in (words.rstrip("/").rpartition("/")[2], words):
        for pattern, kind in _WORDS:
            if re.search(pattern, part):
                return kind
    return None


def kinds_of_layers(layers: Iterable[str]) -> tuple[str, ...]:
    """The backbones that have layers of such names; none if they tell nothing."""
    names = list(layers)
    for pattern, kinds in _LAYERS:
        if any(re.match(pattern, name) for name in names):
            return kinds
    return ()


def kind_of_checkpoint(name: str, layers: Iterable[str]) -> str | None:
    """The backbone of a checkpoint, without its base; None if nothing tells.

    Args:
        name: of the base, as the checkpoint has it.
        layers: that it adapts or brings; none of a head alone.

    Raises:
        BaseMismatchError: the two contradict each other.
    """
    named, shaped = kind_of_name(name), kinds_of_layers(layers)
    if named is not None:
        check_layers(named, layers, f"the base that the checkpoint names, {name!r},")
        return named
    return shaped[0] if len(shaped) == 1 else None


def untold(name: str, layers: Iterable[str]) -> CheckpointError:
    """What was tried to tell the kind of network, and failed."""
    shaped = kinds_of_layers(layers)
    alike = f"its layers are those of {called(shaped)} alike" if shaped else "it has no layers that would tell"
    return CheckpointError(
        f"what kind of network the checkpoint reads is not told: its base is {name!r}, which is no folder here and names "
        f"none of {', '.join(CALLED.values())}, and {alike}; give the base"
    )


def check_layers(kind: str, layers: Iterable[str], base: str) -> None:
    """A checkpoint's layers are such as its base has.

    Args:
        kind: of the base.
        layers: that the checkpoint adapts or brings; none of a head alone.
        base: how a message calls it.

    Raises:
        BaseMismatchError: they are another network's.
    """
    names = list(layers)
    shaped = kinds_of_layers(names)
    if shaped and kind in CALLED and kind not in shaped:
        raise BaseMismatchError(
            f"{base} is of {CALLED[kind]}, but the checkpoint has layers such as {names[0]!r}, which are those of "
            f"{called(shaped)}; give the base that the model was trained on"
        )


def called(kinds: Iterable[str]) -> str:
    """Families by their public names."""
    return " or ".join(CALLED.get(kind, kind) for kind in kinds)
