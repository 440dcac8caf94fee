"""Does a stored model fit its own configuration, and the base it is to stand on? Told before any weight of a base is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dina_lrm.backbones import Backbone, BackboneConfig
from dina_lrm.backbones.base import load_strict
from dina_lrm.backbones.registry import backbone_class
from dina_lrm.backbones.sharing import unwrapped
from dina_lrm.checkpoint.adapters import Rule, layers_of
from dina_lrm.checkpoint.families import called, kinds_of_layers
from dina_lrm.checkpoint.format import ModelConfig
from dina_lrm.errors import BaseMismatchError, CheckpointError
from dina_lrm.heads import HeadConfig
from dina_lrm.heads.mean_pool import MeanPoolHeadConfig
from dina_lrm.heads.query import QueryHeadConfig
from dina_lrm.types import FeatureShape

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sketch:
    """A base as its configuration draws it: names and shapes, no weights.

    Attributes:
        backbone: on the meta device, cut, without an adapter.
        whole: names of all tensors of the uncut network.
        base: how a message calls it.
    """

    backbone: Backbone
    whole: frozenset[str]
    base: str


def sketch(config: BackboneConfig, base: Any, revision: str | None = None) -> Sketch | None:
    """Draw a base from its configuration; None of a backbone that builds its network in its own way.

    Raises:
        InputError: the base is out of reach, or no diffusers pipeline.
        BaseMismatchError: a pipeline of another kind.
        ConfigError: taps that the network does not have.
    """
    from dina_lrm.backbones.pipeline import PipelineBackbone, name_of  # diffusers: not for who asks what a folder is

    cls = backbone_class(config.kind)
    if not issubclass(cls, PipelineBackbone):
        return None
    if isinstance(base, str):
        name, sizes = base, cls.read_sizes(base, revision)
    else:
        name, sizes = name_of(base), dict(cls.network_of(base).config)
    bare = config.model_copy(update={"adapter": None})
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network: Any = unwrapped(cls.network_class.from_config(sizes))
        whole = frozenset(network.state_dict())
        cls.check_taps(bare, network.config)
        cls.cut(network, bare)
        return Sketch(
            cls(bare, network.eval(), base, name, revision), whole, f"{name!r} ({cls.network_class.__name__})"
        )


def check_head(config: ModelConfig, head: dict[str, Tensor], what: str = "head") -> FeatureShape | None:
    """Every tensor of the head that the configuration asks for is there, in its shape and finite, and no other.

    Args:
        config: of the model.
        head: by our names.
        what: how a message calls it.

    Returns:
        What features the head reads; None if its tensors do not tell.

    Raises:
        CheckpointError: naming the first tensor that is missing, extra, misshapen or not finite.
    """
    taps = config.backbone.image_taps, config.backbone.text_taps
    shape = head_shape(config.head, head, len(taps[0]), len(taps[1]), what)
    if shape is not None:
        with torch.device("meta"):
            blank = config.head.build(shape)
        load_strict(dict(blank.state_dict(keep_vars=True)), head, what)
    return shape


def head_shape(config: HeadConfig, head: Tensors, image_taps: int, text_taps: int, what: str) -> FeatureShape | None:
    """What features a head reads, told from its tensors; None of a kind, or of joined scales, that tensors do not tell.

    Raises:
        CheckpointError: it reads another number of taps, or is no head of that kind.
    """
    if isinstance(config, QueryHeadConfig):
        image, text, temb = "image_taps.{}.", "text_taps.{}.", r".*\.film\.0\.weight"
    elif isinstance(config, MeanPoolHeadConfig):
        image, text, temb = "norms_image.{}.", "norms_text.{}.", r"time\.weight"
    else:
        return None
    if "merge_image.1.weight" in head or "merge_image.1.bias" in head:
        return None
    for stream, stem, expected in (("image", image, image_taps), ("text", text, text_taps)):
        found = len({m[1] for name in head if (m := re.match(stem.format(r"(\d+)"), name))})
        if found != expected:
            raise CheckpointError(
                f"the configuration reads {expected} {stream} taps, but {what} has layers for {found} "
                f"({stem.format('N')}*); they do not belong together"
            )
    widths = [value.shape[-1] for name, value in head.items() if name in ("norm_feed_forward.weight", "queries")]
    conditions = [value.shape[-1] for name, value in head.items() if re.fullmatch(temb, name) and value.ndim == 2]
    if not conditions or (not widths and isinstance(config, QueryHeadConfig)):
        raise CheckpointError(
            f"{what} lacks most of a {config.kind} head: its widths cannot be told; is the file complete?"
        )
    width = widths[0] if widths else 0

    def read_by(stem: str) -> int:
        own = [head[name].shape for name in (f"{stem}project_in.weight", f"{stem}weight") if name in head]
        return own[0][-1] if own and own[0] else width

    image_widths = tuple(read_by(image.format(i)) for i in range(image_taps))
    text_widths = tuple(read_by(text.format(i)) for i in range(text_taps))
    return FeatureShape(image_widths, (1,) * image_taps, text_widths, conditions[0])


def check_head_fits(shape: FeatureShape | None, drawn: Sketch) -> None:
    """The head reads what the base gives.

    Raises:
        BaseMismatchError: other widths.
    """
    given = drawn.backbone.feature_shape
    if shape is None or shape == given:
        return
    for what, needed, found in (
        ("image tokens", shape.image_widths, given.image_widths),
        ("text tokens", shape.text_widths, given.text_widths),
        ("a time embedding", (shape.temb_width,), (given.temb_width,)),
        ("image tokens of scales", shape.image_scales, given.image_scales),
    ):
        if needed != found:
            raise BaseMismatchError(
                f"the head reads {what} of width {_numbers(needed)}, but base {drawn.base} gives {_numbers(found)}; "
                "give the base that the model was trained on"
            )


def fitting_adapter(tensors: Tensors, drawn: Sketch, config: BackboneConfig, adapts: Rule | None) -> dict[str, Tensor]:
    """The adapter's tensors for the layers that are kept: all of these, and none that the network does not have.

    Those of blocks after the last tap change nothing and are left out.

    Raises:
        BaseMismatchError: the adapter is for another network.
        CheckpointError: it does not cover a layer that it is said to be on.
    """
    layers = layers_of(tensors)
    strange = [layer for layer in layers if f"{layer}.weight" not in drawn.whole]
    if strange:
        kinds = kinds_of_layers(layers)
        theirs = f", as networks of {called(kinds)} do" if kinds and config.kind not in kinds else ""
        raise BaseMismatchError(
            f"the adapter is for another network: it names layer {strange[0]!r}{theirs}; base {drawn.base} has none such"
        )
    assert config.adapter is not None
    present = dict(drawn.backbone.network.named_modules())
    drawn.backbone.add_adapter(config.adapter)
    own = drawn.backbone.adapter_state()
    named = {name for name, layer in present.items() if adapts and isinstance(layer, nn.Linear) and adapts(name)}
    uncovered = sorted(named - set(layers))
    if uncovered:
        raise CheckpointError(
            f"adapter lacks {2 * len(uncovered)} tensors, the first is '{uncovered[0]}.lora_A.weight'; is the file complete?"
        )
    kept = {name: value for name, value in tensors.items() if name.partition(".lora_")[0] in present}
    for name in sorted(kept.keys() & own.keys()):
        if kept[name].shape != own[name].shape:
            raise BaseMismatchError(
                f"adapter tensor {name!r} is {list(kept[name].shape)}, but base {drawn.base} needs {list(own[name].shape)}; "
                "give the base that the model was trained on"
            )
    load_strict(own, kept, "adapter")
    return kept


def fitting_network(tensors: Tensors, drawn: Sketch) -> dict[str, Tensor]:
    """The tensors of the kept network: all of these; those of dropped parts of the same network are left out.

    Raises:
        BaseMismatchError: tensors of another network, or of other sizes.
        CheckpointError: some are missing.
    """
    own = drawn.backbone.network_state()
    strange = sorted(tensors.keys() - drawn.whole)
    if strange:
        kinds = kinds_of_layers(tensors)
        theirs = f"; its layers are those of {called(kinds)}" if kinds else ""
        raise BaseMismatchError(
            f"network has {len(strange)} tensors that fit nowhere in base {drawn.base}, the first is {strange[0]!r}{theirs}"
        )
    kept = {name: value for name, value in tensors.items() if name in own}
    for name, value in kept.items():
        if value.shape != own[name].shape:
            raise BaseMismatchError(
                f"network tensor {name!r} is {list(value.shape)}, but base {drawn.base} needs {list(own[name].shape)}; "
                "give the base that the model was trained on"
            )
    missing = sorted(own.keys() - kept.keys())
    if missing:
        raise CheckpointError(
            f"network lacks {len(missing)} tensors, the first is {missing[0]!r}; is the file complete?"
        )
    return kept


def _numbers(values: Iterable[int]) -> str:
    each = list(values)
    return str(each[0]) if len(set(each)) == 1 else ", ".join(map(str, each))
