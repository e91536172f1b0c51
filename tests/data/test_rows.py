"""Preference rows in the forms people publish: read as what they say, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.data.files import Row
from harness.data.rows import Reader
from harness.records import HarnessError, Prompt

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
ASK = {"role": "user", "content": "Name a colour"}
KIND = {"role": "system", "content": "Be kind"}
BLUE, NO = ({"role": "assistant", "content": text} for text in ("Blue.", "No."))
PLAIN = {"prompt": "Name a colour", "chosen": "Blue.", "rejected": "No."}
ANSWERS = {"chosen": "Blue.", "rejected": "No."}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be kind"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello!"},
        {"from": "human", "value": "Name a colour"},
    ]
}
GPT = {"chosen": {"from": "gpt", "value": "Blue."}, "rejected": {"from": "gpt", "value": "No."}}
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Name a colour\n\nAssistant:"


def read(row: dict[str, Any], **columns: str) -> tuple[list[Prompt], Reader]:
    reader = Reader("data.files", "rows", columns)
    return reader.prompts([Row(row, "f:1")]), reader


def columns_of_turns(turns: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [turn[name] for turn in turns] for name in ("role", "content")}


READ: dict[str, tuple[dict[str, Any], list[Any]]] = {
    # TRL
    "text": (PLAIN, [ASK]),
    "prompt of its own, turns": (
        {"prompt": [KIND, ASK], "chosen": [BLUE], "rejected": [NO]},
        [KIND, ASK],
    ),
    "prompt of its own, answers of several turns": (
        {"prompt": [KIND, HI[0]], "chosen": [HI[1], ASK, BLUE], "rejected": [HI[1], ASK, NO]},
        [KIND, *HI, ASK],
    ),
    "prompt that both share": (
        {"chosen": [*HI, ASK, BLUE], "rejected": [*HI, ASK, NO]},
        [*HI, ASK],
    ),
    "text prompt beside whole conversations": (
        {"prompt": "Name a colour ", "chosen": [KIND, ASK, BLUE], "rejected": [KIND, ASK, NO]},
        [KIND, ASK],
    ),
    "turns as the prompt and text as the answers": ({"prompt": [*HI, ASK], **ANSWERS}, [*HI, ASK]),
    "content in parts of text": (
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Name "},
                        {"type": "text", "text": "a colour"},
                    ],
                }
            ],
            **ANSWERS,
        },
        [ASK],
    ),
    # Anthropic
    "transcripts": ({"chosen": f"{HH} Blue.", "rejected": f"{HH} No."}, [*HI, ASK]),
    "an open transcript as the prompt": (
        {"prompt": HH, "chosen": " Blue.", "rejected": " No."},
        [*HI, ASK],
    ),
    "an open transcript without its first blank lines": (
        {"prompt": HH.strip(), **ANSWERS},
        [*HI, ASK],
    ),
    "transcripts without their first blank lines": (
        {"chosen": f"{HH} Blue.".strip(), "rejected": f"{HH} No.".strip()},
        [*HI, ASK],
    ),
    "transcripts with the prompt beside them": (
        {"prompt": HH, "chosen": f"{HH} Blue.", "rejected": f"{HH} No."},
        [*HI, ASK],
    ),
    "transcripts with Windows line ends": (
        {
            "chosen": f"{HH} Blue.".replace("\n", "\r\n"),
            "rejected": f"{HH} No.".replace("\n", "\r\n"),
        },
        [*HI, ASK],
    ),
    # UltraFeedback
    "binarized, with the chosen conversation once more": (
        {
            "prompt": "Name a colour",
            "prompt_id": "abc",
            "chosen": [ASK, BLUE],
            "rejected": [ASK, NO],
            "messages": [ASK, BLUE],
            "score_chosen": 8.0,
            "score_rejected": 5.0,
        },
        [ASK],
    ),
    # ShareGPT and LLaMA-Factory
    "conversations with answers as turns": ({**SHAREGPT, **GPT}, [KIND, *HI, ASK]),
    "conversations with answers as text": ({**SHAREGPT, **ANSWERS}, [KIND, *HI, ASK]),
    "instruction, input, system and history": (
        {
            "instruction": "Name",
            "input": "a colour",
            "system": "Be kind",
            "history": [["Hi", "Hello!"]],
            **ANSWERS,
        },
        [KIND, *HI, {"role": "user", "content": "Name\na colour"}],
    ),
    "instruction with an empty input": (
        {"instruction": "Name a colour", "input": "", "system": "", "history": [], **ANSWERS},
        [ASK],
    ),
    "history as JSON text of turns": (
        {"prompt": "Name a colour", "history": json.dumps(HI), **ANSWERS},
        [*HI, ASK],
    ),
    # axolotl and ms-swift
    "messages with answers as turns": (
        {"messages": [KIND, ASK], "chosen": BLUE, "rejected": NO},
        [KIND, ASK],
    ),
    "question": ({"question": "Name a colour", **ANSWERS}, [ASK]),
    "system and question": (
        {"system": "Be kind", "question": "Name a colour", **ANSWERS},
        [KIND, ASK],
    ),
    "system and input": ({"system": "Be kind", "input": "Name a colour", **ANSWERS}, [KIND, ASK]),
    "messages with a rejected answer": (
        {"messages": [KIND, ASK, BLUE], "rejected_response": "No."},
        [KIND, ASK],
    ),
    "messages with rejected messages": (
        {"messages": [*HI, ASK, BLUE], "rejected_messages": [*HI, ASK, NO]},
        [*HI, ASK],
    ),
    "OpenAI's preference form": (
        {
            "input": {"messages": [KIND, ASK], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [BLUE],
            "non_preferred_output": [NO],
        },
        [KIND, ASK],
    ),
    # How columns are written
    "turns as JSON text": (
        {"chosen": json.dumps([*HI, ASK, BLUE]), "rejected": json.dumps([*HI, ASK, NO])},
        [*HI, ASK],
    ),
    "answers as JSON text with sorted keys": (
        {
            "prompt": "Name a colour",
            "chosen": json.dumps([BLUE], sort_keys=True),
            "rejected": json.dumps(NO, sort_keys=True),
        },
        [ASK],
    ),
    "ShareGPT turns as JSON text": (
        {"conversations": json.dumps(SHAREGPT["conversations"]), **ANSWERS},
        [KIND, *HI, ASK],
    ),
    "columns of turns": (
        {
            "chosen": columns_of_turns([*HI, ASK, BLUE]),
            "rejected": columns_of_turns([*HI, ASK, NO]),
        },
        [*HI, ASK],
    ),
    "no tools, said in several ways": (
        {**PLAIN, "tools": "[]", "images": [], "functions": None, "videos": ""},
        [ASK],
    ),
}


@pytest.mark.parametrize("form", READ)
def test_a_published_form_says_what_it_says(form: str) -> None:
    row, messages = READ[form]
    (prompt,), reader = read(row)
    assert list(prompt.messages) == messages
    assert (prompt.chosen.strip(), prompt.rejected.strip()) == ("Blue.", "No.")
    assert reader.left_out() == ()


def test_an_answer_that_is_a_dialogue_is_text() -> None:
    dialogue = "Human: Hi\n\nAssistant: Hello!"
    (prompt,), _ = read({"prompt": "Write a dialogue", "chosen": dialogue, "rejected": "No."})
    assert prompt.chosen == dialogue


@pytest.mark.parametrize(
    "text", ['[{"name": "Ann"}]', '{"content": 3}', '{"from": "Paris", "value": 2}', "[]", "null"]
)
def test_an_answer_that_is_json_is_text(text: str) -> None:
    (prompt,), _ = read({"prompt": "Write JSON", "chosen": text, "rejected": "No."})
    assert prompt.chosen == text


def test_columns_are_named_by_the_study() -> None:
    row = {"ask": "Name a colour", "good": "Blue.", "bad": "No.", "prompt": "a note"}
    (prompt,), reader = read(row, prompt="ask", chosen="good", rejected="bad")
    assert (prompt.messages, prompt.chosen, prompt.rejected) == ((ASK,), "Blue.", "No.")
    assert reader.left_out() == ()
    with pytest.raises(HarnessError, match=r"f:1: data\.columns\.chosen names column 'godo'; the"):
        read(row, prompt="ask", chosen="godo", rejected="bad")
    with pytest.raises(
        HarnessError, match=r"data\.columns\.promt is no column of ours; allowed: ch"
    ):
        read(row, promt="ask")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "f:1: no column 'rejected'.*has: prompt, ch"),
    "no prompt": (ANSWERS, "f:1, column chosen: plain text needs a column prompt"),
    "a lone answer": (
        {"chosen": [BLUE], "rejected": "No."},
        "f:1, column chosen: a lone assistant turn needs a column prompt",
    ),
    "a number": (
        {**PLAIN, "chosen": 7},
        "f:1, column chosen: text or a list of turns is wanted, this is a int",
    ),
    "bytes": ({**PLAIN, "prompt": b"Hi"}, "f:1, column prompt: text or a list .* this is a bytes"),
    "another role": (
        {**PLAIN, "chosen": [ASK, {"role": "bot", "content": "x"}]},
        "f:1, column chosen: turn 2 has role 'bot'; allowed: system, user, assistant",
    ),
    "a tool's turn": (
        {**PLAIN, "prompt": [ASK, {"role": "tool", "content": "7"}]},
        "f:1, column prompt: turn 2 has role 'tool'",
    ),
    "JSON text whose role is no text": (
        {
            **PLAIN,
            "chosen": '[{"role": ["user"], "content": "a"}, {"role": "user", "content": ""}]',
        },
        "f:1, column chosen: turn 1 is not",
    ),
    "half a surrogate pair, told in characters": (
        {**PLAIN, "prompt": ["\ud800"]},
        r"f:1, column prompt: turn 1 is not .*: \\ud800",
    ),
    "tools beside OpenAI's messages": (
        {
            "input": {"messages": [ASK], "tools": [{"type": "function"}]},
            "preferred_output": [BLUE],
            "non_preferred_output": [NO],
        },
        "f:1: 'tools' is not read here",
    ),
    "a thought under another name": (
        {**PLAIN, "chosen": [{**BLUE, "reasoning": "Hm"}]},
        "f:1, column chosen: turn 1: 'reasoning' is not read here",
    ),
    "a call without content": (
        {**PLAIN, "chosen": [{"role": "assistant", "tool_calls": [{"id": 1}]}]},
        "f:1, column chosen: turn 1: 'tool_calls' is not read here",
    ),
    "a turn whose text has another name": (
        {**PLAIN, "prompt": [{"role": "user", "text": "Name a colour"}]},
        "f:1, column prompt: turn 1 has no content: ",
    ),
    "a list of text": ({**PLAIN, "prompt": ["hello"]}, "f:1, column prompt: turn 1 is not"),
    "tools": ({**PLAIN, "tools": '[{"name": "search"}]'}, "f:1: 'tools' is not read here"),
    "images": ({**PLAIN, "images": ["a.png"]}, "f:1: 'images' is not read here"),
    "a call in a turn": (
        {
            "prompt": "Search",
            "chosen": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
            "rejected": "No.",
        },
        "f:1, column chosen: turn 1: 'tool_calls' is not read here",
    ),
    "an image in a turn": (
        {**PLAIN, "prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "f:1, column prompt: turn 1 is not .*its content is",
    ),
    "Python's text of turns": (
        {"chosen": str([ASK, BLUE]), "rejected": str([ASK, NO])},
        "f:1, column chosen: turns written as text that is no JSON",
    ),
    "JSON text cut off": (
        {**PLAIN, "chosen": json.dumps([ASK, BLUE])[:-3]},
        "f:1, column chosen: turns written as text that is no JSON",
    ),
    "history as text": (
        {**PLAIN, "history": "we talked"},
        r"f:1, column history: a list of \[user, assistant\] pairs is wanted",
    ),
    "KTO": (
        {"prompt": "a", "completion": "b", "label": True},
        r"f:1: no column 'chosen' \(unpaired rows \(KTO\)",
    ),
    "UltraFeedback's completions": (
        {"instruction": "a", "completions": [{"response": "b", "overall_score": 7}]},
        r"f:1: no column 'chosen' \(answers with scores.*highest overall_score as chosen",
    ),
    "an image beside an empty text": (
        {"prompt": [{"role": "user", "content": [{"type": "image", "text": ""}]}], **ANSWERS},
        "f:1, column prompt: turn 1 is not .*its content is .*'image'",
    ),
    "two answers and a label": (
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 1},
        "two answers with a label beside them",
    ),
    "two answers counted from 1": (
        {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": 1},
        "two answers with a label beside them",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_read_is_refused_by_place(form: str) -> None:
    row, message = REFUSED[form]
    with pytest.raises(HarnessError, match=message):
        read(row)


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "equal answers": ({**PLAIN, "rejected": "Blue. "}, "identical answers"),
    "blank": ({**PLAIN, "chosen": " "}, "empty answer"),
    "null": ({**PLAIN, "rejected": None}, "empty answer"),
    "NaN": ({**PLAIN, "chosen": float("nan")}, "empty answer"),
    "null in a turn": (
        {**PLAIN, "chosen": [{"role": "assistant", "content": None}]},
        "empty answer",
    ),
    "columns of no turns": ({**PLAIN, "chosen": columns_of_turns([])}, "empty answer"),
    "a prompt of no turns": ({**PLAIN, "prompt": columns_of_turns([])}, "empty prompt"),
    "no prompt in this row": ({**PLAIN, "prompt": None}, "empty prompt"),
    "different prompts": (
        {"chosen": [*HI, ASK, BLUE], "rejected": [HI[0], ASK, NO]},
        "prompts differ",
    ),
    "answers that part before their last turn": (
        {"prompt": [HI[0]], "chosen": [HI[1], ASK, BLUE], "rejected": [BLUE, ASK, NO]},
        "prompts differ",
    ),
    "a transcript without an answer": (
        {"chosen": "\n\nHuman: Hi", "rejected": f"{HH} No."},
        "no assistant turn at the end",
    ),
    "a prompt that is not the conversation's": (
        {"prompt": "Name a tree", "chosen": [ASK, BLUE], "rejected": [ASK, NO]},
        "column prompt holds another prompt than the answers",
    ),
    "two prompts": (
        {**PLAIN, "question": "Name a tree"},
        "column question holds another prompt than the answers",
    ),
    "two system turns": (
        {"system": "Be rude", "prompt": [KIND, ASK], **ANSWERS},
        "column system holds another text than the system turn",
    ),
    "messages that end in another answer": (
        {"messages": [ASK, HI[1]], **ANSWERS},
        "column messages holds another prompt than the answers",
    ),
    "a tie": ({**PLAIN, "label": "Tie (both bad)"}, "labelled a tie"),
    "a tie by its status": ({**PLAIN, "status": "tie"}, "labelled a tie"),
    "another winner": ({**PLAIN, "winner": "Rejected"}, "labelled the other way"),
    "scores as text the other way": (
        {**PLAIN, "chosen_score": "3.5", "rejected_score": "10"},
        "the rejected answer has the higher score",
    ),
    "scores the other way": (
        {**PLAIN, "score_chosen": 3, "score_rejected": 8},
        "the rejected answer has the higher score",
    ),
    "ratings the other way": (
        {**PLAIN, "chosen-rating": 3.5, "rejected-rating": 4},
        "the rejected answer has the higher score",
    ),
    "half a surrogate pair": (
        {**PLAIN, "chosen": "Blue \ud83d."},
        "a lone surrogate or a null character in its text",
    ),
    "half a surrogate pair in its name": (
        {**PLAIN, "id": "\udfff"},
        "a lone surrogate or a null character in its text",
    ),
    "a null character": (
        {**PLAIN, "prompt": "Name\0"},
        "a lone surrogate or a null character in its text",
    ),
}


@pytest.mark.parametrize("form", LEFT_OUT)
def test_a_row_that_is_no_pair_is_left_out_by_place(form: str) -> None:
    row, reason = LEFT_OUT[form]
    prompts, reader = read(row)
    (left,) = reader.left_out()
    assert prompts == []
    assert (left.reason, left.count, left.of, left.examples) == (reason, 1, 1, ("f:1",))


def test_columns_of_text_that_are_not_read_are_told() -> None:
    row = {**PLAIN, "context": "In spring.", "source": "web", "chosen-rating": 5, "model": "m"}
    (_,), reader = read(row)
    (left,) = reader.left_out()
    assert (left.what, left.reason, left.examples) == (
        "columns of rows",
        "'context' is not read",
        ("f:1",),
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("weight", 0.0),
        ("sample_weight", 2),
        ("margin", -1),
        ("reference_chosen_logps", -3.5),
        ("split", "test"),
        ("label", 0),
        ("winner", "b"),
        ("status", "swapped"),
    ],
)
def test_a_column_that_would_weigh_a_row_is_told(column: str, value: Any) -> None:
    (_,), reader = read({**PLAIN, column: value})
    assert [one.reason for one in reader.left_out()] == [f"{column!r} is not read"]


def test_what_turns_say_beside_their_text_is_told() -> None:
    said = {**BLUE, "train": False, "weight": 0, "model": "m", "name": "Ann", "thoughts": None}
    (_,), reader = read({"prompt": [{**ASK, "toxic": "no"}], "chosen": [said], "rejected": [NO]})
    assert [one.reason for one in reader.left_out()] == [
        "'chosen[].train' is not read",
        "'chosen[].weight' is not read",
        "'prompt[].toxic' is not read",
    ]


def test_ids_come_from_the_data_or_the_content() -> None:
    def name(**changes: Any) -> str:
        (prompt,), _ = read({**PLAIN, **changes})
        return prompt.id

    assert (name(prompt_id="abc"), name(id=0)) == ("abc", "0")
    assert name(id=float("nan")) == name(chosen="Green.") == name()
    assert name(prompt="Name a tree") != name()


def test_repeated_ids_are_told_apart() -> None:
    rows = [Row({**PLAIN, "chosen": text}, "f") for text in ("Blue.", "Green.", "Red.")]
    first, *others = (one.id for one in Reader("data.files", "rows").prompts(rows))
    assert others == [f"{first}#2", f"{first}#3"]
