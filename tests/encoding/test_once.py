from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dina_lrm.backbones import BackboneConfig
from dina_lrm.encoding import encode_images, encode_prompts_once
from dina_lrm.errors import DataError, ImageError, ValueRangeError
from tests.training.fake import FakeBackbone, load_fake

CONFIG = BackboneConfig(image_taps=(1,), text_taps=(1,), adapter=None)


@pytest.fixture
def backbone() -> FakeBackbone:
    return load_fake(CONFIG, "fake")


def test_each_text_is_encoded_once_and_found_again(backbone: FakeBackbone) -> None:
    table = encode_prompts_once(backbone, ["b", "a", "b", "c"], batch_size=2)
    assert backbone.asked == ["a", "b", "c"]
    assert set(table) == {"a", "b", "c"}
    assert len(table) == 3
    looked = table.lookup(["c", "a", "a"])
    direct = backbone.encode_prompts(["c", "a", "a"])
    assert torch.equal(looked.prompt_embeds, direct.prompt_embeds)
    assert torch.equal(table["b"].pooled_prompt_embeds, backbone.encode_prompts(["b"]).pooled_prompt_embeds)


def test_the_cache_answers_for_the_encoders(backbone: FakeBackbone, tmp_path: Path) -> None:
    first = encode_prompts_once(backbone, ["x", "y"], tmp_path)
    backbone.drop_encoders()
    again = encode_prompts_once(backbone, ["y", "x", "x"], tmp_path)
    assert torch.equal(first.conditioning.prompt_embeds, again.conditioning.prompt_embeds)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_texts_bases_and_lengths_have_other_tables(backbone: FakeBackbone, tmp_path: Path) -> None:
    encode_prompts_once(backbone, ["x"], tmp_path)
    encode_prompts_once(backbone, ["z"], tmp_path)
    longer = load_fake(CONFIG.model_copy(update={"max_sequence_length": 7}), "fake")
    encode_prompts_once(longer, ["x"], tmp_path)
    encode_prompts_once(load_fake(CONFIG, "fake", random_seed=1), ["x"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_other_text_encoders_under_one_name_have_other_tables(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "text_encoder").mkdir(parents=True)
    for turn in range(2):
        (base / "text_encoder" / "model.safetensors").write_bytes(bytes(turn + 1))
        encode_prompts_once(load_fake(CONFIG, str(base)), ["x"], tmp_path / "cache")
        encode_prompts_once(load_fake(CONFIG, str(base)), ["x"], tmp_path / "cache")
    pinned = load_fake(CONFIG, str(base))
    pinned.revision = "abc"
    encode_prompts_once(pinned, ["x"], tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_torn_cache_is_made_again(backbone: FakeBackbone, tmp_path: Path) -> None:
    # Cloned: what a table holds is mapped from the very file that is torn here.
    first = encode_prompts_once(backbone, ["x"], tmp_path).conditioning.map(torch.clone)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    again = encode_prompts_once(backbone, ["x"], tmp_path)
    assert torch.equal(first.prompt_embeds, again.conditioning.prompt_embeds)


def test_unknown_and_missing_prompts_are_told(backbone: FakeBackbone) -> None:
    with pytest.raises(DataError, match="'b' was not encoded"):
        encode_prompts_once(backbone, ["a"]).lookup(["a", "b"])
    with pytest.raises(ValueRangeError, match="at least one prompt"):
        encode_prompts_once(backbone, [])


def test_pictures_become_latents_of_one_size(backbone: FakeBackbone, tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate([(32, 32), (64, 48), (10, 20)]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", size, (i * 100, 0, 0)).save(paths[-1])
    latents = encode_images(backbone, paths, batch_size=2)
    assert latents.shape == (3, 4, 4, 4)
    assert latents[2, 0].mean() == pytest.approx(200 / 255)
    assert encode_images(backbone, paths[:1], side=16).shape == (1, 4, 2, 2)
    with pytest.raises(ValueRangeError, match="at least one picture"):
        encode_images(backbone, [])


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_what_is_no_whole_picture_is_refused(backbone: FakeBackbone, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.png"
    if content is None:
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png' cannot be read"):
        encode_images(backbone, [path])
