"""Pretrained diffusion networks as readers of noised states."""

from dina_lrm.backbones.base import AdapterConfig, Backbone, BackboneConfig
from dina_lrm.backbones.registry import available_backbones, load_backbone
from dina_lrm.backbones.space import check_latents

__all__ = ["AdapterConfig", "Backbone", "BackboneConfig", "available_backbones", "check_latents", "load_backbone"]
