# SPDX-License-Identifier: MIT
"""Two models with random weights, for vLLM to serve in the machine.

``opt-125m`` has the true shape of facebook/opt-125m; ``qwen2.5-3b-instruct`` has the
architecture of Qwen2.5-3B-Instruct and a shape that suits a CPU. What they say is garbage, but
at temperature 0 it is the same garbage each time, which is what a check of a restored server
wants. Everything is made here from a fixed seed, with the standard library alone: no hub, no
torch, and the same bytes on every host.
"""

import itertools
import json
import math
import random
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import process

SEED = 125
MERGES = 700
WORDS = 600
# Weights are written in pieces of this size, so that no tensor has to fit in memory at once.
PIECE = 1 << 22

# bfloat16 is a sign, eight bits of exponent and seven of mantissa, low byte first. With the
# high byte fixed but for the sign, a random low byte gives values spread evenly over two
# octaves: a standard deviation of 0.019 for SMALL, which is how both models are initialised,
# a quarter of that for TINY and four times that for LARGE.
TINY = 0x3B
SMALL = 0x3C
LARGE = 0x3D
ZERO = b"\x00\x00"
ONE = b"\x80\x3f"

END = "<|endoftext|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: random rows, or one value everywhere.

    Random rows come in ranges: how many, and with which high byte. Rows after the last range are
    zero.
    """

    name: str
    shape: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...] = ()
    fill: bytes = ZERO

    @property
    def size(self) -> int:
        return 2 * math.prod(self.shape)


@dataclass(frozen=True)
class Model:
    """A model's folder, before it is written."""

    folder: str
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    specials: tuple[str, ...]
    tokenizer: Mapping[str, Any]

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True)
class Shape:
    """Of a Qwen2: `shared` is the number of heads of keys and values."""

    width: int
    inner: int
    layers: int
    heads: int
    shared: int
    vocabulary: int


QWEN_SMALL = Shape(width=512, inner=1408, layers=8, heads=8, shared=2, vocabulary=1024)
QWEN_3B = Shape(width=2048, inner=11008, layers=36, heads=16, shared=2, vocabulary=151936)


def recipe() -> str:
    """What the weights depend on; whoever caches them hashes it."""
    return Path(__file__).read_text(encoding="utf-8")


def make_full(target: Path) -> None:
    """The same with Qwen2.5-3B-Instruct in its true shape: 6 GB, for hosts with a GPU."""
    merges = _train(_text())
    _make(target, (_opt(merges), _qwen(merges, QWEN_3B)), merges)


def make(target: Path, downloads: Path) -> None:
    """Write each model to its folder below ``target``.

    ``downloads`` is there because every part of the machine is made by a function of these two
    arguments; nothing is downloaded for this one.
    """
    del downloads
    merges = _train(_text())
    _make(target, (_opt(merges), _qwen(merges, QWEN_SMALL)), merges)


def _make(target: Path, models: tuple[Model, ...], merges: list[tuple[str, str]]) -> None:
    for model in models:
        with process.step(f"weights: {model.folder}, {model.size / 1e6:.0f} MB"):
            folder = target / model.folder
            folder.mkdir(parents=True)
            _write(folder, model, merges)


# --- tokenizer ---------------------------------------------------------------------------------


def _text() -> list[str]:
    """Words to train a tokenizer on, in the order and with the frequency of a long text."""
    chance = random.Random(SEED)
    onsets = [*"bcdfghlmnprstvw", *("bl", "br", "ch", "fl", "gr", "pl", "sh", "st", "th", "tr")]
    vowels = [*"aeiou", "ai", "ea", "ee", "oo", "ou"]
    codas = [*"nrstlm", "", "", "nd", "st", "ng"]
    words = [
        "".join(
            chance.choice(onsets) + chance.choice(vowels) + chance.choice(codas)
            for _ in range(chance.choice((1, 1, 2, 2, 3)))
        )
        for _ in range(WORDS)
    ]
    # Common words are much more common than rare ones, as in any language.
    return chance.choices(words, [1 / (rank + 1) for rank in range(WORDS)], k=20 * WORDS)


def _train(words: list[str]) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding: each time the most frequent pair becomes one token."""
    # Byte-level tokenizers write a space as this letter, in front of the word it begins.
    counts = Counter("Ġ" + word for word in words)
    spelt: dict[str, list[str]] = {word: list(word) for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelt.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            break
        # Ties go by spelling, so that the order does not hang on how a dict was filled.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in spelt.items():
            spelt[word] = _merged(pieces, best)
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        # A piece that was just merged can't be half of the next pair: it is a longer token.
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def _bytes_as_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def _fragments(specials: tuple[str, ...], merges: list[tuple[str, str]]) -> list[str]:
    """The tokens that no word begins with: special ones, bytes and ends of words."""
    ends = [token for pair in merges if not (token := "".join(pair)).startswith("Ġ")]
    return list(dict.fromkeys([*specials, *_bytes_as_letters(), *ends]))


def _vocabulary(specials: tuple[str, ...], merges: list[tuple[str, str]]) -> dict[str, int]:
    # The special tokens come first: the ids in the models' configs are theirs.
    tokens = [*_fragments(specials, merges), *("".join(pair) for pair in merges)]
    return {token: place for place, token in enumerate(dict.fromkeys(tokens))}


def _tokenizer(specials: tuple[str, ...], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """tokenizer.json, as Hugging Face's tokenizers reads it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": place,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for place, token in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": _vocabulary(specials, merges),
            "merges": [" ".join(pair) for pair in merges],
        },
    }


# --- models ------------------------------------------------------------------------------------


def _opt(merges: list[tuple[str, str]]) -> Model:
    specials = ("<s>", "<pad>", "</s>", "<unk>")
    width, inner, layers, vocabulary, positions = 768, 3072, 12, 50272, 2048
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "eos_token_id": 2,
        "ffn_dim": inner,
        "hidden_size": width,
        "init_std": 0.02,
        "layerdrop": 0.0,
        "max_position_embeddings": positions,
        "num_attention_heads": 12,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "prefix": "</s>",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocabulary,
        "word_embed_proj_dim": width,
    }
    stem = "model.decoder"
    tensors = [
        _embedding(f"{stem}.embed_tokens.weight", vocabulary, width, specials, merges),
        _random(f"{stem}.embed_positions.weight", (positions + 2, width), SMALL),
        *_norm(f"{stem}.final_layer_norm", width),
    ]
    for layer in range(layers):
        here = f"{stem}.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors += _linear(f"{here}.self_attn.{name}", width, width)
        tensors += _norm(f"{here}.self_attn_layer_norm", width)
        tensors += _linear(f"{here}.fc1", width, inner)
        tensors += _linear(f"{here}.fc2", inner, width)
        tensors += _norm(f"{here}.final_layer_norm", width)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": positions,
    }
    return Model("opt-125m", config, tuple(tensors), specials, tokenizer)


def _qwen(merges: list[tuple[str, str]], shape: Shape) -> Model:
    specials = (END, "<|im_start|>", "<|im_end|>")
    width, inner, layers = shape.width, shape.inner, shape.layers
    heads, shared, vocabulary = shape.heads, shape.shared, shape.vocabulary
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "max_position_embeddings": 32768,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": shared,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    narrow = width // heads * shared
    tensors = [_embedding("model.embed_tokens.weight", vocabulary, width, specials, merges)]
    for layer in range(layers):
        here = f"model.layers.{layer}"
        tensors += _linear(f"{here}.self_attn.q_proj", width, width)
        tensors += _linear(f"{here}.self_attn.k_proj", width, narrow)
        tensors += _linear(f"{here}.self_attn.v_proj", width, narrow)
        tensors += _linear(f"{here}.self_attn.o_proj", width, width, bias=False)
        tensors += _linear(f"{here}.mlp.gate_proj", width, inner, bias=False)
        tensors += _linear(f"{here}.mlp.up_proj", width, inner, bias=False)
        tensors += _linear(f"{here}.mlp.down_proj", inner, width, bias=False)
        tensors += _norm(f"{here}.input_layernorm", width, bias=False)
        tensors += _norm(f"{here}.post_attention_layernorm", width, bias=False)
    tensors += _norm("model.norm", width, bias=False)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": END,
        "unk_token": None,
        "model_max_length": 32768,
        "chat_template": CHATML,
    }
    return Model("qwen2.5-3b-instruct", config, tuple(tensors), specials, tokenizer)


def _embedding(
    name: str,
    vocabulary: int,
    width: int,
    specials: tuple[str, ...],
    merges: list[tuple[str, str]],
) -> Tensor:
    """Token embeddings, which are the output layer too: a small row makes an unlikely token.

    So the words of the answer are whole ones, or begin as one. Ids that the tokenizer does not
    know keep a row of zeros, the logit 0, and are never the most likely.
    """
    known, quiet = len(_vocabulary(specials, merges)), len(_fragments(specials, merges))
    if known > vocabulary:
        raise ValueError(f"{known} tokens do not fit a vocabulary of {vocabulary}")
    return Tensor(name, (vocabulary, width), ((quiet, TINY), (known - quiet, SMALL)))


def _random(name: str, shape: tuple[int, ...], high: int) -> Tensor:
    return Tensor(name, shape, ((shape[0], high),))


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> list[Tensor]:
    # Layers that are large beside the embeddings: else the output is the last token again.
    weight = _random(f"{name}.weight", (outputs, inputs), LARGE)
    return [weight, Tensor(f"{name}.bias", (outputs,))] if bias else [weight]


def _norm(name: str, width: int, *, bias: bool = True) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (width,), fill=ONE)
    return [weight, Tensor(f"{name}.bias", (width,))] if bias else [weight]


# --- files -------------------------------------------------------------------------------------


def _write(folder: Path, model: Model, merges: list[tuple[str, str]]) -> None:
    _json(folder / "config.json", model.config)
    _json(folder / "tokenizer.json", _tokenizer(model.specials, merges))
    _json(folder / "tokenizer_config.json", model.tokenizer)
    with (folder / "model.safetensors").open("wb") as file:
        _safetensors(file, model.tensors)


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _safetensors(file: BinaryIO, tensors: tuple[Tensor, ...]) -> None:
    """The format: the header's length, the header in JSON, then the bytes of each tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    chance = random.Random(SEED)
    for tensor in tensors:
        for piece in _pieces(tensor, chance):
            file.write(piece)


def _pieces(tensor: Tensor, chance: random.Random) -> Iterator[bytes]:
    width = math.prod(tensor.shape[1:])
    left = tensor.shape[0]
    for rows, high in tensor.ranges:
        yield from _noise(rows * width, high, chance)
        left -= rows
    yield tensor.fill * (left * width)


def _noise(count: int, high: int, chance: random.Random) -> Iterator[bytes]:
    # Bit 7 of the high byte is the sign, the only bit of it that is random.
    signs = bytes(high | byte & 0x80 for byte in range(256))
    for begin in range(0, count, PIECE):
        here = min(PIECE, count - begin)
        piece = bytearray(2 * here)
        piece[0::2] = chance.randbytes(here)
        piece[1::2] = chance.randbytes(here).translate(signs)
        yield bytes(piece)
