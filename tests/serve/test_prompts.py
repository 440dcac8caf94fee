"""Prompts are encoded once, as long as there is room for them."""

from __future__ import annotations

import asyncio

import pytest
import torch

from dina_lrm.errors import WorkError
from dina_lrm.serve.prompts import PromptCache
from dina_lrm.types import Conditioning
from tests.serve.fake import in_loop, settle

ROW_BYTES = 4 * 2 * 4 + 8 * 4


class Encoder:
    """Says the length of each prompt, when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = 0

    async def __call__(self, prompts) -> Conditioning:
        self.asked.append(list(prompts))
        await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise WorkError("no encoder today")
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return Conditioning(lengths.view(-1, 1, 1).repeat(1, 4, 2), lengths.view(-1, 1).repeat(1, 8))


def lengths(found: Conditioning) -> list[float]:
    assert found.pooled_prompt_embeds is not None
    return found.pooled_prompt_embeds[:, 0].tolist()


@in_loop
async def test_only_new_prompts_are_encoded_and_the_order_is_the_askers():
    cache, encode = PromptCache(), Encoder()
    assert lengths(await cache.look_up(["bb", "a", "bb"], encode)) == [2, 1, 2]
    assert lengths(await cache.look_up(["ccc", "a"], encode)) == [3, 1]
    assert encode.asked == [["bb", "a"], ["ccc"]]
    assert cache.count_known(["a", "bb", "dddd", "a"]) == 3


@in_loop
async def test_those_used_longest_ago_make_room():
    cache, encode = PromptCache(max_bytes=2 * ROW_BYTES), Encoder()
    await cache.look_up(["a", "bb"], encode)
    await cache.look_up(["a"], encode)
    await cache.look_up(["ccc"], encode)
    assert len(cache) == 2 and cache.count_known(["a", "ccc"]) == 2
    assert lengths(await cache.look_up(["a", "bb", "ccc", "dddd"], encode)) == [1, 2, 3, 4]


@in_loop
async def test_a_prompt_too_large_for_the_cache_is_encoded_all_the_same():
    cache, encode = PromptCache(max_bytes=1), Encoder()
    assert lengths(await cache.look_up(["a", "bb"], encode)) == [1, 2]
    assert len(cache) == 0


@in_loop
async def test_two_who_ask_at_once_share_one_encoding():
    cache, encode = PromptCache(), Encoder()
    encode.gate.clear()
    first = asyncio.create_task(cache.look_up(["a", "bb"], encode))
    await settle(lambda: len(encode.asked) == 1)
    second = asyncio.create_task(cache.look_up(["bb", "ccc"], encode))
    await settle(lambda: len(encode.asked) == 2)
    encode.gate.set()
    assert [lengths(found) for found in await asyncio.gather(first, second)] == [[1, 2], [2, 3]]
    assert encode.asked == [["a", "bb"], ["ccc"]]


@pytest.mark.parametrize("end", ["fails", "hangs up"])
@in_loop
async def test_who_waited_for_one_that_fails_asks_again(end):
    cache, encode = PromptCache(), Encoder()
    encode.gate.clear()
    first = asyncio.create_task(cache.look_up(["a"], encode))
    await settle(lambda: len(encode.asked) == 1)
    second = asyncio.create_task(cache.look_up(["a"], encode))
    await asyncio.sleep(0)
    if end == "fails":
        encode.fails = 1
    else:
        first.cancel()
    encode.gate.set()
    assert lengths(await second) == [1]
    assert encode.asked == [["a"], ["a"]]
    with pytest.raises(WorkError if end == "fails" else asyncio.CancelledError):
        await first
