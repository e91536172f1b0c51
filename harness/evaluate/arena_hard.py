"""Arena-Hard v2: a judge's five-way verdict on the model's answer and a baseline's, in both orders.

Li et al. 2024, arXiv 2406.11939, and lmarena/arena-hard-auto, whose files (questions, answers of a
baseline, configuration with template and patterns, system prompts) are given by path. A verdict
"much better" counts three times; the win rate of a category is the mean over all votes, so that
questions weigh unequally: with S_i the votes for the model and W_i all votes of question i, it is
R = Σ S / Σ W. The value of a question is R + (S_i − R·W_i) / mean(W): its mean over the questions
is R, and its spread that of the ratio (the delta method), so that intervals are the ones of every
other score.

Any judge can be named and any baseline: the owner's boards have a judge and baselines of their own,
and the first of them takes out style by a fit over all its models (an option of its script, off by
default), which one checkpoint does not have: figures compare within a study.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

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
    read_jsonl,
)
from harness.study.sections import JudgeSettings, Section
from harness.study.tasks import Answers
from harness.study.work import Work
from harness.study.yaml import load_yaml

NAME = "arena_hard"
CATEGORIES = {"hard_prompt": "hard prompts", "creative_writing": "creative writing"}
STRONG = 3
"""Votes of a verdict "much better"."""
VOTES: Mapping[str, tuple[float, int]] = {
    "A>>B": (1.0, STRONG),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, STRONG),
    "B<<A": (1.0, STRONG),
    "B<A": (1.0, 1),
    "B=A": (0.5, 1),
    "A<B": (0.0, 1),
    "A<<B": (0.0, STRONG),
}
"""Verdict → (share of its votes for A, how many)."""
PATTERNS = (
    re.compile(r"\[\[?\s*[AB](?:[<>]{1,2}|=)[AB]\s*\]\]?", re.IGNORECASE),
    re.compile(r"<\|(?:User Prompt|The (?:Start|End) of [^|\n]{1,80})\|>", re.IGNORECASE),
)
"""Verdict syntax and delimiters, defused in answers."""
PLACES = ("QUESTION", "ANSWER_A", "ANSWER_B")


class ArenaHardSettings(benchmark.JudgedSettings):
    questions: str = ""
    """Its question.jsonl (uid, category, prompt); empty: the pocket world's."""
    baselines: dict[str, str] = {}
    """Category (hard_prompt, creative_writing) → a file of its model_answer folder, whose answers
    are to be beaten; ``any``: for the categories that are not named.
    """
    config: str = ""
    """Its config/arena-hard-v2.0.yaml: prompt_template, regex_patterns."""
    judge_prompts: str = ""
    """Its utils/judge_utils.py, of which JUDGE_SETTINGS is read, not run; or JSON: category →
    system prompt.
    """


class JudgeTask(Section):
    """``judge.arena_hard``."""

    judge: JudgeSettings


# -- its files -------------------------------------------------------------------------------------
class _Question(benchmark.Form):
    uid: Annotated[str, Field(min_length=1)]
    category: Literal["hard_prompt", "creative_writing"]
    prompt: str


def prepare(settings: ArenaHardSettings, out: Path) -> dict[str, Any]:
    """questions.jsonl (id, question, category, baseline) and judge.json (template and more)."""
    path = benchmark.given_file(settings, NAME, "questions")
    given = benchmark.read_rows(path)[: settings.limit or None]
    asked = benchmark.checked(given, _Question, path)
    benchmark.by_key(asked, "uid", path)
    answers = {name: _baseline(settings, name) for name in {row["category"] for row in asked}}
    rows = []
    for row in asked:
        file, texts = answers[row["category"]]
        if row["uid"] not in texts:
            raise HarnessError(f"{file}: no answer to question {row['uid']}")
        named = {"id": str(row["uid"]), "question": row["prompt"], "category": row["category"]}
        rows.append(named | {"baseline": texts[row["uid"]]})
    judge = _judge_files(settings, set(answers))
    return {"expected": benchmark.write_questions(out, rows, judge)}


def _baseline(settings: ArenaHardSettings, category: str) -> tuple[str, dict[str, str]]:
    """The baseline's file of a category, and its answers by uid."""
    name = settings.baselines.get(category) or settings.baselines.get("any", "")
    if not name or not Path(name).is_file():
        found = f"{name} does not exist" if name else "names no file"
        raise HarnessError(
            f"evaluation.{NAME}.baselines: {category} {found}; give a model_answer file "
            f"({category} or any)"
        )
    return name, {row["uid"]: row["answer"] for row in answers_of(Path(name))}


def answers_of(path: Path) -> list[dict[str, str]]:
    """Uid, model and answer of every row of a model_answer file."""
    found = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            last = row["messages"][-1]
            said = last["content"]
            text = (said["answer"] if isinstance(said, Mapping) else said) or ""
            if last.get("role", "assistant") != "assistant" or not isinstance(text, str):
                raise TypeError
            found.append({"uid": row["uid"], "model": str(row.get("model", "")), "answer": text})
        except (KeyError, IndexError, TypeError, AttributeError):
            wanted = "uid and messages, the last of them the assistant's text, wanted"
            raise HarnessError(f"{path}: row {number}: {wanted}") from None
    return found


def _judge_files(settings: ArenaHardSettings, categories: set[str]) -> dict[str, Any]:
    path = benchmark.given_file(settings, NAME, "config")
    config, _ = load_yaml(path)
    template = config.get("prompt_template") if isinstance(config, Mapping) else None
    missing = [place for place in PLACES if f"{{{place}}}" not in (template or "")]
    if missing:
        raise HarnessError(f"{path}: prompt_template without {{{missing[0]}}}")
    patterns = config.get("regex_patterns") or [config.get("regex_pattern")]
    try:
        for pattern in patterns:
            re.compile(pattern)
        str(template).format(**dict.fromkeys(PLACES, ""))
    except (re.error, TypeError, KeyError, IndexError, ValueError) as error:
        raise HarnessError(f"{path}: regex_patterns or prompt_template: {error}") from None
    path = benchmark.given_file(settings, NAME, "judge_prompts")
    systems = _systems(path)
    if categories - set(systems):
        raise HarnessError(f"{path}: no system prompt for {', '.join(categories - set(systems))}")
    kept = {name: systems[name] for name in sorted(categories)}
    return {"template": template, "patterns": patterns, "systems": kept}


class _Constants(ast.NodeTransformer):
    """Names in place of which their texts stand."""

    def __init__(self) -> None:
        self.texts: dict[str, ast.expr] = {}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.texts.get(node.id, node)


def _systems(path: Path) -> dict[str, str]:
    """Category → system prompt, from JSON or a Python file's assignments, which is not run."""
    text, constants = path.read_text(encoding="utf-8"), _Constants()
    try:
        if path.suffix == ".json":
            return {str(name): str(prompt) for name, prompt in json.loads(text).items()}
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                constants.texts[node.targets[0].id] = constants.visit(node.value)
        settings = ast.literal_eval(constants.texts["JUDGE_SETTINGS"])
        return {str(name): str(entry["system_prompt"]) for name, entry in settings.items()}
    except (SyntaxError, ValueError, KeyError, TypeError, AttributeError):
        wanted = "JUDGE_SETTINGS, a dictionary of texts, in a .py file, or JSON"
        raise HarnessError(f"{path}: {wanted}: category → system prompt") from None


# -- judging ---------------------------------------------------------------------------------------
@dataclass
class Item:
    """A question with both answers, defused; why it is not judged; what was noticed."""

    id: str
    category: str
    question: str
    answers: tuple[str, str]
    """The baseline's and the model's."""
    status: Status
    source: str
    flags: tuple[str, ...] = ()

    def request(self, judge: Mapping[str, Any], game: int) -> JudgeRequest:
        """The prompt of a game: the baseline is A in game 0, B in game 1."""
        a, b = self.answers if game == 0 else reversed(self.answers)
        said = judge["template"].format(QUESTION=self.question, ANSWER_A=a, ANSWER_B=b)
        messages = (
            {"role": "system", "content": judge["systems"][self.category]},
            {"role": "user", "content": said},
        )
        return JudgeRequest(f"{self.id}:{game}", messages, {})


def item_of(row: Mapping[str, Any]) -> Item:
    """A row of the answer file as it is judged."""
    said = str(row["output"])
    status, flags = verdicts.answer_status(row["status"], said)
    safe = [verdicts.neutralise(text, PATTERNS) for text in (row["baseline"], said)]
    flags += ["neutralised"] * bool(safe[1][1])
    source = content_hash(row["question"], row["baseline"], said, length=16)
    texts = (safe[0][0], safe[1][0])
    return Item(row["id"], row["category"], row["question"], texts, status, source, tuple(flags))


def label(text: str, patterns: Sequence[str]) -> str:
    """The verdict by the owner's rule: the last match of the first pattern that matches."""
    for pattern in patterns:
        found = [one for one in re.findall(pattern, text.upper()) if one]
        if found:
            last = str(found[-1]).strip("\n")
            return last if last in VOTES else ""
    return ""


def votes(labels: Sequence[str]) -> tuple[float, int]:
    """(votes for the model, all votes) of both games."""
    (first, weight_0), (second, weight_1) = (VOTES[one] for one in labels)
    return weight_0 * (1.0 - first) + weight_1 * second, weight_0 + weight_1


Tally = tuple[float, float]


def linearised(tallies: Mapping[str, Tally]) -> tuple[float | None, dict[str, float]]:
    """(R = Σ S / Σ W in percent, the value of every question); see the module."""
    if not tallies:
        return None, {}
    whole = sum(weight for _, weight in tallies.values())
    rate = sum(score for score, _ in tallies.values()) / whole
    mean = whole / len(tallies)
    values = {name: rate + (s - rate * w) / mean for name, (s, w) in tallies.items()}
    return 100.0 * rate, {name: 100.0 * value for name, value in values.items()}


def run(task: StageTask[JudgeTask]) -> StageOutcome:
    """Stage ``judge.arena_hard``: answer, benchmarks → scores, judgments, summary."""
    judge = task.settings.judge
    files, rows = benchmark.judging(task, NAME)
    items = [item_of(row) for row in rows]
    asked = [item for item in items if item.status == "ok"]
    requests = [item.request(files, game) for item in asked for game in (0, 1)]

    def read(reply: JudgeReply) -> dict[str, Any]:
        return {"label": label(reply.text, files["patterns"]) or None}

    found, costs = judgments(judge, task, requests, read, "label")
    finalise(task.out, found)
    return outcome(task, items, files, found, judge, verdicts.judge_label(judge), costs)


def outcome(
    task: StageTask[Any],
    items: Sequence[Item],
    files: Mapping[str, Any],
    found: Found,
    judge: JudgeSettings,
    named: str,
    costs: Mapping[str, float] | None = None,
) -> StageOutcome:
    """Scores and summary of the verdicts found by (question:game, call): ``votes`` is a question's
    own share, ``win_rate`` its value in its category's rate. files: of judge.json. named: the
    judge, in the rows.
    """
    shown = [(item.id, item.question, item.answers[0]) for item in items]
    version = f"v2 {content_hash(files, shown, length=12)}"
    scores: list[Score] = []
    summary: dict[str, Any] = {}
    for repeat in range(judge.repeats):
        calls = calls_of(judge, repeat)
        for category in CATEGORIES:
            mine = [item for item in items if item.category == category]
            read = {item.id: _tally(item, calls, found) for item in mine}
            tallies = {name: tally for name, (tally, _) in read.items() if tally}
            rate, values = linearised(tallies)
            summary.setdefault(category, rate)
            for item in mine:
                score, weight = tallies.get(item.id, (0.0, 0.0))
                own = 100.0 * score / weight if weight else None
                shared = (read[item.id][1], named, repeat, item.source)
                within = (f"{item.id}:{category}", item.id, "win_rate", values.get(item.id))
                scores.append(Score(NAME, version, *within, *shared))
                scores.append(Score(NAME, version, item.id, item.id, "votes", own, *shared))
    summary |= _summary(items, found, judge) | {"benchmark_version": version}
    return benchmark.finish(task, scores, summary, costs, primary="win_rate")


def _tally(item: Item, calls: Iterable[int], found: Found) -> tuple[Tally | None, Status]:
    """Mean votes (for the model, all) of samples with both games read, or why there are none."""
    if item.status != "ok":
        return None, item.status
    failed: list[Status] = []
    read = []
    for call in calls:
        both = [found.get((f"{item.id}:{game}", call)) for game in (0, 1)]
        failed += [row["score_status"] for row in both if row and row["score_status"] != "ok"]
        labels = [row["label"] for row in both if row and row["label"]]
        if len(labels) == 2:
            read.append(votes(labels))
    if "error" in failed or not read:
        return None, "error" if "error" in failed else failed[0]
    score, weight = (sum(part) / len(read) for part in zip(*read, strict=True))
    return (score, weight), "ok"


def _summary(items: Sequence[Item], found: Found, judge: JudgeSettings) -> dict[str, Any]:
    """Counts of verdicts, of questions whose games name different winners, and what was noticed."""
    flips = pairs = 0
    for item in items:
        both = [found.get((f"{item.id}:{game}", 0)) for game in (0, 1)]
        shares = [VOTES[row["label"]][0] for row in both if row and row["label"]]
        if len(shares) == 2:
            pairs += 1
            flips += shares[0] == shares[1] != 0.5
    return {
        "verdicts": dict(Counter(row["label"] or row["score_status"] for row in found.values())),
        "judged_both_ways": pairs,
        "winner_by_position": flips,
        "verdicts_cut_off": verdicts.cut_off({key: row["reason"] for key, row in found.items()}),
        "judge": judge.model,
        **benchmark.flagged((one.id, one.flags) for one in items),
    }


# -- the record ------------------------------------------------------------------------------------
WIN_RATE = benchmark.Measure(
    NAME, "win_rate", "Arena-Hard", "percent", 1, items="questions", table=NAME
)
SIZE = benchmark.Size(NAME, "Arena-Hard questions", 750, 64)


def work(count: benchmark.Counting, task: JudgeTask) -> Work:
    """Two games a question, each with a judgment in words."""
    return SIZE.judged(count, task.judge, count.lengths.verdict_prompt, "games", each=2)


BENCHMARK = benchmark.Benchmark(
    NAME,
    "Arena-Hard",
    settings=ArenaHardSettings,
    stage="judge.arena_hard",
    run="harness.evaluate.arena_hard:run",
    task=JudgeTask,
    settle=lambda asked: JudgeTask(judge=asked.judge),
    measures=lambda _evaluation: [
        replace(WIN_RATE, title=title, part=f":{category}", long=f"Arena-Hard {title}")
        for category, title in CATEGORIES.items()
    ],
    work=work,
    judged=True,
    questions=lambda task: benchmark.QuestionRows(NAME, task),
    answers=lambda settings: Answers(max_new_tokens=settings.max_new_tokens, temperature=0.0),
    asked=SIZE.asked,
    files=("questions", "baselines", "config", "judge_prompts"),
    prepare=prepare,
    pocket="harness.pocket.benchmarks:write_arena_hard",
    samples=benchmark.Samples(f"{NAME}.jsonl", "votes", "votes for it, percent"),
    given=benchmark.GivenFiles(
        "harness.evaluate.given:arena_hard_answers", "harness.evaluate.given:arena_hard_verdicts"
    ),
)
