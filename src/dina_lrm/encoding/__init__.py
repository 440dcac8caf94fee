"""Prompts and pictures to what a backbone reads, each encoded once."""

from dina_lrm.encoding.once import PromptTable, encode_images, encode_prompts_once
from dina_lrm.encoding.preferences import EncodingReport, EncodingSettings, encode_preferences

__all__ = [
    "EncodingReport",
    "EncodingSettings",
    "PromptTable",
    "encode_images",
    "encode_preferences",
    "encode_prompts_once",
]
