"""What loading a backbone reads and holds, on a synthetic pipeline of Stable Diffusion 3.5 Medium's shape.

The folder is written first: random bfloat16, in shards, as the hub has it. Then each way of loading runs in a process of its
own, with the page cache emptied of the folder: bytes that came from the disk, the most memory held beyond what the
imports took, and the time.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET = 1.15
LAYERS, TAPS = 24, (4, 8, 12)
WAYS = ("kept part", "whole transformer", "whole pipeline")


def main(quick: bool = True) -> list[dict[str, Any]]:
    """Quick: a third of the width and small text encoders, 1 GB. Else the real sizes with T5-XXL, 17 GB of disk."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = write_pipeline(Path(folder) / "pipeline", quick)
        found = {way: _measure(way, pipeline) for way in WAYS}
    whole = found["whole pipeline"]
    kept = found["kept part"]["bytes held"]
    return [
        {
            "what": way,
            "GB held": measured["bytes held"] / 1e9,
            "GB read": measured["bytes read"] / 1e9,
            "peak GB": measured["peak bytes"] / 1e9,
            "read / kept": measured["bytes read"] / kept,
            "peak / kept": measured["peak bytes"] / kept,
            "target": TARGET if way == "kept part" else None,
            "seconds": measured["seconds"],
            "times faster than the whole": whole["seconds"] / measured["seconds"],
        }
        for way, measured in found.items()
    ]


def write_pipeline(folder: Path, quick: bool) -> Path:
    """A `StableDiffusion3Pipeline` of random weights; tokenizers and scheduler are the embedded world's."""
    import torch
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    from dina_lrm.worlds.locate import emoji_root

    shutil.copytree(emoji_root() / "pipeline", folder, ignore=lambda at, names: _large(Path(at), names))
    heads, depth = (8, 2) if quick else (24, 24)
    block = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    clip = dict(hidden_act="quick_gelu", vocab_size=49408, max_position_embeddings=77)
    parts: dict[str, Any] = {
        "transformer": lambda: SD3Transformer2DModel(
            num_layers=LAYERS,
            num_attention_heads=heads,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=64 * heads,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ),
        "text_encoder": lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(**clip, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, projection_dim=768)
        ),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(
            CLIPTextConfig(
                **clip,
                hidden_size=1280,
                intermediate_size=5120,
                num_attention_heads=20,
                num_hidden_layers=2 if quick else 32,
                projection_dim=1280,
            )
        ),
        "text_encoder_3": lambda: T5EncoderModel(
            T5Config(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=depth, feed_forward_proj="gated-gelu")
        ),
        "vae": lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }
    for name, build in parts.items():
        with torch.device("meta"):
            model = build()
        model = model.to(torch.bfloat16).to_empty(device="cpu")
        with torch.no_grad():
            for tensor in model.state_dict().values():
                flat = tensor.view(-1)
                for start in range(0, len(flat), len(block)):
                    flat[start : start + len(block)] = block[: len(flat) - start]
        model.save_pretrained(folder / name, max_shard_size="1GB")
        del model
    return folder


def _large(at: Path, names: list[str]) -> list[str]:
    """What is not taken over from the embedded world: every network."""
    return [name for name in names if at.name == "pipeline" and name.startswith(("transformer", "text_encoder", "vae"))]


def _measure(way: str, pipeline: Path) -> dict[str, float]:
    for path in pipeline.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-m", "benchmarks.loading", way, str(pipeline)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _load(way: str, pipeline: str) -> list[Any]:
    """The networks that a way of loading leaves in memory."""
    import torch

    if way == "kept part":
        from dina_lrm.backbones import BackboneConfig, load_backbone

        config = BackboneConfig(image_taps=TAPS, text_taps=TAPS, adapter=None)
        return [load_backbone(config, pipeline, dtype=torch.bfloat16).network]
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    if way == "whole transformer":
        return [SD3Transformer2DModel.from_pretrained(pipeline, subfolder="transformer", dtype=torch.bfloat16)]
    loaded = StableDiffusion3Pipeline.from_pretrained(pipeline, dtype=torch.bfloat16)
    return [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]


def _in_own_process(way: str, pipeline: str) -> None:
    import diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3  # noqa: F401
    import transformers.models.t5.modeling_t5  # noqa: F401 - imports are not what is measured

    import dina_lrm.backbones.sd3  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before, read = resident(), _bytes_read()
    started = time.perf_counter()
    networks = _load(way, pipeline)
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    touched = sum(float(tensor.flatten()[:: 4096 // tensor.element_size()].sum()) for tensor in tensors)
    seconds = time.perf_counter() - started
    told = {
        "bytes held": sum(tensor.nbytes for tensor in tensors),
        "bytes read": _bytes_read() - read,
        "peak bytes": _status("VmHWM") - before,
        "seconds": seconds,
        "checksum": touched,
    }
    print(json.dumps(told))


def resident() -> int:
    """Bytes of this process in memory, those of mapped files too, without what the C library keeps for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def _bytes_read() -> int:
    """Bytes that came from the disk, page faults included."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


if __name__ == "__main__":
    _in_own_process(*sys.argv[1:])
