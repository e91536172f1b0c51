"""alpaca_eval's pairwise annotator with its network call replaced: all prompts of all repeats go to
the judge in one batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.evaluate import libraries
from harness.judge import verdicts
from harness.judge.client import JudgeClient, JudgeReply, JudgeRequest
from harness.records import HarnessError, Status
from harness.study.sections import JudgeSettings

OFFICIAL_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
TEXT_ANNOTATOR = "alpaca_eval_gpt4"
"""The library's deterministic one that needs no tools: the judge writes a ranking as text."""
ORDER_SEED = 0
"""The library's default: the published annotations were ordered with it."""
SENT = ("max_tokens", "temperature", "top_p", "logprobs", "top_logprobs")
"""Sampling settings of an annotator that are passed on; others are refused rather than dropped. One
that reads text has the judge's own: its reply may hold thinking, and samples need a temperature.
"""
OF_THE_ENDPOINT = ("model_name", "requires_chatml", "client_kwargs", "price_per_token")
"""Where the library would ask, which is here the judge's settings."""
_RANKING = re.compile(r"\[\s*\{[^\[\]]*?['\"]rank['\"][^\[\]]*\]")
_RANKED = re.compile(r"['\"](model|rank)['\"]\s*:\s*['\"]?([\w.-]+)")

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
    """preference: 1 to 2 (output_2 is better), or None. switched: output_2 was shown first."""

    preference: float | None
    status: Status
    switched: bool = False
    reason: str = ""

    def fields(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"score_status": fields.pop("status")} | fields


def preference_of(value: Any) -> float | None:
    """The library's preference, 1 to 2; 0 is its older word for a draw, -1 for unparsed."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    number = 1.5 if number == 0.0 else number
    return number if 1.0 <= number <= 2.0 else None


def annotator_of(judge: JudgeSettings, given: str) -> str:
    """The annotator that asks this judge. given: the benchmark's setting."""
    if judge.annotator:
        return judge.annotator
    return TEXT_ANNOTATOR if judge.verdict == "text" and given == OFFICIAL_ANNOTATOR else given


def pooled(
    drawn: Mapping[tuple[str, int], Annotation], samples: int
) -> dict[tuple[str, int], Annotation]:
    """(pair id, repeat) → the mean of its ``samples`` annotations, in ``drawn`` one by one."""
    found: dict[tuple[str, int], Annotation] = {}
    for name, call in drawn:
        if call % samples == 0:
            notes = [drawn[name, call + number] for number in range(samples)]
            mean, status = verdicts.mean_of([(note.preference, note.status) for note in notes])
            found[name, call // samples] = replace(notes[0], preference=mean, status=status)
    return found


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
        unknown = sorted(set(single.completions_kwargs) - {*OF_THE_ENDPOINT, *SENT})
        if unknown or single.batch_size != 1:
            wanted = ", ".join(unknown) or "several examples in a prompt"
            raise HarnessError(f"{key} {name!r} wants {wanted}, which is not supported")
        reads, wanted = "logprobs" if by_logprobs(single) else "text", exchange.client.judge.verdict
        if wanted and reads != wanted:
            raise HarnessError(
                f"{key} {name!r} reads {reads}, but judge.verdict is {wanted}: change one of them"
            )
        exchange.watch(single)
    return pool


def how_read(name: str, judge: JudgeSettings) -> str:
    """How an annotator's verdicts are read from this judge, in words."""
    library = libraries.alpaca_eval()
    folder = library.constants.EVALUATORS_CONFIG_DIR
    (config,) = library.utils.load_configs(name, relative_to=folder).values()
    if config.get("fn_completion_parser") == "logprob_parser":
        return "log-probabilities"
    return "text" if judge.samples == 1 else f"the mean of {judge.samples} verdicts as text"


def by_logprobs(single: Any) -> bool:
    """Whether one of the library's annotators reads log-probabilities."""
    return "numerator_token" in getattr(single.fn_completion_parser, "keywords", {})


class _Exchange:
    """Stands in for the annotator's completion function; the first repeat asks for all of them."""

    def __init__(self, client: JudgeClient, names: Mapping[Shown, str], repeats: int) -> None:
        self.client, self.names, self.repeats = client, names, repeats
        self.repeat = 0
        self.shown: list[Shown] = []
        self.switched: dict[Shown, bool] = {}
        self.replies: dict[tuple[Shown, int], JudgeReply] = {}

    def watch(self, single: Any) -> None:
        """Learn each prompt's pair, which the library shuffles, and complete by the judge."""
        make_prompts = single._make_prompts
        reading = Reading(single.fn_completion_parser, by_logprobs(single))

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
            params = {name: kwargs[name] for name in SENT if name in kwargs and reading.logprobs}
            return self.complete(prompts, params, reading)

        single._make_prompts = recorded
        single.fn_completions = complete

    def complete(
        self, prompts: Sequence[str], params: Mapping[str, Any], reading: Reading
    ) -> dict[str, list[Any]]:
        """The library's completions; a failed reply is one that its parser reads as missing."""
        if not self.replies:
            chatml = libraries.alpaca_eval().utils.prompt_to_chatml
            messages = [tuple(chatml(prompt.strip())) for prompt in prompts]
            asked = list(zip(self.shown, messages, strict=True))
            requests = []
            for repeat in range(self.repeats):
                requests += [JudgeRequest(self.names[k], m, params, repeat) for k, m in asked]
            replies = self.client.complete(requests, accept=reading.accepts)
            keys = self.shown * self.repeats
            for key, reply in zip(keys, replies, strict=True):
                self.replies[key, reply.repeat] = reply
        mine = [self.replies[key, self.repeat] for key in self.shown]
        return {
            "completions": [reading.text(reply) for reply in mine],
            "completions_all": [reading.choice(reply) for reply in mine],
        }

    def annotation(self, row: Mapping[str, Any]) -> Annotation:
        """The library's row as an annotation; what it could not read has no preference."""
        key = (row["instruction"], row["output_1"], row["output_2"])
        preference = preference_of(row.get("preference"))
        status: Status = "unparsed" if preference is None else "ok"
        reply = self.replies.get((key, self.repeat))
        if reply is None:
            return Annotation(preference, status, reason="identical outputs")
        if reply.status != "ok":
            preference, status = None, reply.status
        reason = "" if preference is not None else reply.error
        return Annotation(preference, status, self.switched[key], reason)


@dataclass(frozen=True)
class Reading:
    """How an annotator reads a reply: by its parser, from log-probabilities or from the text."""

    parse: Any
    logprobs: bool

    def accepts(self, reply: JudgeReply) -> bool:
        """Whether the parser finds a preference. HarnessError where log-probabilities lack."""
        listed = reply.logprobs
        if self.logprobs and (
            listed is None or (listed and not any(one["top_logprobs"] for one in listed))
        ):
            raise HarnessError(
                "the judge answered without the log-probabilities that the annotator reads (of "
                "both verdicts: top_logprobs); set judge.verdict: text, or name a judge that gives "
                "them"
            )
        try:
            values = list(self.parse(self.choice(reply) if self.logprobs else self.text(reply)))
        except (AssertionError, KeyError, ValueError, TypeError, AttributeError):
            return False
        return len(values) == 1 and values[0] is not None and values[0] == values[0]

    def text(self, reply: JudgeReply) -> str:
        """What the parser reads of a text: its one ranking, or all of it where it has none."""
        if reply.status != "ok":
            return ""
        found = {_ranking(written) for written in _RANKING.findall(reply.text)}
        if not found:
            return reply.text.strip()
        return found.pop() if len(found) == 1 else ""

    def choice(self, reply: JudgeReply) -> dict[str, Any]:
        """The reply as a parser of log-probabilities takes it: those of its verdict's tokens."""
        text, found = "", None
        if reply.status == "ok" and self.logprobs:
            text = reply.text
            found = _verdict(reply.logprobs or [], self.parse.keywords)
        top = [{"token": token, "logprob": value} for token, value in (found or {}).items()]
        return {
            "text": text,
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]},
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        }


def _ranking(written: str) -> str:
    """A ranking as the library reads it, or nothing where it does not rank two models 1 and 2."""
    rows = [dict(_RANKED.findall(row)) for row in written.split("}")[:-1]]
    ranks = {row.get("model", ""): row.get("rank", "") for row in rows}
    if len(rows) != 2 or sorted(ranks.values()) != ["1", "2"]:
        return ""
    return str([{"model": name, "rank": int(rank)} for name, rank in sorted(ranks.items())])


def _verdict(
    logprobs: Sequence[Mapping[str, Any]], parser: Mapping[str, Any]
) -> dict[str, float] | None:
    """Log-probabilities of the verdict's tokens: at the parser's place, or of the only token."""
    place = parser.get("log_prob_index", "batch")
    if not logprobs or (place == "batch" and len(logprobs) > 1):
        return None
    tokens = (parser["numerator_token"], *parser["denominator_tokens"])
    return verdicts.verdict_logprobs(logprobs[0 if place == "batch" else place], tokens)
