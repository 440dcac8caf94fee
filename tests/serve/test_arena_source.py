"""Candidates of either kind of folder, and folders that are neither."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dina_lrm.data import Candidate, Origin, PreferencePair, write_preference_data
from dina_lrm.errors import DataError
from dina_lrm.serve.arena import open_source
from tests.serve.arena_folders import name_of, picture, picture_folder, preference_folder, prompt_of, webp


def opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def test_a_preference_folder_shows_its_previews_and_gives_its_latents(tmp_path: Path) -> None:
    data = preference_folder(tmp_path / "things")
    source = open_source(tmp_path / "things")
    assert source.name == "things" and len(source.by_prompt) == 12
    assert source.by_prompt[prompt_of(1)] == tuple(name_of(1, c) for c in range(4))
    assert source.prompt_of[name_of(3, 2)] == prompt_of(3)
    assert source.shown(name_of(1, 2)) == source.preview(name_of(1, 2)) == webp(picture(1, 2))
    latents = source.latents([name_of(0, 3), name_of(1, 0)])
    assert latents is not None and torch.equal(latents, data.latents([3, 4]))
    assert source.oracle_utility(name_of(0, 3)) == -3.0
    origin = source.origin(name_of(0, 3))
    assert origin is not None and origin.detail == "number 3"
    assert source.backbone["latent_shape"] == [4, 2, 2]
    assert [one.size for one in source.pictures([name_of(0, 0)])] == [(32, 32)]


def test_candidates_without_a_picture_stay_out(tmp_path: Path) -> None:
    preference_folder(tmp_path / "things", missing_previews=1)
    assert open_source(tmp_path / "things").by_prompt[prompt_of(0)] == tuple(name_of(0, c) for c in range(3))


def test_a_candidate_without_a_preview_borrows_one_of_the_same_latents(tmp_path: Path) -> None:
    first, other = webp(picture(0, 0)), webp(picture(0, 1))
    candidates = [
        Candidate("a", "one", 0, preview=first),
        Candidate("b", "one", 1, preview=other),
        Candidate("a-again", "two", 0),
        Candidate("b-again", "two", 1),
    ]
    pairs = {"test": [PreferencePair("one", "a", "b", 1, 0)]}
    write_preference_data(tmp_path / "reasked", candidates, torch.zeros(2, 4, 2, 2), pairs, "reasked")
    source = open_source(tmp_path / "reasked")
    assert source.shown("a-again") == first and source.shown("b-again") == other


def test_a_split_takes_its_prompts_alone(tmp_path: Path) -> None:
    preference_folder(tmp_path / "things")
    assert list(open_source(tmp_path / "things", "test").by_prompt) == [prompt_of(0)]


def test_pictures_of_a_persons_own(tmp_path: Path) -> None:
    source = open_source(picture_folder(tmp_path / "own"))
    assert list(source.by_prompt) == [prompt_of(number) for number in range(3)]
    candidate = source.by_prompt[prompt_of(0)][1]
    assert candidate.endswith("/0-1.png") and source.latents([candidate]) is None
    assert source.pictures([candidate])[0].getpixel((3, 3)) == picture(0, 1).getpixel((3, 3))
    origin = source.origin(candidate)
    assert origin is not None and origin.kind == "upload" and origin.detail == "0-1.png"


def test_what_voters_see_tells_nothing_but_the_picture(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "own")
    exif = Image.Exif()
    exif[0x010E] = "made by the better model"
    picture(0, 0, side=2000).save(folder / "0-0.png", exif=exif)
    source = open_source(folder)
    shown = opened(source.shown(source.by_prompt[prompt_of(0)][0]))
    assert shown.format == "WEBP" and shown.size == (1024, 1024) and not shown.getexif()
    assert opened(source.preview(source.by_prompt[prompt_of(0)][0])).size == (256, 256)


def test_lines_may_move_without_losing_a_candidate(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "own")
    before = open_source(folder).by_prompt
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    (folder / "prompts.jsonl").write_text("\n".join([*reversed(lines), "", lines[0]]))
    assert dict(open_source(folder).by_prompt) == dict(before)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1 is not JSON"),
        ('["a"]', "must be"),
        ('{"prompt": "a"}', "must be"),
        ('{"prompt": " ", "images": ["0-0.png", "0-1.png"]}', "must be"),
        ('{"prompt": "a", "images": "0-0.png"}', "must be"),
        ('{"prompt": "a", "images": [1, 2]}', "must be"),
        ('{"prompt": "a", "images": ["0-0.png"]}', "no prompt with two pictures"),
        ('{"prompt": "a", "images": ["0-0.png", "gone.png"]}', "'gone.png', which is no picture"),
        ('{"prompt": "a", "images": ["0-0.png", "prompts.jsonl"]}', "'prompts.jsonl', which is no picture"),
        ('{"prompt": "a", "images": ["0-0.png", "../secret.png"]}', "lies outside"),
    ],
)
def test_a_line_that_says_something_else_is_refused(tmp_path: Path, line: str, told: str) -> None:
    folder = picture_folder(tmp_path / "own")
    picture(0, 0).save(tmp_path / "secret.png")
    (folder / "prompts.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=told):
        open_source(folder)


def test_a_path_that_is_absolute_is_refused(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "own")
    picture(0, 0).save(tmp_path / "secret.png")
    line = {"prompt": "a", "images": ["0-0.png", str(tmp_path / "secret.png")]}
    (folder / "prompts.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match="lies outside"):
        open_source(folder)


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no preference folder.*or put prompts\.jsonl there"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"give the folder that it lies in, .*own$"):
        open_source(picture_folder(tmp_path / "own") / "prompts.jsonl")
    with pytest.raises(DataError, match="no splits"):
        open_source(picture_folder(tmp_path / "own"), "test")
    (tmp_path / "own" / "prompts.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        open_source(tmp_path / "own")


def test_a_candidate_named_by_where_its_file_lay_is_told_by_another_name(tmp_path: Path) -> None:
    files = [f"/data/{folder}/fox.png" for folder in "ab"]
    preview = webp(picture(0, 0))
    candidates = [
        Candidate(name, "a fox", row, Origin("picture", detail=name), preview) for row, name in enumerate(files)
    ]
    pairs = {"test": [PreferencePair("a fox", *files, 1, 0)]}
    write_preference_data(tmp_path / "foxes", candidates, torch.zeros(2, 4, 2, 2), pairs, "foxes")
    source = open_source(tmp_path / "foxes")
    told = {source.public_name(name) for name in files}
    assert len(told) == 2 and all(name.endswith("-fox.png") and "/" not in name for name in told)
    assert [source.origin(name) for name in files] == [Origin("picture", detail="fox.png")] * 2
