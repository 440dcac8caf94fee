"""Small tokenizers of the classes that the real pipelines have. Every byte is known: no prompt is out of vocabulary."""

from __future__ import annotations

from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

CLIP_VOCABULARY = 514
CLIP_BOS, CLIP_EOS = 512, 513
T5_VOCABULARY = 103

# Of one letter each in T5's alphabet, at one price: a word falls into letters.
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()[]{}<>|-_+*/=&%$#@~^`\\"

# What Qwen-Image puts around every prompt: it then drops the first 34 tokens, so each of these words must be one token.
_QWEN_WORDS = ["system", "Describe", "user", "assistant"]
_QWEN_WORDS += ["Ġthe", "Ġimage", "Ġby", "Ġdetailing", "Ġcolor", "Ġshape", "Ġsize", "Ġtexture", "Ġquantity", "Ġtext"]
_QWEN_WORDS += ["Ġspatial", "Ġrelationships", "Ġof", "Ġobjects", "Ġand", "Ġbackground"]
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen3's own, less what it does with tools and with earlier turns.
_QWEN_CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """The second text encoder of SD3 and SDXL pads with the exclamation mark, token 0."""
    letters = _byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def t5_tokenizer(max_length: int = 512) -> T5TokenizerFast:
    """Of UMT5 too, whose pipelines name the same class."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in _LETTERS]
    spare = [(f"<spare_{index}>", -20.0) for index in range(T5_VOCABULARY - len(special) - len(letters))]
    return T5TokenizerFast(vocab=[*special, *letters, *spare], extra_ids=0, model_max_length=max_length)


def qwen_tokenizer() -> Qwen2Tokenizer:
    merges = _prefix_merges(_QWEN_WORDS)
    pieces = [*_byte_letters(), *(left + right for left, right in merges), *_QWEN_SPECIAL]
    return Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_QWEN_CHAT,
        model_max_length=131072,
    )


def _prefix_merges(words: list[str]) -> list[tuple[str, str]]:
    """Each word grows from its left; a set that remembers the order, for words that begin alike."""
    merges = {(word[:end], word[end]): None for word in words for end in range(1, len(word))}
    return list(merges)


def _byte_letters() -> list[str]:
    """GPT-2's 256 letters for the 256 bytes, in the order of the published vocabularies: the exclamation mark is first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]
