"""A word-like tokenizer for the pocket language: one token per word, number or punctuation mark,
with a chat template.

White space carries no meaning: text is cut into words and marks, and decoding joins them with
single spaces, marks attached to the word before. So ``encode(decode(ids)) == ids`` for every
sequence of ordinary tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.pocket import wordings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, PAD, UNK, END, USER, ASSISTANT, SYSTEM = (
    "<s>",
    "<pad>",
    "<unk>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
)
SPECIAL = (PAD, BOS, UNK, END, USER, ASSISTANT, SYSTEM)
"""END closes a turn and ends generation; BOS opens the text once."""
MARKS = (".", ",", ":", "?", "!", ";")
EXTRA_WORDS = ("Question", "Answer", "Q", "A", "No", "no", "yes")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] "
    "}}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% "
    "endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary() -> list[str]:
    """Special tokens, then every word, number and mark the language can write, sorted."""
    texts = [text for rows in wordings.WORDINGS.values() for _, text in rows]
    texts += [text for _, text in wordings.COMPOSED_WORDINGS] + list(wordings.FOLLOW_UPS.values())
    texts += (
        [style.template for style in wordings.STYLES]
        + list(wordings.PHRASES.values())
        + list(wordings.EVENTS)
    )
    words = {word for text in texts for word in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", text))}
    words |= {
        *wordings.NAMES,
        *wordings.WORDS,
        *wordings.CLASSES,
        *wordings.MOODS,
        *wordings.ORDINALS,
        *EXTRA_WORDS,
    }
    words |= {str(i) for i in range(100)}
    return [*SPECIAL, *sorted(words | set(MARKS))]


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, ready for ``apply_chat_template`` and ``save_pretrained``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token=UNK)
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated"),
        ]
    )
    core.add_special_tokens(list(SPECIAL))
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            *(decoders.Replace(f" {mark}", mark) for mark in MARKS),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer
