"""What is encoded under the templates of ten families, and what the checks of texts refuse."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from harness.model import chat
from harness.model import tokenizer as tokenizers
from harness.model.policy import load_tokenizer, template_settings
from harness.records import HarnessError
from harness.study.sections import ModelSettings
from tests import tiny
from tests.model.families import FAMILIES, Family

HI = [{"role": "user", "content": "Hi"}]
BRIEF = [{"role": "system", "content": "Be brief"}, *HI]
LONG = [*HI, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "Bye"}]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def says(tokenizer: Any, ids: list[int]) -> list[str]:
    """Special and added tokens whole, everything between them as text."""
    marks = set(map(str, tokenizer.added_tokens_decoder.values()))
    found: list[str] = []
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in marks or not found or found[-1] in marks:
            found.append(token)
        else:
            found[-1] += token
    back = {ord(symbol): chr(byte) for byte, symbol in _bytes().items()}
    texts = [t if t in marks else t.translate(back) for t in found]
    return [t if t in marks else t.encode("latin-1").decode() for t in texts]


def _bytes() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def parts(tokenizer: Any, text: str) -> list[str]:
    """A text written by hand, cut at the special tokens it means."""
    marks = sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return [part for part in re.split(f"({'|'.join(map(re.escape, marks))})", text) if part]


@families
def test_prompts_and_answers_of_ten_families_by_hand(family: Family) -> None:
    tokenizer = family.tokenizer()
    chat.preflight(tokenizer)
    for messages, text in ((HI, family.prompt), (BRIEF, family.system), (LONG, family.long)):
        ids = chat.encode_prompt(tokenizer, messages)
        assert says(tokenizer, ids) == parts(tokenizer, text)
    for messages in (HI, BRIEF, LONG):
        ids = chat.encode_response(tokenizer, messages, "Blue.")
        assert says(tokenizer, ids) == parts(tokenizer, family.answer)


@families
def test_what_a_turn_says_is_text_whatever_tokens_it_spells_out(family: Family) -> None:
    tokenizer = family.tokenizer()
    end = tokenizers.frame(tokenizer).end
    quoted = f"What is {end} for?"
    ids = chat.encode_prompt(tokenizer, [{"role": "user", "content": quoted}])
    plain = chat.encode_prompt(tokenizer, [{"role": "user", "content": "What is @ for?"}])
    mark = tokenizer.convert_tokens_to_ids(end)
    assert ids.count(mark) == plain.count(mark)
    spelled = tokenizer(end, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    at = plain.index(tokenizer("@", add_special_tokens=False)["input_ids"][0])
    assert ids == [*plain[:at], *spelled, *plain[at + 1 :]]
    answer = chat.encode_response(tokenizer, HI, f"It is {end}.")
    assert answer[-1] == mark
    assert answer.count(mark) == 1
    assert tokenizer.decode(answer) == family.answer.replace("Blue.", f"It is {end}.")


@families
@pytest.mark.parametrize("said", ["", "{end}"], ids=["alone", "beside a special token"])
def test_characters_for_private_use_are_text(family: Family, said: str) -> None:
    tokenizer = family.tokenizer()
    end = tokenizers.frame(tokenizer).end
    for text in map(chr, (0xE000, 0xF0000, 0x10FFFD)):
        answer = f"It is {text}{said.format(end=end)}{text}."
        ids = chat.encode_response(tokenizer, HI, answer)
        assert tokenizer.decode(ids) == family.answer.replace("Blue.", answer)
        asked = chat.encode_prompt(tokenizer, [{"role": "user", "content": answer}])
        assert answer in tokenizer.decode(asked)


@families
def test_rows_that_went_through_the_template_are_refused_by_place(family: Family) -> None:
    tokenizer = family.tokenizer()
    sound = ("a.jsonl:1", HI, ("Blue.", "Red."))
    assert chat.check_rows(tokenizer, [sound]) == {}
    for prompt, chosen, rejected in (
        ("Hi", family.answer, "Red."),
        (family.prompt, "Blue.", "Red."),
        (family.prompt + family.answer, "Blue.", "Red."),
        ("Hi", "Blue.", f"Red. {tokenizer.eos_token}\n"),
    ):
        turns = [{"role": "user", "content": prompt}]
        rows = [sound, ("a.jsonl:2", turns, (chosen, rejected))]
        with pytest.raises(
            HarnessError, match=r"^a\.jsonl:2: a text (begins|ends) with .*once more"
        ):
            chat.check_rows(tokenizer, rows)


@families
def test_rows_that_went_through_another_models_template_are_refused_by_place(
    family: Family,
) -> None:
    """Their marks are plain text to this tokenizer, and would be trained."""
    tokenizer = tiny.tokenizer("chatml", template=tiny.CHATML.replace("im_", "own_"))
    tokenizer.add_special_tokens({"eos_token": "<|own_end|>"})
    asked = [{"role": "user", "content": family.prompt}]
    with pytest.raises(HarnessError, match=r"^a:1: a text begins with .* of another model"):
        chat.check_rows(tokenizer, [("a:1", asked, ("Blue.", "Red."))])
    with pytest.raises(HarnessError, match=r"^a:1: a text ends with .* of another model"):
        chat.check_rows(tokenizer, [("a:1", HI, ("Red.", family.answer + "\n"))])
    quoted = "Write [INST] before a turn and <|eot_id|> after it."
    struck = "<s>struck out</s>"
    assert chat.check_rows(tokenizer, [("a:1", HI, (quoted, struck))]) == {}


def test_what_the_template_does_to_rows_is_counted_and_three_refused_rows_are_named() -> None:
    zephyr, phi, qwen = (FAMILIES[name].tokenizer() for name in ("zephyr", "phi-3-mini", "qwen3"))
    rows = [("1", HI, ("a </s> b", "x <s> </s> x")), ("2", BRIEF, ("a", "b"))]
    assert chat.check_rows(zephyr, rows) == {"special_tokens_spelled_out": 1}
    assert chat.check_rows(phi, rows) == {"system_turns_joined": 1, "special_tokens_spelled_out": 1}
    thought = [HI[0], {"role": "assistant", "content": "<think>Hm</think>Yo"}, LONG[2]]
    assert chat.check_rows(qwen, [("1", thought, ("a", "b"))]) == {"earlier_answers_rewritten": 1}
    ended = [(f"f:{n}", HI, ("Blue.</s>", "a")) for n in range(1, 6)]
    with pytest.raises(HarnessError, match=r"f:1: .*; f:2: .*; f:3: .* '</s>'.*; and 2 more rows"):
        chat.check_rows(zephyr, ended)
    with pytest.raises(HarnessError, match=r"^2: a system turn.*data\.system_turns: join"):
        chat.check_rows(phi, rows, join_system=False)


@pytest.mark.parametrize(
    ("family", "turns", "reason"),
    [
        (
            "gemma",
            [HI[0], HI[0]],
            r"refuses a conversation with roles \['user', 'user'\].*alternate",
        ),
        ("phi-3-mini", [*LONG[:2], BRIEF[0], LONG[2]], "drops or rewrites a turn of system"),
        ("gemma", [*LONG[:2], BRIEF[0], LONG[2]], "refuses a conversation with roles"),
    ],
)
def test_a_row_that_the_template_cannot_hold_is_named(
    family: str, turns: list[dict[str, str]], reason: str
) -> None:
    with pytest.raises(HarnessError, match=f"^a.jsonl:7: the chat template {reason}"):
        chat.check_rows(FAMILIES[family].tokenizer(), [("a.jsonl:7", turns, ("Blue.", "Red."))])


# Days
# ---------------------------------------------------------------------------------------


class NextYear(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> NextYear:
        return cls(2031, 1, 9, tzinfo=tz)


@pytest.fixture
def another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", NextYear)


@pytest.mark.usefixtures("another_day")
@pytest.mark.parametrize(
    ("name", "told", "day"),
    [
        ("llama-3.2", "Today Date: 26 Jul 2024", ""),
        ("llama-3.2", "Today Date: 02 Jan 2025", "2025-01-02"),
        ("granite", "Today's Date: July 26, 2024", ""),
        ("granite", "Today's Date: January 02, 2025", "2025-01-02"),
    ],
)
def test_a_template_is_told_the_recipes_day_whoever_renders_it(
    name: str, told: str, day: str, tmp_path: Path
) -> None:
    made = FAMILIES[name].tokenizer()
    assert "2031" in made.apply_chat_template(HI, tokenize=False)  # what a clock would give
    if not day:
        assert told in chat.render(made, HI, generation=True)
    tiny.save(made, tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model", template={"template_date": day})
    assert told in loaded.apply_chat_template(HI, tokenize=False)
    loaded.save_pretrained(tmp_path / "model")  # as a trained checkpoint is
    assert told in load_tokenizer(tmp_path / "model").apply_chat_template(HI, tokenize=False)
    other = load_tokenizer(tmp_path / "model", template={"template_date": "2020-05-06"})
    assert "2020" in other.apply_chat_template(HI, tokenize=False)


@pytest.mark.parametrize(
    ("format", "told"),
    [
        ("%Y-%m-%d", "2024-03-05"),
        ("%-d/%-m/%y", "5/3/24"),
        ("%A, %B %d, %Y", "Tuesday, March 05, 2024"),
        ("%H:%M 100%%", "00:00 100%"),
    ],
)
def test_every_form_of_date_is_that_day(format: str, told: str) -> None:
    tokenizer = tiny.tokenizer("chatml")
    text = "\n{# day #}{{ strftime_now('" + format + "') }}\n" + tiny.CHATML
    tokenizer.chat_template = tokenizers.told(text, "2024-03-05")
    written = chat.render(tokenizer, HI, generation=True)
    assert written == f"\n{told}\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_without_a_day_stays_as_it_is() -> None:
    assert tokenizers.told(tiny.CHATML, "2025-01-02") == tiny.CHATML
    for draws in ("{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"):
        with pytest.raises(HarnessError, match="draws at random"):
            chat.preflight(tiny.tokenizer("chatml", template=draws + tiny.CHATML))


# Arguments of the template's own
# ---------------------------------------------------------------------------------------


def told(made: Any, folder: Path, **arguments: Any) -> Any:
    tiny.save(made, folder)
    return load_tokenizer(folder, template=template_settings("", "2025-01-02", arguments))


def test_a_template_is_given_its_arguments_whoever_renders_it(tmp_path: Path) -> None:
    qwen = told(FAMILIES["qwen3"].tokenizer(), tmp_path / "a", enable_thinking=False)
    open_turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    asked = f"{open_turn}<think>\n\n</think>\n\n"
    chat.preflight(qwen)
    assert qwen.decode(chat.encode_prompt(qwen, HI)) == asked
    assert qwen.decode(chat.encode_response(qwen, HI, "Blue.")) == "Blue.<|im_end|>"
    assert qwen.apply_chat_template(HI, tokenize=False, add_generation_prompt=True) == asked
    trained = told(qwen, tmp_path / "b")
    assert trained.decode(chat.encode_prompt(trained, HI)) == asked
    thinks = told(qwen, tmp_path / "c", enable_thinking=True)
    assert thinks.decode(chat.encode_prompt(thinks, HI)) == open_turn
    thought = ("a.jsonl:3", HI, ("<think>Hm</think>Blue.", "Red."))
    assert chat.check_rows(thinks, [thought]) == {}
    with pytest.raises(HarnessError, match=r"^a\.jsonl:3: the chat template rewrites the prompt"):
        chat.check_rows(trained, [thought])


def test_arguments_of_every_kind_stand_beside_the_day_and_the_last_told_counts(
    tmp_path: Path,
) -> None:
    text = "{{ strftime_now('%Y') }}{{ n + 1 }}{{ said }}{{ 'x' if flag else 'y' }}" + tiny.CHATML
    made = tiny.tokenizer("chatml", template=text)
    first = told(made, tmp_path / "a", n=1, said='it\'s "{%" \n é', flag=True)
    assert chat.render(first, HI, generation=True).startswith('20252it\'s "{%" \n éx<|im_start|>')
    second = told(first, tmp_path / "b", n=2.5, said="", flag=False)
    assert chat.render(second, HI, generation=True).startswith("20253.5y<|im_start|>")
    assert second.chat_template.count("set n =") == second.chat_template.count("macro") // 2 == 1


def test_an_argument_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"template_arguments\.thinking: .* reads no such var"):
        told(FAMILIES["qwen3"].tokenizer(), tmp_path, thinking=False)
    for name in ("messages", "date_string", "a b"):
        with pytest.raises(ValueError, match="is no variable of a chat template's own"):
            ModelSettings(template_arguments={name: True})


# Code of the repository, and templates that fail
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["other text", "fails", "same"])
def test_a_repositorys_own_way_of_writing_turns_must_be_its_templates(
    own: str, tmp_path: Path
) -> None:
    class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
        def apply_chat_template(self, turns: Any, **options: Any) -> Any:
            if own == "fails":
                raise TypeError("no such argument")
            written = super().apply_chat_template(turns, **options)
            return written if own == "same" else f"[gMASK]{written}"

    made = Own.from_pretrained(tiny.save(FAMILIES["zephyr"].tokenizer(), tmp_path))
    assert made.decode(chat.encode_prompt(made, HI)) == FAMILIES["zephyr"].prompt
    if own == "same":
        chat.preflight(made)
        return
    with pytest.raises(HarnessError, match=r"own apply_chat_template does not .*: '(\[gMASK|no)"):
        chat.preflight(made)


@pytest.mark.parametrize(("part", "found"), [("decoder", "F i n e"), ("normalizer", "fine tha")])
def test_text_must_come_back_from_its_tokens(part: str, found: str, tmp_path: Path) -> None:
    file = tiny.save(tiny.tokenizer("chatml"), tmp_path) / "tokenizer.json"
    stored = json.loads(file.read_text())
    stored[part] = {"type": "Lowercase"} if part == "normalizer" else None
    file.write_text(json.dumps(stored))
    with pytest.raises(HarnessError, match=f"'Fine thanks' becomes '{found}"):
        chat.preflight(load_tokenizer(tmp_path))


def test_a_template_file_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_bytes(b"\xe9")
    with pytest.raises(HarnessError, match=r"model\.chat_template: .*own\.jinja is no UTF-8"):
        template_settings(str(tmp_path / "own.jinja"))


@pytest.mark.parametrize("broken", ["{{ 1 + 'a' }}", "{% for m in %}", "{{ messages.x.y.z }}"])
def test_a_template_that_fails_is_told_in_its_own_words(broken: str) -> None:
    with pytest.raises(HarnessError, match=r"the chat template refuses a conversation with roles"):
        chat.preflight(tiny.tokenizer("chatml", template=broken + tiny.CHATML))


# Named templates
# ---------------------------------------------------------------------------------------

NAMED = {"plain": tiny.CHATML, "rag": tiny.CHATML.replace("assistant", "helper")}


@pytest.mark.parametrize("form", ["list", "folder", "with default"])
def test_one_of_several_named_templates_is_asked_for_or_chosen(form: str, tmp_path: Path) -> None:
    made = tiny.tokenizer("chatml")
    made.chat_template = dict(NAMED) | ({"default": tiny.CHATML} if form == "with default" else {})
    made.save_pretrained(tmp_path, save_jinja_files=form != "list")
    (tmp_path / "config.json").write_text("{}")
    if form == "list":
        stored = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
        assert [one["name"] for one in stored] == ["plain", "rag"]
    rag = load_tokenizer(tmp_path, template=template_settings("rag"))
    assert chat.render(rag, HI, generation=True).endswith("<|im_start|>helper\n")
    with pytest.raises(HarnessError, match=r"\(.*plain, rag\), none is 'tools'; .*chat_template"):
        load_tokenizer(tmp_path, template=template_settings("tools"))
    if form == "with default":
        assert load_tokenizer(tmp_path).chat_template == tiny.CHATML
    else:
        with pytest.raises(HarnessError, match=r"\(plain, rag\), none is 'default'; choose one"):
            load_tokenizer(tmp_path)


def test_a_name_where_there_is_one_template_is_no_file(tmp_path: Path) -> None:
    tiny.save(tiny.tokenizer("chatml"), tmp_path)
    with pytest.raises(HarnessError, match="no file rag, and the tokenizer has no named"):
        load_tokenizer(tmp_path, template=template_settings("rag"))


# Answers as they are written
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("qwen3", "<think>\nHm.\n</think>\n\nBlue.", "<think>\nHm.\n</think>\n\nBlue.<|im_end|>"),
        ("qwen3", "<think>Hm.</think>Blue.", "<think>Hm.</think>Blue.<|im_end|>"),
        ("qwen3", "<think>\n\n</think>\n\nBlue.", "<think>\n\n</think>\n\nBlue.<|im_end|>"),
        ("qwen3", "</think>", "</think><|im_end|>"),
        ("deepseek", "<think>Hm.</think>Blue.", "<think>Hm.</think>Blue.<｜end▁of▁sentence｜>"),
        ("deepseek", " x</think>", " x</think><｜end▁of▁sentence｜>"),
        ("llama-3", "  Blue.\n", "Blue.<|eot_id|>"),
        ("mistral", "Blue.\n", " Blue.\n</s>"),
        ("gemma", "", "<end_of_turn>"),
        ("zephyr", "Blue.</s>Red.", "Blue.</s>Red.</s>"),
    ],
)
def test_an_answer_is_trained_as_it_is_written(family: str, text: str, expected: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    ids = chat.encode_response(tokenizer, HI, text)
    assert tokenizer.decode(ids) == expected
    assert ids.count(tokenizer.convert_tokens_to_ids(chat.end_of_turn(tokenizer))) == 1


def test_nothing_follows_the_first_end_of_turn() -> None:
    twice = tiny.CHATML + "{% if not add_generation_prompt %}<|im_end|>{% endif %}"
    tokenizer = tiny.tokenizer("chatml", template=twice)
    assert tokenizer.decode(chat.encode_response(tokenizer, HI, "Blue.")) == "Blue.<|im_end|>"


REFUSED = {
    "doubled": (
        "llama3",
        "{{ bos_token }}" + tiny.LLAMA3,
        r"doubled.*'<\|begin_of_text\|>' '<\|begin_of_text\|>'",
    ),
    "begin-of-text in finished turns only": (
        "llama3",
        tiny.LLAMA3.replace(
            "{{ bos_token }}{% for m in messages %}", "{% for m in messages %}{{ bos_token }}"
        ),
        r"rewrites the prompt.*'<\|begin_of_text\|>'",
    ),
    "no end of turn": (
        "zephyr",
        tiny.ZEPHYR.replace("{{ eos_token }}", ""),
        r"without an end-of-turn token.*Tokens: '<s>'",
    ),
    "rewrites the prompt": (
        "phi3",
        tiny.PHI3.replace(
            "{{ m['content'] }}",
            "{{ m['content'] if loop.last or m['role'] == 'assistant' else m['content'] | upper }}",
        ),
        "rewrites the prompt.*How.*HOW",
    ),
    "no header": (
        "phi3",
        tiny.PHI3.replace(
            "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}", ""
        ),
        "ignores add_generation_prompt",
    ),
    "a user's turn is dropped": (
        "chatml",
        tiny.CHATML.replace("in messages %}", "in messages[-2:] %}"),
        "drops or rewrites a turn of user: 'Hello'|rewrites the prompt",
    ),
    "contents are lowered": (
        "chatml",
        tiny.CHATML.replace("m['content']", "m['content'] | lower"),
        "drops or rewrites a turn of user: 'How are you'",
    ),
    "answers are lowered": (
        "chatml",
        tiny.CHATML.replace(
            "{{ m['content'] }}",
            "{{ m['content'] | lower if m['role'] == 'assistant' else m['content'] }}",
        ),
        "drops or rewrites a turn of assistant|rewrites the answer 'Fine thanks'",
    ),
    "a thought is opened for the prompt alone": (
        "chatml",
        tiny.CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
        "rewrites the prompt when the answer is added.*<think>",
    ),
    "a channel the model would have to write": (
        "chatml",
        tiny.CHATML.replace(
            "{{ m['content'] }}",
            "{% if m['role'] == 'assistant' %}<|channel|>final {% endif %}{{ m['content'] }}",
        ),
        "ignores add_generation_prompt.*<|channel|>final",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_templates_are_refused_and_the_tokens_shown(case: str) -> None:
    style, text, message = REFUSED[case]
    with pytest.raises(HarnessError, match=f"({message})") as refused:
        chat.preflight(tiny.tokenizer(style, template=text))
    assert "Tokens: '" in str(refused.value)


def test_an_opened_thought_that_finished_turns_keep_is_sound() -> None:
    """The template opens the thought in the prompt and closes it in a finished turn."""
    opened = tiny.CHATML.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    ).replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n' }}"
        "{% if '</think>' not in m['content'] %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
        "{{ m['content'] }}",
    )
    tokenizer = tiny.tokenizer("chatml", template=opened)
    chat.preflight(tokenizer)
    for text, expected in (("Blue.", "\n</think>\n\nBlue."), ("Hm\n</think>\n\nBlue.",) * 2):
        found = tokenizer.decode(chat.encode_response(tokenizer, HI, text))
        assert found == f"{expected}<|im_end|>"


# Begin of text
# ---------------------------------------------------------------------------------------


def test_begin_of_text_that_the_template_writes_at_each_turn_marks_turns() -> None:
    each = "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    each += "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}"
    each += "{% endfor %}"
    tokenizer = tiny.tokenizer("zephyr", template=each)
    chat.preflight(tokenizer)
    text = tokenizer.decode(chat.encode_prompt(tokenizer, LONG))
    assert text == "<s>[INST] Hi [/INST] Yo </s><s>[INST] Bye [/INST]"


def test_begin_of_text_that_the_tokenizer_adds_once_more_is_refused() -> None:
    tokenizer = tiny.tokenizer("llama3")
    plain = tokenizer._encode_plus

    def adds(text: str, **options: Any) -> Any:
        found = plain(text, **options)
        found["input_ids"] = [
            *found["input_ids"][:3],
            tokenizer.bos_token_id,
            *found["input_ids"][3:],
        ]
        return found

    tokenizer._encode_plus = adds
    with pytest.raises(HarnessError, match=r"begin\w*-of-text token in mid-sequence \(place 3\)"):
        chat.preflight(tokenizer)


# Tokens that span header and answer
# ---------------------------------------------------------------------------------------


def prepending(pieces: list[str]) -> Any:
    """A tokenizer that puts a blank before every text, as SentencePiece does, with these pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({chr(c) for c in range(33, 127)} | {"▁", "\n"})
    merged, merges = list(letters), []
    for piece in pieces:
        for size in range(2, len(piece) + 1):
            if piece[:size] not in merged:
                merged.append(piece[:size])
                merges.append((piece[: size - 1], piece[size - 1]))
    raw = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(merged)}, merges=merges))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(["</s>", "<pad>"])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>")
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    return made


@pytest.mark.parametrize("answer", ["Sure.", "Sure Sure", "\nOne", "S"])
def test_an_answer_that_merges_with_the_header_is_cut_between_their_letters(answer: str) -> None:
    tokenizer = prepending(["\nSure", "\n\nOne", "Sure", "\nS"])
    ids = chat.encode_response(tokenizer, HI, answer)
    spelled = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", " ")
    assert spelled == f"{answer}</s>"
    whole = chat.encode_prompt(tokenizer, HI) + ids
    assert tokenizer.decode(whole).endswith(f"assistant:\n{answer}</s>")


def test_a_special_token_that_cannot_be_spelled_out_is_refused() -> None:
    tokenizer = tiny.tokenizer("zephyr")
    tokenizer.add_tokens(["</s"])
    plain = tokenizer._encode_plus
    tokenizer._encode_plus = lambda text, **o: plain(text, **{**o, "split_special_tokens": False})
    with pytest.raises(HarnessError, match="no other way to write '</s>'"):
        chat.encode_response(tokenizer, HI, "a </s> b")
