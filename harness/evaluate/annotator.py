"""alpaca_eval's pairwise annotator with its network call replaced: all prompts of all repeats go to
the judge in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.evaluate import libraries
from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest
from harness.records import HarnessError, Status

OFFICIAL_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
ORDER_SEED = 0
"""The library's default: the published annotations were ordered with it."""
SENT = ("max_tokens", "temperature", "top_p", "logprobs", "top_logprobs")
"""Sampling settings of an annotator that are passed on; others are refused rather than dropped."""


@dataclass(frozen=True)
class Pair:
    """output_1 is the baseline's text, output_2 the model's."""

    id: str
    instruction: str
    output_1: str
    output_2: str


@dataclass(frozen=True)
class Annotation:
    """preference in 1..2 (2: output_2 is better) or None with the reason in ``status``. switched:
    output_2 was shown first.
    """

    preference: float | None
    status: Status
    switched: bool = False
    reason: str = ""

    def fields(self) -> dict[str, Any]:
        return {
            "preference": self.preference,
            "score_status": self.status,
            "switched": self.switched,
            "reason": self.reason,
        }


def annotate(
    pairs: Sequence[Pair],
    client: JudgeClient,
    *,
    annotator: str = OFFICIAL_ANNOTATOR,
    repeats: int = 1,
    flipped: bool = False,
) -> dict[tuple[str, int], Annotation]:
    """Annotation of every (pair id, repeat). flipped: each pair is shown in the other order than
    usual, preferences still about output_2.

    Pairs with equal outputs are 1.5 without a call (the library's rule). HarnessError when the
    annotator asks for what is not supported.
    """
    if flipped:
        pairs = [Pair(pair.id, pair.instruction, pair.output_2, pair.output_1) for pair in pairs]
    rows = [
        {"id": p.id, "instruction": p.instruction, "output_1": p.output_1, "output_2": p.output_2}
        for p in pairs
    ]
    exchange = _Exchange(
        client, {(p.instruction, p.output_1, p.output_2): p.id for p in reversed(pairs)}, repeats
    )
    found: dict[tuple[str, int], Annotation] = {}
    for repeat in range(repeats):
        exchange.repeat = repeat
        annotated = (
            _library_annotator(annotator, exchange).annotate_pairs(rows, chunksize=None)
            if rows
            else []
        )
        for row in annotated:
            note = exchange.annotation(row)
            if flipped and note.preference is not None:
                note = Annotation(
                    3.0 - note.preference, note.status, not note.switched, note.reason
                )
            found[row["id"], repeat] = note
    return found


def _library_annotator(name: str, exchange: _Exchange) -> Any:
    library = libraries.alpaca_eval()
    try:
        pool = library.annotators.PairwiseAnnotator(
            annotators_config=name, seed=ORDER_SEED, caching_path=None
        )
    except FileNotFoundError:
        raise HarnessError(
            f"evaluation.alpaca_eval.annotator: alpaca_eval knows no annotator {name!r}"
        ) from None
    for single in pool.annotators.values():
        unknown = sorted(set(single.completions_kwargs) - {"model_name", *SENT})
        if unknown or single.batch_size != 1:
            raise HarnessError(
                f"evaluation.alpaca_eval.annotator {name!r} wants "
                f"{', '.join(unknown) or 'several examples in a prompt'}, which is not supported"
            )
        exchange.watch(single)
    return pool


class _Exchange:
    """Stands in for the annotator's completion function; the first repeat asks for all of them."""

    def __init__(
        self, client: JudgeClient, names: Mapping[tuple[str, str, str], str], repeats: int
    ) -> None:
        self.client = client
        self.names = names
        self.repeats = repeats
        self.repeat = 0
        self.shown: list[tuple[tuple[str, str, str], bool]] = []
        self.replies: dict[tuple[tuple[str, str, str], int], JudgeReply] = {}
        self.switched: dict[tuple[str, str, str], bool] = {}

    def watch(self, single: Any) -> None:
        """Learn which pair each prompt belongs to (the library shuffles them) and take its
        completions from the judge.
        """
        make_prompts, parse = single._make_prompts, single.fn_completion_parser

        def recorded(frame: Any, *args: Any, **kwargs: Any) -> Any:
            prompts, frame = make_prompts(frame, *args, **kwargs)
            self.shown = []
            for row in frame.to_dict(orient="records"):
                switched = bool(row.get("is_switched_outputs", False))
                first, second = (
                    (row["output_2"], row["output_1"])
                    if switched
                    else (row["output_1"], row["output_2"])
                )
                self.shown.append(((row["instruction"], first, second), switched))
            return prompts, frame

        def complete(prompts: Sequence[str], **kwargs: Any) -> dict[str, list[Any]]:
            return self.complete(
                prompts, {name: kwargs[name] for name in SENT if name in kwargs}, parse
            )

        single._make_prompts = recorded
        single.fn_completions = complete

    def complete(
        self, prompts: Sequence[str], params: Mapping[str, Any], parse: Any
    ) -> dict[str, list[Any]]:
        """The library's completions dictionary. A failed reply becomes one that its parser reads as
        missing.
        """
        if not self.replies:
            chatml = libraries.alpaca_eval().utils.prompt_to_chatml
            self.switched = dict(self.shown)
            keys = [key for key, _ in self.shown]
            requests = [
                JudgeRequest(self.names[key], tuple(chatml(prompt.strip())), params, repeat)
                for repeat in range(self.repeats)
                for key, prompt in zip(keys, prompts, strict=True)
            ]
            replies = self.client.complete(requests, accept=lambda reply: _readable(reply, parse))
            self.replies = {
                (key, reply.repeat): reply
                for key, reply in zip(keys * self.repeats, replies, strict=True)
            }
        return {
            "completions": [self.replies[key, self.repeat].text for key, _ in self.shown],
            "completions_all": [_choice(self.replies[key, self.repeat]) for key, _ in self.shown],
        }

    def annotation(self, row: Mapping[str, Any]) -> Annotation:
        key = (row["instruction"], row["output_1"], row["output_2"])
        value = row.get("preference")
        preference = (
            None
            if value is None or value != value or not 1.0 <= float(value) <= 2.0
            else float(value)
        )
        reply = self.replies.get((key, self.repeat))
        if reply is None:
            return Annotation(
                preference,
                "ok" if preference is not None else "unparsed",
                reason="identical outputs",
            )
        if preference is not None and reply.status in ("ok", "truncated"):
            return Annotation(preference, "ok", self.switched[key])
        status: Status = "unparsed" if reply.status in ("ok", "truncated") else reply.status
        return Annotation(None, status, self.switched[key], reply.error)


def _choice(reply: JudgeReply) -> dict[str, Any]:
    usable = reply.status in ("ok", "truncated")
    content = (
        reply.logprobs
        if usable and reply.logprobs
        else [{"token": "", "logprob": 0.0, "top_logprobs": []}]
    )
    return {
        "text": reply.text if usable else "",
        "message": {"role": "assistant", "content": reply.text if usable else ""},
        "logprobs": {"content": content},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


def _readable(reply: JudgeReply, parse: Any) -> bool:
    """Whether the annotator's own parser finds a preference in the reply."""
    if not reply.logprobs:
        return False
    try:
        values = list(parse(_choice(reply)))
    except (AssertionError, KeyError, ValueError, TypeError):
        return False
    return len(values) == 1 and values[0] is not None and values[0] == values[0]
