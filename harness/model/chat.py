"""Chat encoding and its pre-flight: every token sequence of the project is made here.

One rule everywhere: the template writes the text, and special tokens are added by nobody else,
except one BOS where the tokenizer is one that starts its texts with it and the template does not
write it. What a turn says is text: a special token spelled out in it is encoded as its letters, in
training, sampling and ranking alike. An answer is trained as it is written, but for blanks around
it, which are as the template has them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from harness.model.tokenizer import (
    ANSWER,
    ANSWERED,
    FORMS,
    Messages,
    check_own_method,
    frame,
    placed,
    render,
    takes_system_turn,
    template_of,
)
from harness.records import HarnessError

_GUARDS = ("\n", ".", "a", "1", "中")
"""Texts before a continuation, none of which merges with all that may follow."""
MARK = chr(0xF0000) + chr(0x10FFFD)
"""Stands before and after a special token that a text spells out. Two characters for private use,
each of which a text may hold: one after the other they are of no text.
"""
_THINKING = re.compile(r"\s*(<think>)?\s*</think>\s*")
"""A block without thoughts, as Qwen3's template writes it into finished turns."""


class PromptTooLongError(HarnessError):
    """A prompt has more tokens than allowed: the caller refuses, drops or truncates it."""


# -- text → ids ------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _special(tokenizer: Any) -> re.Pattern[str]:
    """Finds special tokens; those that are no more than added words (<think>) are text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    longest = sorted((token for token in found if token), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def spelled(tokenizer: Any, text: str) -> str:
    """A text with ``MARK`` before and after every special token in it, for ``encode_spelled``."""
    return _special(tokenizer).sub(f"{MARK}\\g<0>{MARK}", text.replace(MARK, ""))


def spelled_turns(tokenizer: Any, messages: Messages) -> Messages:
    """A conversation as the chat template is given it, its contents as ``spelled``."""
    turns = placed(tokenizer, messages)
    return [{**turn, "content": spelled(tokenizer, turn["content"])} for turn in turns]


def encode_spelled(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text from its beginning: a special token between two ``MARK`` is text."""
    first, *rest = _pieces(tokenizer, text)
    ids: list[int] = tokenizer(first, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and _adds_bos(tokenizer) and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids + _spelled(tokenizer, rest)


def _pieces(tokenizer: Any, text: str) -> list[str]:
    """Text, special token spelled out, text, …, text. A template may have parted two marks."""
    if MARK not in text:
        return [text]
    pieces = re.split(f"{MARK}({_special(tokenizer).pattern}){MARK}", text)
    return [piece.replace(MARK, "") for piece in pieces]


def _spelled(tokenizer: Any, pieces: Sequence[str]) -> list[int]:
    """Ids of pieces after the first: special token, text, special token, …"""
    ids: list[int] = []
    for place, piece in enumerate(pieces):
        ids += _continued(tokenizer, piece, split_special_tokens=place % 2 == 0)
    return ids


def _continued(tokenizer: Any, text: str, *, split_special_tokens: bool = False) -> list[int]:
    """Ids of a text that follows other text, without the blank of one that stands alone."""
    options = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
    for guard in _GUARDS:
        before = tokenizer(guard, **options)["input_ids"]
        ids: list[int] = tokenizer(guard + text, **options)["input_ids"]
        if ids[: len(before)] == before:
            break
    else:
        raise HarnessError(f"the tokenizer merges {text[:40]!r} with whatever stands before it")
    ids = ids[len(before) :]
    if split_special_tokens and tokenizer.convert_tokens_to_ids(text) in ids:
        raise HarnessError(
            f"the tokenizer has no other way to write {text!r} than its special token; take it out "
            "of the text"
        )
    return ids


@lru_cache(maxsize=16)
def _adds_bos(tokenizer: Any) -> bool:
    return list(tokenizer("a")["input_ids"][:1]) == [tokenizer.bos_token_id]


# -- prompts, answers, conversations ---------------------------------------------------------------


def encode_prompt(tokenizer: Any, messages: Messages, max_prompt_length: int = 0) -> list[int]:
    """Token ids of the conversation up to and with the header of the assistant's turn. At most one
    BOS that the template does not write, first.

    Raises PromptTooLongError over ``max_prompt_length`` (0: no limit); nothing is ever cut here.
    """
    turns = spelled_turns(tokenizer, messages)
    ids = encode_spelled(tokenizer, render(tokenizer, turns, generation=True))
    if max_prompt_length and len(ids) > max_prompt_length:
        start = str(messages[-1].get("content", ""))[:60]
        raise PromptTooLongError(
            f"a prompt has {len(ids)} tokens, the limit is {max_prompt_length} (its last turn "
            f"starts {start!r})"
        )
    return ids


def encode_conversation(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a finished conversation (what a reward model reads)."""
    turns = spelled_turns(tokenizer, messages)
    return encode_spelled(tokenizer, render(tokenizer, turns, generation=False))


def encode_response(
    tokenizer: Any, messages: Messages, text: str, max_tokens: int = 0
) -> list[int]:
    """Ids of the assistant's turn after its header, with its end, cut to ``max_tokens``."""
    turns = spelled_turns(tokenizer, [*messages, {"role": "assistant", "content": text}])
    header, whole = _written(tokenizer, turns)
    body = _answer(tokenizer, whole[len(header) :], turns[-1]["content"])
    prompt_ids = encode_spelled(tokenizer, header)
    ids = encode_spelled(tokenizer, header + body)
    if ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    else:
        # A token would span header and answer: the model, which continues the header's tokens, sees
        # the answer's own.
        first, *rest = _pieces(tokenizer, body)
        ids = _continued(tokenizer, first) + _spelled(tokenizer, rest)
    return list(ids[:max_tokens] if max_tokens else ids)


def _written(tokenizer: Any, turns: Messages) -> tuple[str, str]:
    """What the template writes up to the last turn's answer, and of the whole conversation. Raises
    HarnessError where the second does not go on from the first.
    """
    header = render(tokenizer, turns[:-1], generation=True)
    whole = render(tokenizer, turns, generation=False)
    if not whole.startswith(header):
        at = len(os.path.commonprefix([header, whole]))  # noqa: RUF071 - characters are meant
        around = slice(max(0, at - 20), at + 20)
        raise HarnessError(
            f"the chat template rewrites the prompt when the answer is added: prompt "
            f"{header[around]!r} becomes {whole[around]!r}; give one that goes on from its prompt "
            "with model.chat_template, or keep it from opening a thought with "
            "model.template_arguments (enable_thinking: false)"
        )
    return header, whole


def _answer(tokenizer: Any, written: str, text: str) -> str:
    """The answer with its end of turn, from what the template writes after the header. Where the
    template alters the text (drops its thoughts, say), the text itself.
    """
    around, plain = frame(tokenizer), text.strip()
    for lead in dict.fromkeys((around.lead, "")):
        rest = written.removeprefix(lead).lstrip() if written.startswith(lead) else ""
        tail = rest.removeprefix(plain)
        if rest.startswith(plain) and tail.lstrip().startswith(around.end):
            return written[: len(written) - len(tail) + tail.index(around.end)] + around.end
    return (around.lead if around.lead.isspace() else "") + text + around.end


def end_of_turn(tokenizer: Any) -> str:
    """The token with which the template ends an answer (not always the tokenizer's eos)."""
    return frame(tokenizer).end


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


# -- checks ----------------------------------------------------------------------------------------


def check_rows(
    tokenizer: Any, rows: Iterable[tuple[str, Messages, Sequence[str]]], *, join_system: bool = True
) -> dict[str, int]:
    """What the template does to rows (place, prompt's turns, answers), as numbers of rows:
    ``system_turns_joined`` (their text stands before the first user's),
    ``special_tokens_spelled_out`` and ``earlier_answers_rewritten`` (loses their thoughts, say).

    Raises HarnessError, with three places, for rows that went through a template already (a text
    begins as it begins a turn or ends with its end of turn, and would get both twice), that the
    template refuses, or of which it drops a turn; with ``join_system`` False also for those joined.
    """
    counts, wrong = Counter[str](), []
    no_system = not takes_system_turn(tokenizer)
    for place, messages, answers in rows:
        texts = [*(turn["content"] for turn in messages), *answers]
        joined = no_system and messages[0]["role"] == "system"
        try:
            _check_bare(tokenizer, texts)
            lost = _lost_roles(tokenizer, messages)
            for answer in answers:
                _written(tokenizer, [*messages, {"role": "assistant", "content": answer}])
            if joined and not join_system:
                raise HarnessError(
                    "a system turn, which the chat template has no place for; data.system_turns: "
                    "join puts its text before the first user's"
                )
        except HarnessError as error:
            wrong.append(f"{place}: {error}")
            continue
        counts["system_turns_joined"] += joined
        counts["special_tokens_spelled_out"] += any(map(_special(tokenizer).search, texts))
        counts["earlier_answers_rewritten"] += "assistant" in lost
    if wrong:
        more = f"; and {len(wrong) - 3} more rows" if len(wrong) > 3 else ""
        raise HarnessError("; ".join(wrong[:3]) + more)
    return {name: count for name, count in counts.items() if count}


BEGINS = re.compile(
    r"(<s>\s*)?(<\|(im_start|start_header_id|begin_of_text|user|system|assistant|start_of_role)\|>"
    r"|<bos>|<start_of_turn>|\[INST\]|<｜(begin▁of▁sentence|User)｜>|<\|START_OF_TURN_TOKEN\|>)"
)
ENDS = re.compile(
    r"(<\|(im_end|eot_id|end|end_of_text|endoftext|return|END_OF_TURN_TOKEN)\|>|<end_of_turn>|<eos>"
    r"|</s>|\[/INST\]|<｜end▁of▁sentence｜>)$"
)
"""How the templates of known families begin a text and end it."""


def _check_bare(tokenizer: Any, texts: Sequence[str]) -> None:
    """Raise HarnessError for a text that went through a chat template: the tokenizer's own, which
    would write its marks once more, or another model's, whose marks would be trained as text.
    """
    around = frame(tokenizer)
    ends = (around.end, str(tokenizer.eos_token or around.end))
    for text in map(str.strip, texts):
        opened = next((one for one in around.openings if text.startswith(one)), "")
        ended = next((one for one in ends if text.endswith(one)), "")
        struck = "<s>" in text  # out, in HTML
        foreign = BEGINS.match(text) or ENDS.search(text.removesuffix("</s>") if struck else text)
        if opened or ended:
            raise HarnessError(
                f"a text {'begins' if opened else 'ends'} with {opened or ended!r}, as after a "
                "chat template, which would write it once more; give the bare text of each turn"
            )
        if foreign:
            raise HarnessError(
                f"a text {'begins' if foreign.start() == 0 else 'ends'} with {foreign[0]!r}, as "
                "after the chat template of another model, and would be trained with it; give the "
                "bare text of each turn"
            )


def _lost_roles(tokenizer: Any, messages: Messages) -> set[str]:
    """Roles of the turns whose text is not in what the template writes; an assistant's at most."""
    written = render(tokenizer, messages, generation=True)
    lost = {turn["role"] for turn in messages if turn["content"].strip() not in written}
    if lost - {"assistant"}:
        role = min(lost - {"assistant"})
        raise HarnessError(f"the chat template drops or rewrites a turn of {role}")
    return lost


def preflight(tokenizer: Any) -> None:
    """Refuse a tokenizer and template that would train or sample on wrong tokens; the message shows
    the tokens.

    Looks for: no template, one that draws at random, doubled BOS, a BOS that the tokenizer adds, no
    end-of-turn token, text that does not come back from its tokens, a template that rewrites the
    prompt when the answer is added, drops or rewrites a turn, or ignores the generation prompt.
    """
    if re.search(r"\|\s*random\b|\blipsum\s*\(", template_of(tokenizer)):
        raise HarnessError("the chat template draws at random: what it writes cannot be repeated")
    check_own_method(tokenizer)
    # What is drawn is judged and trained on as text.
    ids = encode_spelled(tokenizer, ANSWER)
    found = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if tokenizer.unk_token_id not in ids and found != ANSWER:
        raise HarnessError(
            f"the tokenizer does not give back the text of its tokens: {ANSWER!r} becomes "
            f"{found!r} (does tokenizer.json lack its decoder, or lower its text?)"
        )
    for messages in FORMS:
        whole = render(tokenizer, [*messages, ANSWERED], generation=False)
        try:
            _check_form(tokenizer, messages, whole)
        except HarnessError as error:
            shown = _shown(tokenizer, encode_spelled(tokenizer, whole))
            raise HarnessError(f"{error}. Tokens: {shown}") from error


def _check_form(tokenizer: Any, messages: Messages, whole: str) -> None:
    ids = encode_spelled(tokenizer, whole)
    _check_bos(tokenizer, ids, whole)
    header, _ = _written(tokenizer, [*messages, ANSWERED])
    prompt_ids = encode_spelled(tokenizer, header)
    at = 0
    for turn in messages:
        at = header.find(turn["content"], at)
        if at < 0:
            raise HarnessError(
                f"the chat template drops or rewrites a turn of {turn['role']}: "
                f"{turn['content']!r} is not in what it writes"
            )
    lead = frame(tokenizer).lead
    asked_for_nothing = header == render(tokenizer, messages, generation=False)
    if lead.strip() and (asked_for_nothing or not _THINKING.fullmatch(lead)):
        raise HarnessError(
            "the chat template ignores add_generation_prompt: the model would have to write "
            f"the assistant's header itself ({lead[:40]!r})"
        )
    if ids[: len(prompt_ids)] != prompt_ids:
        raise HarnessError(
            "the prompt's tokens change when the answer is added. Alone: "
            f"{_shown(tokenizer, prompt_ids)}. The header should end in a special token or a line "
            "break that never merges with text"
        )


def _check_bos(tokenizer: Any, ids: Sequence[int], text: str) -> None:
    """The template may write a begin-of-text at each turn; one more is the tokenizer's."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    if list(ids[:2]) == [bos, bos]:
        raise HarnessError(
            "the beginning-of-text token is doubled; let the chat template write it once"
        )
    written = text.count(tokenizer.bos_token)
    added = _adds_bos(tokenizer) and not text.startswith(tokenizer.bos_token)
    places = [place for place, token in enumerate(ids) if token == bos]
    if len(places) > written + added:
        raise HarnessError(
            f"the tokenizer puts its beginning-of-text token in mid-sequence (place {places[-1]})"
        )


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(repr(str(token)) for token in tokenizer.convert_ids_to_tokens(list(ids)))
