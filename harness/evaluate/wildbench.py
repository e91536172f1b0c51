"""WildBench v2: real users' conversations, judged along a checklist. WB-Score rates an answer
alone, WB-Reward compares it with those of reference models.

Lin et al. 2024, arXiv 2406.04770, and allenai/WildBench, whose tasks, judge templates and reference
models' answers are given by path. WB-Score is (Y − 5) · 20 of a rating Y from 1 to 10; a reward is
±100 (much better or worse), ±50 (slightly) or 0, the mean over the references where there are
several. Both are means of task groups, weighted as its board weighs them; a task counts in every
group of its tags. The value of a task i is
Σ_g w_g (m_g + 1[i ∈ g] · n/n_g · (x_i − m_g)) / Σ w, whose mean over the n tasks is the weighted
mean of the groups' means m_g, so that intervals are the ones of every other score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from harness.evaluate import benchmark
from harness.judge import verdicts
from harness.judge.client import Found, JudgeReply, JudgeRequest, calls_of, judgments
from harness.judge.journal import finalise
from harness.records import (
    HarnessError,
    Score,
    StageOutcome,
    StageTask,
    Status,
    content_hash,
    request_seed,
)
from harness.study.sections import JudgeSettings, NonNegative, Section
from harness.study.tasks import Answers
from harness.study.work import Work

NAME = "wildbench"
CREATIVE, PLANNING = "Creative Tasks", "Planning & Reasoning"
MATH, INFORMATION = "Math & Data Analysis", "Information/Advice seeking"
CODING = "Coding & Debugging"
WEIGHTS = {CREATIVE: 0.5, PLANNING: 1.25, MATH: 1.0, INFORMATION: 0.75, CODING: 1.25}
GROUPS = {
    **dict.fromkeys(("Creative Writing", "Editing", "Brainstorming", "Role playing"), CREATIVE),
    **dict.fromkeys(("Reasoning", "Planning"), PLANNING),
    **dict.fromkeys(("Math", "Data Analysis"), MATH),
    **dict.fromkeys(("Information seeking", "Advice seeking"), INFORMATION),
    "Coding & Debugging": CODING,
    "Others": CREATIVE,
}
"""Tag of a task → its group."""
CHOICES = {"A++": 100.0, "A+": 50.0, "A=B": 0.0, "B+": -50.0, "B++": -100.0}
"""Choice → the reward of A."""
PLACES = {
    "score_template": ("history", "user_query", "model_output", "checklist"),
    "reward_template": ("history", "user_query", "candidate_A", "candidate_B", "checklist"),
}
PATTERNS = (
    re.compile(r"<\|(?:begin|end)_of_[A-Za-z_]{1,30}\|>"),
    re.compile(r"\{\$[A-Za-z_]{1,30}\}"),
    re.compile(r'"(?:score|choice)"\s*:'),
)
"""Delimiters, placeholders and verdict syntax, defused in answers."""


class WildBenchSettings(benchmark.JudgedSettings):
    tasks: str = ""
    """Its v2 test set as JSONL (id or session_id, conversation_input, checklist, primary_tag,
    secondary_tags); empty: the pocket world's.
    """
    score_template: str = ""
    """Its evaluation/eval_template.score.v2.md."""
    reward_template: str = ""
    """Its evaluation/eval_template.pairwise.v2.md; with references only."""
    references: dict[str, str] = {}
    """Reference model → JSONL of its answers (id or session_id, output); empty: no WB-Reward."""
    length_margin: NonNegative | None = None
    """A slight win is a tie where the winner is longer by more characters than this."""


class JudgeTask(Section):
    """``judge.wildbench``."""

    judge: JudgeSettings
    references: int
    """How many reference models; in the pocket world there is one."""
    length_margin: int | None


# -- its files -------------------------------------------------------------------------------------
def prepare(settings: WildBenchSettings, out: Path) -> dict[str, Any]:
    """questions.jsonl (id, conversation, checklist, groups, references), judge.json (templates)."""
    path = benchmark.given_file(settings, NAME, "tasks")
    given = benchmark.checked(benchmark.read_rows(path)[: settings.limit or None], _Task, path)
    rows = [_kept(row, f"{path}: row {number}") for number, row in enumerate(given, 1)]
    benchmark.by_key(rows, "id", path)
    for name, file in settings.references.items():
        answers = benchmark.checked(benchmark.read_rows(Path(file)), _Output, Path(file))
        outputs = {name_of(row): text_of(row["output"]) for row in answers}
        missing = [row["id"] for row in rows if row["id"] not in outputs]
        if missing:
            raise HarnessError(f"{file}: no answer to {', '.join(missing[:5])}")
        for row in rows:
            row["references"][name] = outputs[row["id"]]
    named, judge = {"score_template": settings.score_template}, {}
    if settings.references:
        named["reward_template"] = settings.reward_template
    for key in named:
        path = benchmark.given_file(settings, NAME, key)
        judge[key] = path.read_text(encoding="utf-8")
        absent = [place for place in PLACES[key] if f"{{${place}}}" not in judge[key]]
        if absent:
            raise HarnessError(f"{path}: no {{${absent[0]}}} in it")
    return {"expected": benchmark.write_questions(out, rows, judge)}


def name_of(row: Mapping[str, Any]) -> str:
    """A task's id in the owner's files."""
    return str(row.get("id") or row["session_id"])


def text_of(output: Any) -> str:
    """An answer, which the owner's files hold as a list of one."""
    return str(output[0] if isinstance(output, list) else output)


class _Turn(benchmark.Form):
    role: str
    content: str


class _Named(benchmark.Form):
    @model_validator(mode="after")
    def _is_named(self) -> Self:
        named = self.model_extra or {}
        if not named.get("id") and "session_id" not in named:
            raise ValueError("neither id nor session_id")
        return self


class _Task(_Named):
    conversation_input: Annotated[list[_Turn], Field(min_length=1)]
    checklist: list[Any]
    primary_tag: str
    secondary_tags: list[str]


class _Output(_Named):
    output: str | Annotated[list[Any], Field(min_length=1)]


def _kept(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    turns = [{"role": t["role"], "content": t["content"]} for t in row["conversation_input"]]
    tags = [row["primary_tag"], *row["secondary_tags"]]
    unknown = [tag for tag in tags if tag not in GROUPS]
    if unknown:
        raise HarnessError(f"{place}: unknown tag {unknown[0]!r}")
    if turns[-1]["role"] != "user":
        raise HarnessError(f"{place}: the last turn is not the user's")
    kept = {"id": name_of(row), "question": turns[-1]["content"], "conversation": turns}
    kept |= {"checklist": row["checklist"], "references": {}}
    return kept | {"groups": sorted({GROUPS[tag] for tag in tags})}


# -- judging ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Item:
    """A task with the model's answer, defused, and why it is not judged."""

    row: Mapping[str, Any]
    output: str
    status: Status
    flags: tuple[str, ...]

    @property
    def id(self) -> str:
        return str(self.row["id"])

    def first(self, reference: str) -> bool:
        """Whether the model's answer is shown as A, drawn once for each task and reference."""
        return request_seed(NAME, self.id, reference) % 2 == 0

    def requests(self, templates: Mapping[str, str]) -> list[JudgeRequest]:
        """A rating, and a comparison with each reference."""
        before = self.row["conversation"][:-1]
        values = {
            "history": "".join(f"{one['role'].upper()}: {one['content']}\n\n" for one in before),
            "user_query": self.row["question"],
            "checklist": "".join(f"- {one}\n" for one in self.row["checklist"]),
            "model_output": self.output,
        }
        texts = {"score": filled(templates["score_template"], values)}
        for name, other in self.row["references"].items():
            safe = verdicts.neutralise(other, PATTERNS)[0]
            a, b = (self.output, safe) if self.first(name) else (safe, self.output)
            shown = {**values, "candidate_A": a, "candidate_B": b}
            texts[name] = filled(templates["reward_template"], shown)
        return [
            JudgeRequest(f"{self.id}:{kind}", ({"role": "user", "content": text},), {})
            for kind, text in texts.items()
        ]


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with values in its places ``{$name}``, in one pass: values hold text alone."""
    return re.sub(r"\{\$(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def item_of(row: Mapping[str, Any]) -> Item:
    """A row of the answer file as it is judged."""
    said = str(row["output"])
    status, flags = verdicts.answer_status(row["status"], said)
    safe, found = verdicts.neutralise(said, PATTERNS)
    return Item(row, safe, status, (*flags, *["neutralised"] * bool(found)))


def value_of(kind: str, text: str) -> float | None:
    """WB-Score of a rating, or A's reward of a comparison, from the JSON object in a judgment."""
    inside = text[text.find("{") : text.rfind("}") + 1].replace("\n", " ")
    try:
        found = json.loads(re.sub(r",\s*\}$", "}", inside))
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if kind != "score":
        return CHOICES.get(str(found.get("choice", "")).strip())
    written = re.fullmatch(r"\s*(10(?:\.0+)?|[1-9](?:\.[0-9]+)?)\s*", str(found.get("score", "")))
    return 20.0 * (float(written[1]) - 5.0) if written else None


def rewarded(reward: float, ours: str, theirs: str, margin: int | None) -> float:
    """The model's reward after the length margin: a slight win of the longer answer is a tie."""
    longer = len(ours) - len(theirs) if reward > 0 else len(theirs) - len(ours)
    return 0.0 if margin is not None and abs(reward) == 50.0 and longer > margin else reward


def weighted(
    values: Mapping[str, float], groups: Mapping[str, Sequence[str]]
) -> tuple[float | None, dict[str, float]]:
    """(weighted mean of group means, every task's value). A group without tasks counts 0."""
    if not values:
        return None, {}
    found = dict.fromkeys(values, 0.0)
    whole = 0.0
    for group, weight in WEIGHTS.items():
        mine = [name for name in values if group in groups[name]]
        if not mine:
            continue
        share = weight / sum(WEIGHTS.values())
        mean = sum(values[name] for name in mine) / len(mine)
        whole += share * mean
        for name in found:
            found[name] += share * mean
        for name in mine:
            found[name] += share * len(values) / len(mine) * (values[name] - mean)
    return whole, found


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Stage ``judge.wildbench``: answer, benchmarks → scores, judgments, summary."""
    judge = task.settings.judge
    templates, rows = benchmark.judging(task, NAME)
    items = [item_of(row) for row in rows]
    asked = [item for item in items if item.status == "ok"]
    requests = [request for item in asked for request in item.requests(templates)]

    def read(reply: JudgeReply) -> dict[str, Any]:
        return {"value": value_of(reply.id.rpartition(":")[2], reply.text)}

    found, costs = judgments(judge, task, requests, read, "value")
    finalise(task.out, found)
    shown = (task.settings.length_margin, verdicts.judge_label(judge))
    return outcome(task, items, templates, found, judge, shown, costs)


def outcome(
    task: StageTask[Any],
    items: Sequence[Item],
    templates: Mapping[str, str],
    found: Found,
    judge: JudgeSettings,
    shown: tuple[int | None, str],
    costs: Mapping[str, float] | None = None,
) -> StageOutcome:
    """Scores and summary of the verdicts found by (task:score or task:reference, call): a metric's
    rows hold a task's value in the weighted mean, those of ``own_…`` its own. shown: the length
    margin, and the judge in the rows.
    """
    margin, named = shown
    asked = [[one.row[key] for key in ("conversation", "checklist", "references")] for one in items]
    told = [(one.id, *parts) for one, parts in zip(items, asked, strict=True)]
    version = f"v2 {content_hash(templates, told, length=12)}"
    groups = {item.id: item.row["groups"] for item in items}
    scores: list[Score] = []
    summary: dict[str, Any] = {}
    for repeat in range(judge.repeats):
        calls = calls_of(judge, repeat)
        for metric in ("score", "reward") if "reward_template" in templates else ("score",):
            drawn = {one.id: _drawn(one, metric, calls, found, margin) for one in items}
            own = {name: value for name, (value, _) in drawn.items() if value is not None}
            whole, values = weighted(own, groups)
            summary.setdefault(metric, whole)
            for item in items:
                status = drawn[item.id][1]
                source = content_hash(item.row["conversation"], item.row["output"], length=16)
                shared = (status, named, repeat, source)
                for name, value in ((metric, values), (f"own_{metric}", own)):
                    row = (item.id, item.id, name, value.get(item.id), *shared)
                    scores.append(Score(NAME, version, *row))
    reasons = {key: row["reason"] for key, row in found.items()}
    summary |= benchmark.flagged((one.id, one.flags) for one in items)
    summary |= {"verdicts_cut_off": verdicts.cut_off(reasons), "judge": judge.model}
    summary["benchmark_version"] = version
    return benchmark.finish(task, scores, summary, costs, primary="score")


def _drawn(
    item: Item, metric: str, calls: Iterable[int], found: Found, margin: int | None
) -> tuple[float | None, Status]:
    """A task's score or reward: mean over samples, then over references, none of them missing."""
    if item.status != "ok":
        return None, item.status
    means = []
    for name in ("score",) if metric == "score" else item.row["references"]:
        read = []
        for row in (found[f"{item.id}:{name}", call] for call in calls):
            value = row["value"]
            if value is not None and metric == "reward":
                lengths = str(item.row["output"]), item.row["references"][name]
                value = rewarded(value if item.first(name) else -value, *lengths, margin)
            read.append((value, row["score_status"]))
        means.append(verdicts.mean_of(read))
    failed = [status for value, status in means if value is None]
    if failed:
        return None, "error" if "error" in failed else failed[0]
    return sum(value or 0.0 for value, _ in means) / len(means), "ok"


# -- the record ------------------------------------------------------------------------------------
SIZE = benchmark.Size(NAME, "WildBench tasks", 1024, 64)


def work(count: benchmark.Counting, task: JudgeTask) -> Work:
    """A rating a task, and a comparison with every reference."""
    each = 1 + max(task.references, int(count.pocket))
    return SIZE.judged(count, task.judge, count.lengths.verdict_prompt, "judgments", each)


SCORE = benchmark.Measure(NAME, "score", "WB-Score", "points", 1, items="tasks", table=NAME)
REWARD = replace(SCORE, metric="reward", title="WB-Reward")


def measures(evaluation: Any) -> list[benchmark.Measure]:
    """WB-Reward where there is something to compare with."""
    section = evaluation.of(NAME)
    return [SCORE, REWARD] if section.references or not section.tasks else [SCORE]


BENCHMARK = benchmark.Benchmark(
    NAME,
    "WildBench",
    settings=WildBenchSettings,
    stage="judge.wildbench",
    run="harness.evaluate.wildbench:run",
    task=JudgeTask,
    settle=lambda asked: JudgeTask(
        judge=asked.judge,
        references=len(asked.settings.references),
        length_margin=asked.settings.length_margin,
    ),
    measures=measures,
    work=work,
    judged=True,
    questions=lambda task: benchmark.QuestionRows(NAME, task),
    answers=lambda settings: Answers(max_new_tokens=settings.max_new_tokens, temperature=0.0),
    asked=SIZE.asked,
    files=("tasks", "score_template"),
    other_files=("reward_template", "references"),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_wildbench",
    samples=benchmark.Samples(f"{NAME}.jsonl", "own_score", "WB-Score"),
    given=benchmark.GivenFiles(
        "harness.evaluate.given:wildbench_answers",
        "harness.evaluate.given:wildbench_verdicts",
        both=True,
        keys=("length_margin",),
    ),
)
