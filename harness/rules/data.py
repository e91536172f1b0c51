"""Stage ``data.rules``: real questions, each with one to a few constraints that can be checked, and
an offline pair.

An offline answer is the question's given one, changed so as to meet some of its constraints: the
chosen answer all but those of ``rules.unmet_offline``, the rejected one fewer. Held-out questions
are never trained on, under whatever constraints. Out-of-distribution prompts are held-out questions
with constraints that no offline answer meets, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.files import file_rows
from harness.model.chat import PromptTooLongError, encode_prompt
from harness.model.policy import load_tokenizer
from harness.records import HarnessError, Prompt, StageOutcome, StageTask, Tally, write_jsonl
from harness.rules.constraints import KINDS, Constraint, conflicts, constraints, edited, met, share
from harness.study.tasks import RulesDataTask

QUESTIONS = Path(__file__).with_name("questions.jsonl")
HELDOUT_SHARE = 0.25
"""Of the questions, for held-out prompts alone."""
TRIES = 200


def run(task: StageTask[RulesDataTask]) -> StageOutcome:
    """Write train.jsonl, heldout.jsonl, ood.jsonl and ranker.jsonl (records.Prompt; category: the
    kinds of its constraints).

    Prompts over ``max_prompt_length`` tokens are counted and others drawn in their place. Raises
    HarnessError for questions that are no text, and for settings that no prompt can follow.
    """
    settings = task.settings
    _check(settings)
    questions = _questions(Path(settings.path) if settings.path else QUESTIONS)
    rng = np.random.default_rng([settings.seed, 0])
    order = [questions[i] for i in rng.permutation(len(questions))]
    apart = max(1, round(HELDOUT_SHARE * len(order)))
    if len(order) < 2:
        raise HarnessError(f"{settings.path}: {len(order)} questions; two are needed")
    writer = _Writer(task)
    sizes = {
        "train": (settings.prompts, order[apart:]),
        "heldout": (settings.heldout, order[:apart]),
        "ood": (settings.ood, order[:apart]),
        "ranker": (settings.ranker_pairs, order[apart:]),
    }
    summary = {}
    for number, (name, (size, given)) in enumerate(sizes.items(), 1):
        rng = np.random.default_rng([settings.seed, number])
        found = islice(writer.prompts(name, given, rng), size)
        summary[name] = write_jsonl(task.out / f"{name}.jsonl", found)
    return StageOutcome(sum(summary.values()), summary=summary, left_out=writer.tally.left_out())


def _check(settings: RulesDataTask) -> None:
    rules = settings.rules
    for key, names in (("kinds", rules.kinds), ("unmet_offline", rules.unmet_offline)):
        unknown = sorted(set(names) - set(KINDS))
        if unknown:
            raise HarnessError(f"rules.{key} names {unknown[0]!r}; known: {', '.join(KINDS)}")
    if settings.ood and not rules.unmet_offline:
        raise HarnessError(
            "data.ood asks for prompts whose constraints no offline answer meets: name such kinds "
            "in rules.unmet_offline, or set data.ood: 0"
        )
    if not set(rules.kinds or KINDS) - set(rules.unmet_offline):
        raise HarnessError(
            "rules.unmet_offline names every kind, so no offline answer is better than another"
        )
    if not settings.prompts:
        raise HarnessError(
            "data.prompts is 0; questions and constraints give prompts without end: say how many"
        )
    for key in ("heldout_path", "columns"):
        if getattr(settings, key):
            raise HarnessError(f"data.{key} is not read with data.source: rules; leave it out")


def _questions(path: Path) -> list[tuple[str, str]]:
    """(question, answer) of every row. Raises HarnessError with file and line."""
    found = []
    for row in file_rows(path):
        question, answer = (row.values.get(name) for name in ("question", "answer"))
        if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
            raise HarnessError(
                f"{row.place}: a row of questions has the texts question and answer; this one "
                f"has: {', '.join(map(str, row.values))}"
            )
        found.append((str(question).strip(), str(answer).strip()))
    return found


class _Writer:
    """Makes prompts of questions."""

    def __init__(self, task: StageTask[RulesDataTask]) -> None:
        self.limit, rules = task.settings.max_prompt_length, task.settings.rules
        self.most, unmet = rules.most, set(rules.unmet_offline)
        usable = [one for one in constraints() if one.kind in (rules.kinds or KINDS)]
        self.met = [one for one in usable if one.kind not in unmet]
        self.unmet = [one for one in usable if one.kind in unmet]
        self.tokenizer = load_tokenizer(task.inputs["base"])
        self.tally = Tally(task.stage, "prompts drawn")

    def prompts(
        self, split: str, questions: Sequence[tuple[str, str]], rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """Endlessly, going through the questions in order."""
        too_long = f"over training.max_prompt_length = {self.limit} tokens"
        for count, question in enumerate(cycle(questions), 1):
            prompt = self._prompt(f"{split}-{count - 1:05d}", *question, split == "ood", rng)
            self.tally.read += 1
            try:
                encode_prompt(self.tokenizer, prompt.messages, self.limit)
                yield prompt
            except PromptTooLongError:
                self.tally.leave_out(too_long, prompt.id)
            if count % len(questions) == 0 and self.tally.count == self.tally.read:
                raise HarnessError(f"every question with its constraints is {too_long}")

    def _prompt(
        self, name: str, question: str, answer: str, ood: bool, rng: np.random.Generator
    ) -> Prompt:
        for _ in range(TRIES):
            asked = self._drawn(ood, rng)
            text = "\n".join([question, *(one.text for one in asked)])
            messages = ({"role": "user", "content": text},)
            kinds = ",".join(one.kind for one in asked)
            if ood:
                return Prompt(name, messages, answer, "", kinds)
            known = [one for one in asked if one in self.met]
            unseen = [one for one in asked if one not in self.met]
            fewer = [one for one in known if rng.random() < 0.5]
            best, worst = (edited(answer, some) for some in (known, fewer))
            by_chance = met(unseen, text, best) + met(unseen, text, worst)
            all_met = share(known, text, best) == 1 > share(known, text, worst)
            if all_met and not any(by_chance):
                return Prompt(name, messages, best, worst, kinds)
        raise HarnessError(
            f"{question!r}: {TRIES} draws of constraints gave no two answers of different "
            "reward; allow more kinds (rules.kinds), or take the question out"
        )

    def _drawn(self, ood: bool, rng: np.random.Generator) -> list[Constraint]:
        """One to ``most`` constraints without a conflict, one of them met offline (or none)."""
        size = 1 + int(rng.integers(self.most))
        first, rest = self.unmet if ood else self.met, self.unmet if ood else self.met + self.unmet
        found = [first[int(rng.integers(len(first)))]]
        for place in rng.permutation(len(rest)).tolist():
            taken: Any = [conflicts().get(one.kind, {one.kind}) for one in found]
            if len(found) < size and not any(rest[place].kind in kinds for kinds in taken):
                found.append(rest[place])
        return found
