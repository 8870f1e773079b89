"""The tokenizer of `mini`: GPT-2's kind, trained until every word is one token."""

import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from namemovers.data import CUES, DESCRIPTIONS, OBJECTS, PLACES, TITLES

from .texts import LEXICON, PEOPLE, all_frames, documents

END_OF_TEXT = "<|endoftext|>"  # id 0; also what a prompt begins with
_MORE_WORDS = "red lamp janitor soldier hello they someone".split()


def _to_be_seen_often() -> list[str]:
    "Texts in which every word that must be one token occurs: names with a space before them and without."
    names = [f"{n} {n}" for n in PEOPLE]
    words = [f" {w}" for w in DESCRIPTIONS + TITLES + CUES + PLACES + OBJECTS + LEXICON + _MORE_WORDS]
    frames = [re.sub(r"\{\w+\}", "it", frame) for frame in all_frames()]
    return names + words + frames


def train_tokenizer(
    seed: int = 0,  # of the text it is trained on
) -> Any:  # a `tokenizers.Tokenizer`
    "A byte-level BPE in which every word of text and shipped templates is one token. END_OF_TEXT has id 0."
    rng = np.random.default_rng(seed)
    text = [f"{d.prompt} {d.answer}{d.rest}" for _ in range(60) for d in documents(rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=10,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(text + 20 * _to_be_seen_often(), trainer)
    return tokenizer
