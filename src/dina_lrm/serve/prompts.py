"""Prompts that were encoded lately: trainers and people ask about one prompt many times."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from dina_lrm.types import Conditioning

Encode = Callable[[Sequence[str]], Awaitable[Conditioning]]
MAX_BYTES = 512 * 2**20  # a prompt of Stable Diffusion 3 takes 3 to 6 MB in float32


class PromptCache:
    """Encoded prompts by their text, those used last; a prompt that two ask for at once is encoded once.

    Attributes:
        max_bytes: that the cache holds at most, on the CPU.
        cut: those of them that are longer than the model reads.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.cut: set[str] = set()
        self._rows: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0
        self._coming: dict[str, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def count_known(self, prompts: Sequence[str]) -> int:
        """How many of some prompts need not be encoded."""
        return sum(prompt in self._rows for prompt in prompts)

    async def look_up(self, prompts: Sequence[str], encode: Encode) -> Conditioning:
        """Encoded prompts, in order.

        Args:
            prompts: one or more, repeats allowed.
            encode: those that are new.

        Returns:
            A row a prompt.
        """
        found: dict[str, Conditioning] = {}
        while missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]:
            known = [prompt for prompt in missing if prompt in self._rows]
            coming = [self._coming[prompt] for prompt in missing if prompt in self._coming]
            if known:
                found.update({prompt: self._get(prompt) for prompt in known})
            elif new := [prompt for prompt in missing if prompt not in self._coming]:
                found.update(await self._encode(new, encode))
            else:
                # Whoever encodes it may fail or be gone: then it is asked for again, in this one's own name.
                await asyncio.wait(coming)
        return Conditioning.cat([found[prompt] for prompt in prompts])

    async def _encode(self, prompts: Sequence[str], encode: Encode) -> dict[str, Conditioning]:
        done = asyncio.get_running_loop().create_future()
        self._coming.update(dict.fromkeys(prompts, done))
        try:
            encoded = await encode(prompts)
        finally:
            for prompt in prompts:
                del self._coming[prompt]
            done.set_result(None)
        # Rows of their own: a view would keep the whole tensor alive.
        rows = {prompt: encoded[i : i + 1].map(lambda t: t.clone()) for i, prompt in enumerate(prompts)}
        for prompt, row in rows.items():
            self._put(prompt, row)
        return rows

    def _get(self, prompt: str) -> Conditioning:
        self._rows.move_to_end(prompt)
        return self._rows[prompt]

    def _put(self, prompt: str, row: Conditioning) -> None:
        self._rows[prompt] = row
        self._bytes += _size(row)
        while self._bytes > self.max_bytes:
            forgotten, row = self._rows.popitem(last=False)
            self._bytes -= _size(row)
            self.cut.discard(forgotten)


def _size(row: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in vars(row).values() if tensor is not None)
