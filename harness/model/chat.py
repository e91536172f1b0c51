"""Chat encoding and its pre-flight: every token sequence of the project is made here.

One rule everywhere: the template writes the text, and special tokens are added by nobody else,
except one BOS where the tokenizer is one that starts its texts with it and the template does not
write it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from harness.records import HarnessError, first_line

_PROBE_ANSWER = "Fine thanks"
_PROBE_ANSWERED = {"role": "assistant", "content": _PROBE_ANSWER}
_PROBE = ({"role": "user", "content": "How are you"},)
_PROBE_LONG = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "How are you"},
)


class PromptTooLongError(HarnessError):
    """A prompt has more tokens than allowed. The caller decides: refuse, drop or truncate, never
    silently.
    """


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, generation: bool) -> str:
    """Text of a conversation as the chat template writes it; ``generation`` adds the header of the
    coming assistant turn.
    """
    if not tokenizer.chat_template:
        raise HarnessError(
            "the tokenizer has no chat template; give one with model.chat_template: <file.jinja>"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation
        )
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):
            roles = [m.get("role") for m in messages]
            message = f"the chat template refuses a conversation with roles {roles}: "
            raise HarnessError(message + first_line(error, 300)) from error
        raise
    return str(text)


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and _adds_bos(tokenizer) and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids


@lru_cache(maxsize=16)
def _adds_bos(tokenizer: Any) -> bool:
    return list(tokenizer("a")["input_ids"][:1]) == [tokenizer.bos_token_id]


def encode_prompt(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], max_prompt_length: int = 0
) -> list[int]:
    """Token ids of the conversation up to and with the header of the assistant's turn. At most one
    BOS, first.

    Raises PromptTooLongError over ``max_prompt_length`` (0: no limit); nothing is ever cut here.
    """
    ids = _encode(tokenizer, render(tokenizer, messages, generation=True))
    if max_prompt_length and len(ids) > max_prompt_length:
        start = str(messages[-1].get("content", ""))[:60]
        raise PromptTooLongError(
            f"a prompt has {len(ids)} tokens, the limit is {max_prompt_length} (its last turn "
            f"starts {start!r})"
        )
    return ids


def encode_conversation(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a finished conversation (what a reward model reads). At most one BOS, first."""
    return _encode(tokenizer, render(tokenizer, messages, generation=False))


def encode_response(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], text: str, max_tokens: int = 0
) -> list[int]:
    """Token ids of the assistant's turn after the header, end-of-turn token included, cut to
    ``max_tokens`` (0: no limit).
    """
    header = render(tokenizer, messages, generation=True)
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": text}], generation=False)
    if not whole.startswith(header):
        raise HarnessError(
            "the chat template rewrites the prompt when the answer is added: "
            f"{_difference(header, whole)}"
        )
    end = end_of_turn(tokenizer)
    cut = whole.rfind(end)
    if cut < len(header):
        raise HarnessError(f"the chat template writes no {end!r} after the answer {text[:60]!r}")
    prompt_ids = _encode(tokenizer, header)
    ids = _encode(tokenizer, whole[: cut + len(end)])
    if ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    else:
        # A token would span header and answer: the model, which continues the header's tokens, sees
        # the answer's own.
        ids = tokenizer(whole[len(header) : cut + len(end)], add_special_tokens=False)["input_ids"]
    return list(ids[:max_tokens] if max_tokens else ids)


def end_of_turn(tokenizer: Any) -> str:
    """The special token with which the template ends an assistant's turn (not always the
    tokenizer's eos).
    """
    return _end_of_turn(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: Any, template: str) -> str:
    # Only a part of the cache's key: a template may be set on a tokenizer already seen.
    del template
    whole = render(tokenizer, [*_PROBE, _PROBE_ANSWERED], generation=False)
    _, found, tail = whole.rpartition(_PROBE_ANSWER)
    if not found:
        tail = whole[len(render(tokenizer, _PROBE, generation=True)) :]
    known = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    for token in known:
        if tail.lstrip().startswith(token):
            return token
    shown = _shown(tokenizer, _encode(tokenizer, whole))
    raise HarnessError(
        "the chat template ends an assistant's turn without an end-of-turn token: after the "
        f"answer comes {tail!r}. Tokens: {shown}"
    )


def _special_tokens(tokenizer: Any) -> set[str]:
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return {token for token in added | set(tokenizer.all_special_tokens) if token}


def stop_tokens(tokenizer: Any, model: Any = None) -> tuple[int, ...]:
    """Ids that end an answer: the template's end of turn, the eos token, and those of the
    generation config, sorted.
    """
    ids = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        ids.add(tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer)))
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids.update(listed if isinstance(listed, (list, tuple)) else [listed])
    return tuple(sorted(int(i) for i in ids if i is not None))


def preflight(tokenizer: Any) -> None:
    """Refuse a tokenizer and template that would train or sample on wrong tokens; the message shows
    the tokens.

    Looks for: no template, doubled BOS, BOS in mid-sequence, no end-of-turn token, a template that
    rewrites the prompt when the answer is added, a template that ignores the generation prompt.
    """
    for messages in (_PROBE, _PROBE_LONG):
        prompt_ids = _encode(tokenizer, render(tokenizer, messages, generation=True))
        header = render(tokenizer, messages, generation=True)
        whole = render(tokenizer, [*messages, _PROBE_ANSWERED], generation=False)
        ids = _encode(tokenizer, whole)
        shown = _shown(tokenizer, ids)
        _check_bos(tokenizer, ids, shown)
        if not whole.startswith(header):
            raise HarnessError(
                "the chat template rewrites the prompt when the answer is added: "
                f"{_difference(header, whole)}. Tokens: {shown}"
            )
        if not whole[len(header) :].lstrip().startswith(_PROBE_ANSWER):
            raise HarnessError(
                "the chat template ignores add_generation_prompt: the model would have to write "
                f"the assistant's header itself ({whole[len(header) :][:40]!r}). Tokens: {shown}"
            )
        end_of_turn(tokenizer)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise HarnessError(
                "the prompt's tokens change when the answer is added. Alone: "
                f"{_shown(tokenizer, prompt_ids)}. With the answer: {shown}. The header should "
                "end in a special token or a line break that never merges with text"
            )


def _check_bos(tokenizer: Any, ids: Sequence[int], shown: str) -> None:
    bos, end = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer))
    if bos is None or bos in (tokenizer.eos_token_id, end):
        return
    places = [i for i, token in enumerate(ids) if token == bos]
    if places[:2] == [0, 1]:
        raise HarnessError(
            "the beginning-of-text token is doubled; let the chat template write it once. "
            f"Tokens: {shown}"
        )
    if any(place > 0 for place in places):
        raise HarnessError(
            f"the beginning-of-text token stands in mid-sequence (place {max(places)}). "
            f"Tokens: {shown}"
        )


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(repr(str(token)) for token in tokenizer.convert_ids_to_tokens(list(ids)))


def _difference(prompt: str, whole: str) -> str:
    at = len(os.path.commonprefix([prompt, whole]))  # noqa: RUF071 - characters are meant
    around = slice(max(0, at - 20), at + 20)
    return f"prompt {prompt[around]!r} becomes {whole[around]!r}"
