"""What the user's files give. Stage ``data.files``: preference data from local files or the hub →
prompts with their offline pair. Stage ``benchmarks.files``: benchmark files, checked and laid out
the one way the scoring stages read them, a folder per benchmark.

How files and rows are read is `harness.data`'s; here they are told apart: which are held out, set
aside for a ranker, and trained on.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.files import Row, file_rows, hub_rows
from harness.data.rows import Reader, unique
from harness.evaluate.registry import BENCHMARKS
from harness.model.chat import PromptTooLongError, check_rows, encode_prompt
from harness.model.policy import load_tokenizer
from harness.records import (
    HarnessError,
    LeftOut,
    Prompt,
    StageOutcome,
    StageTask,
    Tally,
    content_hash,
    write_jsonl,
)
from harness.study.tasks import FileBenchmarksTask, FileDataTask


def run(task: StageTask[FileDataTask]) -> StageOutcome:
    """Write ``train.jsonl``, ``heldout.jsonl`` (records.Prompt) and an empty ``ood.jsonl``.

    Held-out prompts: drawn from ``heldout_path`` (or the hub's held-out split); without one, the
    last ``heldout`` usable rows of ``path``; only prompts within ``max_prompt_length`` tokens of
    the base. Training prompts: all the others, or ``prompts`` of them drawn by ``seed``, in the
    order of the file. A prompt that is held out is never trained on, whatever its blanks;
    ``ranker_pairs`` rows are set aside for a reward model in ``ranker.jsonl``. Fewer rows than
    asked for is an error, and so is a larger share left out than ``max_left_out``.
    """
    settings = task.settings
    if settings.ood:
        raise HarnessError(
            "data.ood asks for out-of-distribution prompts; only the pocket world has them: set "
            "it to 0"
        )
    train_rows, heldout_rows, where = _sources(settings)
    reader = Reader(task.stage, "rows", settings.columns)
    train = reader.prompts(train_rows)
    _check_share(reader.rows, settings.max_left_out, where)
    template = _under_template(task, train, reader)
    left_out = [*reader.left_out()]
    wanted = settings.heldout
    if heldout_rows is None:
        fitting = _Fitting(task, reader)
        heldout = list(reversed(list(islice(filter(fitting, reversed(train)), wanted))))
        taken = {prompt.id for prompt in heldout}
        train = [prompt for prompt in train if prompt.id not in taken]
        if len(heldout) < wanted or not train:
            raise HarnessError(
                f"{where}: {len(train) + len(heldout)} usable rows, {len(heldout)} of them short "
                f"enough to be held out; data.heldout takes {wanted}, and none is left to train on"
            )
    else:
        apart = Reader(task.stage, "held-out rows", settings.columns)
        given = apart.prompts(heldout_rows)
        theirs = settings.heldout_path or f"{where} ({settings.heldout_split})"
        _check_share(apart.rows, settings.max_left_out, theirs)
        template += _under_template(task, given, apart)
        left_out += apart.left_out()
        fitting = _Fitting(task, apart)
        heldout = _drawn(list(filter(fitting, given)), wanted, settings, "heldout", theirs)
    trainable, repeated = _without(train, heldout, reader)
    aside = settings.ranker_pairs
    if aside:
        for_ranker = _drawn(trainable, aside, settings, "ranker_pairs", where)
        own, taken = {one.id for one in for_ranker}, set(map(_pair_of, for_ranker))
        for one in trainable:
            if _pair_of(one) in taken and one.id not in own:
                repeated.leave_out("pair is set aside for the ranker", reader.places[one.id])
        trainable = [one for one in trainable if _pair_of(one) not in taken]
        write_jsonl(task.out / "ranker.jsonl", for_ranker)
    train = _drawn(trainable, settings.prompts, settings, "prompts", where)
    write_jsonl(task.out / "train.jsonl", train)
    write_jsonl(task.out / "heldout.jsonl", unique(heldout, {prompt.id for prompt in train}))
    write_jsonl(task.out / "ood.jsonl", [])
    summary = {"read": reader.rows.read, "train": len(train), "heldout": len(heldout)}
    summary |= {"doubled": len(train) - len(set(map(_pair_of, train))), **template}
    left_out += [*fitting.tally.left_out(), *repeated.left_out()]
    return StageOutcome(len(train) + len(heldout), summary=summary, left_out=tuple(left_out))


def _under_template(
    task: StageTask[FileDataTask], prompts: Sequence[Prompt], reader: Reader
) -> Counter[str]:
    """What the base's chat template does to the rows; see ``check_rows``."""
    rows = ((reader.places[one.id], one.messages, (one.chosen, one.rejected)) for one in prompts)
    join = task.settings.system_turns == "join"
    return Counter(check_rows(load_tokenizer(task.inputs["base"]), rows, join_system=join))


class _Fitting:
    """Whether checkpoints can be asked a held-out prompt; counts those that are too long."""

    def __init__(self, task: StageTask[FileDataTask], reader: Reader) -> None:
        self.places = reader.places
        self.tally = Tally(task.stage, "held-out prompts")
        self.tokenizer = load_tokenizer(task.inputs["base"])
        self.limit = task.settings.max_prompt_length

    def __call__(self, prompt: Prompt) -> bool:
        self.tally.read += 1
        try:
            encode_prompt(self.tokenizer, prompt.messages, self.limit)
        except PromptTooLongError:
            reason = f"over training.max_prompt_length = {self.limit} tokens"
            self.tally.leave_out(reason, self.places[prompt.id])
            return False
        return True


def _without(
    train: list[Prompt], heldout: list[Prompt], reader: Reader
) -> tuple[list[Prompt], Tally]:
    """Training prompts that are not held out, blanks and the form of Unicode aside."""
    tally = Tally(reader.rows.stage, "training prompts")
    kept_out, trainable = {_words(prompt) for prompt in heldout}, []
    for prompt in train:
        tally.read += 1
        if _words(prompt) in kept_out:
            tally.leave_out("prompt is held out", reader.places[prompt.id])
        else:
            trainable.append(prompt)
    return trainable, tally


def _pair_of(prompt: Prompt) -> str:
    return content_hash(prompt.messages, prompt.chosen, prompt.rejected)


def _words(prompt: Prompt) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (turn["role"], *unicodedata.normalize("NFC", turn["content"]).split())
        for turn in prompt.messages
    )


def _check_share(tally: Tally, most: float, where: str) -> None:
    """Raise HarnessError where more than ``most`` of what was read is left out."""
    if not tally.read:
        raise HarnessError(f"{where}: no {tally.what} in it")
    tally.check(most, where)


def _drawn(
    prompts: list[Prompt], wanted: int, settings: FileDataTask, name: str, where: str
) -> list[Prompt]:
    """``wanted`` of the prompts (0: all), drawn by the data seed, in their own order."""
    if wanted > len(prompts):
        raise HarnessError(
            f"{where}: data.{name} asks for {wanted} prompts; there are {len(prompts)} usable "
            "ones. Ask for fewer or give more data"
        )
    if not prompts:
        raise HarnessError(f"{where}: no usable preference pair is left")
    if wanted in (0, len(prompts)):
        return prompts
    generator = np.random.default_rng(int(content_hash("data", name, settings.seed, length=16), 16))
    return [
        prompts[i] for i in sorted(generator.choice(len(prompts), wanted, replace=False).tolist())
    ]


def _sources(settings: FileDataTask) -> tuple[Iterable[Row], Iterable[Row] | None, str]:
    """Training rows, held-out rows (None: none of their own), and a name for messages."""
    path = settings.path
    if settings.source == "hub":
        train, heldout = (settings.train_split, settings.heldout_split)
        revision = settings.commit or settings.revision
        return (
            hub_rows(path, revision, train),
            hub_rows(path, revision, heldout) if heldout else None,
            path,
        )
    extra = settings.heldout_path
    return file_rows(Path(path)), file_rows(Path(extra)) if extra else None, path


def benchmarks(task: StageTask[FileBenchmarksTask]) -> StageOutcome:
    """Write the folder of every wanted benchmark that has files."""
    summary: dict[str, Any] = {}
    for name in task.settings.benchmarks:
        prepare = BENCHMARKS[name].prepare
        if prepare is not None:
            summary[name] = prepare(task.settings.sections[name], task.out / name)
    rows = sum(int(part.get("expected", part.get("tasks", 0))) for part in summary.values())
    left_out = []
    for part in summary.values():
        for name, aside in part.get("held_aside", {}).items():
            items, what = aside["items"], f"{name} items"
            reason, first = "held aside as examples", tuple(items[:3])
            left_out.append(LeftOut(task.stage, what, reason, len(items), aside["of"], first))
    return StageOutcome(rows=rows, summary=summary, left_out=tuple(left_out))
