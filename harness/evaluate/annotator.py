"""alpaca_eval's pairwise annotator with its network call replaced: all prompts of all repeats go to
the judge in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.evaluate import libraries
from harness.judge import verdicts
from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest
from harness.records import HarnessError, Status

OFFICIAL_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
ORDER_SEED = 0
"""The library's default: the published annotations were ordered with it."""
SENT = ("max_tokens", "temperature", "top_p", "logprobs", "top_logprobs")
"""Sampling settings of an annotator that are passed on; others are refused rather than dropped."""

Shown = tuple[str, str, str]
"""(instruction, output_1, output_2): what names a pair where the library drops ids."""


@dataclass(frozen=True)
class Pair:
    """output_1 is the baseline's text, output_2 the model's."""

    id: str
    instruction: str
    output_1: str
    output_2: str

    @property
    def shown(self) -> Shown:
        return (self.instruction, self.output_1, self.output_2)


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
        fields = asdict(self)
        return {"score_status": fields.pop("status")} | fields


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
    if not pairs:
        return {}
    if flipped:
        pairs = [replace(one, output_1=one.output_2, output_2=one.output_1) for one in pairs]
    exchange = _Exchange(client, {pair.shown: pair.id for pair in reversed(pairs)}, repeats)
    found: dict[tuple[str, int], Annotation] = {}
    for repeat in range(repeats):
        exchange.repeat = repeat
        library = _library_annotator(annotator, exchange)
        for row in library.annotate_pairs([asdict(pair) for pair in pairs], chunksize=None):
            note = exchange.annotation(row)
            if flipped and note.preference is not None:
                other = 3.0 - note.preference
                note = replace(note, preference=other, switched=not note.switched)
            found[row["id"], repeat] = note
    return found


def _library_annotator(name: str, exchange: _Exchange) -> Any:
    key = "evaluation.alpaca_eval.annotator"
    make = libraries.alpaca_eval().annotators.PairwiseAnnotator
    try:
        # No cache: the library's holds failed rows as -1 and knows neither prompt nor judge.
        pool = make(annotators_config=name, seed=ORDER_SEED, caching_path=None)
    except FileNotFoundError:
        raise HarnessError(f"{key}: alpaca_eval knows no annotator {name!r}") from None
    for single in pool.annotators.values():
        unknown = sorted(set(single.completions_kwargs) - {"model_name", *SENT})
        if unknown or single.batch_size != 1:
            wanted = ", ".join(unknown) or "several examples in a prompt"
            raise HarnessError(f"{key} {name!r} wants {wanted}, which is not supported")
        if "numerator_token" not in single.fn_completion_parser.keywords:
            raise HarnessError(f"{key} {name!r} does not read its verdict from log-probabilities")
        exchange.watch(single)
    return pool


class _Exchange:
    """Stands in for the annotator's completion function; the first repeat asks for all of them."""

    def __init__(self, client: JudgeClient, names: Mapping[Shown, str], repeats: int) -> None:
        self.client, self.names, self.repeats = client, names, repeats
        self.repeat = 0
        self.shown: list[Shown] = []
        self.switched: dict[Shown, bool] = {}
        self.replies: dict[tuple[Shown, int], JudgeReply] = {}

    def watch(self, single: Any) -> None:
        """Learn which pair each prompt belongs to (the library shuffles them) and take its
        completions from the judge.
        """
        make_prompts, parse = single._make_prompts, single.fn_completion_parser

        def recorded(frame: Any, *args: Any, **kwargs: Any) -> Any:
            prompts, frame = make_prompts(frame, *args, **kwargs)
            self.shown = []
            for row in frame.to_dict(orient="records"):
                outputs = [row["output_1"], row["output_2"]]
                switched = bool(row.get("is_switched_outputs", False))
                if switched:
                    outputs.reverse()
                self.shown.append((row["instruction"], outputs[0], outputs[1]))
                if self.repeat == 0:
                    self.switched[self.shown[-1]] = switched
            return prompts, frame

        def complete(prompts: Sequence[str], **kwargs: Any) -> dict[str, list[Any]]:
            params = {name: kwargs[name] for name in SENT if name in kwargs}
            return self.complete(prompts, params, parse)

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
            messages = [tuple(chatml(prompt.strip())) for prompt in prompts]
            asked = list(zip(self.shown, messages, strict=True))
            requests = []
            for repeat in range(self.repeats):
                requests += [JudgeRequest(self.names[k], m, params, repeat) for k, m in asked]
            replies = self.client.complete(requests, accept=lambda reply: _readable(reply, parse))
            keys = self.shown * self.repeats
            for key, reply in zip(keys, replies, strict=True):
                self.replies[key, reply.repeat] = reply
        mine = [self.replies[key, self.repeat] for key in self.shown]
        return {
            "completions": [reply.text for reply in mine],
            "completions_all": [_choice(reply, parse) for reply in mine],
        }

    def annotation(self, row: Mapping[str, Any]) -> Annotation:
        """The library's row as an annotation; what it could not read has no preference."""
        key = (row["instruction"], row["output_1"], row["output_2"])
        value = row.get("preference")
        preference = None
        if value is not None and 1.0 <= float(value) <= 2.0:
            preference = float(value)
        reply = self.replies.get((key, self.repeat))
        if reply is None:
            status: Status = "unparsed" if preference is None else "ok"
            return Annotation(preference, status, reason="identical outputs")
        if preference is not None and reply.status == "ok":
            return Annotation(preference, "ok", self.switched[key])
        status = "unparsed" if reply.status == "ok" else reply.status
        return Annotation(None, status, self.switched[key], reply.error)


def _choice(reply: JudgeReply, parse: Any) -> dict[str, Any]:
    """The reply as the annotator's parser takes it: the log-probabilities of its verdict's tokens,
    or none where there is no verdict.
    """
    text, found = "", None
    if reply.status == "ok":
        text = reply.text
        found = _verdict(reply.logprobs or [], parse.keywords)
    top = [{"token": token, "logprob": value} for token, value in (found or {}).items()]
    return {
        "text": text,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


def _verdict(
    logprobs: Sequence[Mapping[str, Any]], parser: Mapping[str, Any]
) -> dict[str, float] | None:
    """Log-probabilities of the verdict's tokens where the annotator's parser looks for them:
    at its ``log_prob_index``, or at the reply's only token.
    """
    place = parser.get("log_prob_index", "batch")
    if not logprobs or (place == "batch" and len(logprobs) > 1):
        return None
    tokens = (parser["numerator_token"], *parser["denominator_tokens"])
    return verdicts.verdict_logprobs(logprobs[0 if place == "batch" else place], tokens)


def _readable(reply: JudgeReply, parse: Any) -> bool:
    """Whether the annotator's own parser finds a preference in the reply."""
    if not reply.logprobs:
        return False
    try:
        values = list(parse(_choice(reply, parse)))
    except (AssertionError, KeyError, ValueError, TypeError):
        return False
    return len(values) == 1 and values[0] is not None and values[0] == values[0]
