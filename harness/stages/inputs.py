"""What enters a study from outside, checked before any compute. Stage ``data.files``: preference
data from local files or the hub → prompts with their offline pair. Stage ``benchmarks.files``:
benchmark files, laid out the one way the scoring stages read them, a folder per benchmark. Stage
``base.checkpoint``: a checkpoint.

How files and rows are read is `harness.data`'s; here they are told apart: which are held out, set
aside for a ranker, and trained on.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.files import Row, file_rows, hub_rows
from harness.data.rows import Reader, unique
from harness.evaluate.registry import BENCHMARKS
from harness.model.chat import PromptTooLongError, check_rows, encode_prompt, preflight
from harness.model.checkpoint import check_checkpoint
from harness.model.checkpoint_files import fingerprint
from harness.model.policy import load_tokenizer, template_settings
from harness.model.sources import is_gguf, merge, resolve
from harness.rankers.registry import check_ranker
from harness.records import (
    HarnessError,
    LeftOut,
    Prompt,
    StageOutcome,
    StageTask,
    Tally,
    canonical_json,
    content_hash,
    write_jsonl,
)
from harness.study.tasks import CheckpointTask, FileBenchmarksTask, FileDataTask


def data(task: StageTask[FileDataTask]) -> StageOutcome:
    """Write ``train.jsonl``, ``heldout.jsonl`` (records.Prompt) and an empty ``ood.jsonl``.

    Held-out prompts: drawn from ``heldout_path`` (or the hub's held-out split); without one, the
    last ``heldout`` usable rows of ``path``; only prompts within ``max_prompt_length`` tokens of
    the base. Training prompts: all the others, or ``prompts`` of them drawn by ``seed``, in the
    order of the file. A prompt that is held out is never trained on, whatever its blanks;
    ``ranker_pairs`` rows are set aside for a reward model in ``ranker.jsonl``. Fewer rows than
    asked for is an error, and so is a larger share left out than ``max_left_out``.
    """
    settings, where, wanted = task.settings, task.settings.path, task.settings.heldout
    if settings.ood:
        raise HarnessError(
            "data.ood asks for out-of-distribution prompts; only the pocket world has them: set "
            "it to 0"
        )
    tokenizer = load_tokenizer(task.inputs["base"])
    train_rows, heldout_rows = _sources(settings)
    reader = Reader(task.stage, "rows", settings.columns)
    train, template = _read(reader, train_rows, tokenizer, settings, where)
    left_out, long = [*reader.left_out()], Tally(task.stage, "held-out prompts")
    if heldout_rows is None:
        short = _short(reversed(train), reader, tokenizer, settings.max_prompt_length, long)
        heldout = list(islice(short, wanted))[::-1]
        taken = {prompt.id for prompt in heldout}
        train = [prompt for prompt in train if prompt.id not in taken]
        if len(heldout) < wanted or not train:
            raise HarnessError(
                f"{where}: {len(train) + len(heldout)} usable rows, {len(heldout)} of them short "
                f"enough to be held out; data.heldout takes {wanted}, and none is left to train on"
            )
    else:
        apart = Reader(task.stage, "held-out rows", settings.columns)
        theirs = settings.heldout_path or f"{where} ({settings.heldout_split})"
        given, more = _read(apart, heldout_rows, tokenizer, settings, theirs)
        template += more
        left_out += apart.left_out()
        short = _short(given, apart, tokenizer, settings.max_prompt_length, long)
        heldout = _drawn(list(short), wanted, settings, "heldout", theirs)
    trainable, repeated = _without(train, heldout, reader)
    if settings.ranker_pairs:
        aside = _drawn(trainable, settings.ranker_pairs, settings, "ranker_pairs", where)
        own, pairs = {one.id for one in aside}, set(map(_pair_of, aside))
        for one in trainable:
            if _pair_of(one) in pairs and one.id not in own:
                repeated.leave_out("pair is set aside for the ranker", reader.places[one.id])
        trainable = [one for one in trainable if _pair_of(one) not in pairs]
        write_jsonl(task.out / "ranker.jsonl", aside)
    train = _drawn(trainable, settings.prompts, settings, "prompts", where)
    write_jsonl(task.out / "train.jsonl", train)
    write_jsonl(task.out / "heldout.jsonl", unique(heldout, {prompt.id for prompt in train}))
    write_jsonl(task.out / "ood.jsonl", [])
    summary = {"read": reader.rows.read, "train": len(train), "heldout": len(heldout)}
    summary |= {"doubled": len(train) - len(set(map(_pair_of, train))), **template}
    left_out += [*long.left_out(), *repeated.left_out()]
    return StageOutcome(len(train) + len(heldout), summary=summary, left_out=tuple(left_out))


def _sources(settings: FileDataTask) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """Training rows, and held-out rows (None: none of their own)."""
    path, extra = settings.path, settings.heldout_path
    if settings.source == "hub":
        revision, split = settings.commit or settings.revision, settings.heldout_split
        heldout = hub_rows(path, revision, split) if split else None
        return hub_rows(path, revision, settings.train_split), heldout
    return file_rows(Path(path)), file_rows(Path(extra)) if extra else None


def _read(
    reader: Reader, rows: Iterable[Row], tokenizer: Any, settings: FileDataTask, where: str
) -> tuple[list[Prompt], Counter[str]]:
    """The rows' prompts, and what the base's chat template does to them (``check_rows``). Raises
    HarnessError where too much of what was read is left out.
    """
    found = reader.prompts(rows)
    if not reader.rows.read:
        raise HarnessError(f"{where}: no {reader.rows.what} in it")
    reader.rows.check(settings.max_left_out, where)
    texts = ((reader.places[one.id], one.messages, (one.chosen, one.rejected)) for one in found)
    return found, Counter(check_rows(tokenizer, texts, join_system=settings.system_turns == "join"))


def _short(
    prompts: Iterable[Prompt], reader: Reader, tokenizer: Any, limit: int, tally: Tally
) -> Iterator[Prompt]:
    """The held-out prompts that checkpoints can be asked; those that are too long are counted."""
    for prompt in prompts:
        tally.read += 1
        try:
            encode_prompt(tokenizer, prompt.messages, limit)
        except PromptTooLongError:
            reason = f"over training.max_prompt_length = {limit} tokens"
            tally.leave_out(reason, reader.places[prompt.id])
        else:
            yield prompt


def _without(
    train: list[Prompt], heldout: list[Prompt], reader: Reader
) -> tuple[list[Prompt], Tally]:
    """Training prompts that are not held out, blanks and the form of Unicode aside."""

    def words(prompt: Prompt) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (turn["role"], *unicodedata.normalize("NFC", turn["content"]).split())
            for turn in prompt.messages
        )

    tally = Tally(reader.rows.stage, "training prompts")
    kept_out, trainable = set(map(words, heldout)), []
    for prompt in train:
        held = words(prompt) in kept_out
        tally.meet(reader.places[prompt.id], "prompt is held out" if held else "ok")
        trainable += [] if held else [prompt]
    return trainable, tally


def _pair_of(prompt: Prompt) -> str:
    return content_hash(prompt.messages, prompt.chosen, prompt.rejected)


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
    places = generator.choice(len(prompts), wanted, replace=False)
    return [prompts[i] for i in sorted(places.tolist())]


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


def checkpoint(task: StageTask[CheckpointTask]) -> StageOutcome:
    """Write ``location.json``: path, source, revision, fingerprint, and what loading it needs. The
    tokenizer passes the token pre-flight where a template is needed (rankers need none). An adapter
    is merged into its base, as ``model/``.
    """
    settings, source = task.settings, task.settings.source
    revision = settings.commit or settings.revision
    if settings.adapter_base:
        base = resolve(settings.adapter_base, settings.adapter_commit)
        planned = settings.adapter_base_fingerprint
        _check_same_files(settings.adapter_base, planned, fingerprint(base))
        path = task.out / "model"
        merge(Path(source), base, path)
    else:
        path = resolve(source, revision, pickle_weights=settings.pickle_weights)
    own = is_gguf(source) or settings.adapter_base
    found = fingerprint(Path(source).expanduser() if own else path)
    _check_same_files(source, settings.source_fingerprint, found)
    asked = settings.chat_template if settings.needs_template else ""
    where = {
        "path": "" if settings.adapter_base else str(path),
        "source": source,
        "revision": revision,
        "fingerprint": found,
        "trust_remote_code": settings.trust_remote_code,
        "pickle_weights": settings.pickle_weights,
        **template_settings(asked, settings.template_date, settings.template_arguments),
    }
    (task.out / "location.json").write_text(canonical_json(where) + "\n", encoding="utf-8")
    if not settings.needs_template:
        check_ranker(task.out)
    else:
        check_checkpoint(task.out, head="causal")
        try:
            preflight(load_tokenizer(task.out))
        except HarnessError as error:
            raise HarnessError(f"{source}: {error}") from error
    return StageOutcome(rows=1, summary={"source": source, "fingerprint": found[:12]})


def _check_same_files(source: str, planned: str, found: str) -> None:
    if planned and planned != found:
        raise HarnessError(
            f"{source}: its files changed since the study was planned (planned {planned[:12]}, "
            f"now {found[:12]}); plan and run again"
        )
