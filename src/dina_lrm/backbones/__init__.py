"""Pretrained diffusion networks as readers of noised states."""

from dina_lrm.backbones.base import AdapterConfig, Backbone, BackboneConfig
from dina_lrm.backbones.registry import available_backbones, load_backbone

__all__ = ["AdapterConfig", "Backbone", "BackboneConfig", "available_backbones", "load_backbone"]
