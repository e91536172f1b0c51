"""Model cards: ``<study>/models/<run>/iteration-<i>/README.md`` for every checkpoint whose weights
are in the store, and their index.

Hugging Face's form: YAML front matter (base model, datasets, tags, model-index) over Markdown. A
card is a function of the manifest and the store, holds no times or hosts, and is removed when its
checkpoint is. The store itself is never written to.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from analysis import findings, measures, text
from analysis.compare import resolve
from analysis.load import Checkpoint, Run, Stage, StudyData, read_json
from analysis.measures import Measure
from analysis.stats import Estimate
from analysis.table import flat, incomplete_text, interval_text, judged, pipes, verdict
from harness.files import write_atomic
from harness.records import HarnessError, content_hash

MARK = "<!-- written by selm report -->"
"""In every card, so that only what was written here is ever removed."""
WEIGHTS = re.compile(r"model/.*\.safetensors")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "selm-harness")


@dataclass(frozen=True)
class Kept:
    """files: SHA-256 of each of its stage's. users: runs that share it."""

    run: Run
    iteration: int
    stage: Stage
    files: Mapping[str, str]
    users: tuple[str, ...]

    @property
    def content(self) -> str:
        """What descendants record as the hash of this input: content hash of all its files."""
        return content_hash(dict(self.files))

    @property
    def folder(self) -> str:
        return f"{path_part(self.run.name)}/iteration-{self.iteration}"


def path_part(name: str) -> str:
    """A run's name as one folder name; a hash stands for characters that had to go."""
    safe = re.sub(r"[^A-Za-z0-9=_.,+-]", "_", name)[:120].lstrip(".") or "run"
    return safe if safe == name else f"{safe}-{content_hash(name, length=8)}"


def kept(data: StudyData) -> list[Kept]:
    """Checkpoints with weights; one that several runs share is listed under the first."""
    places: dict[str, list[tuple[Run, int]]] = {}
    for run in data.runs:
        for iteration, keys in run.iterations.items():
            if key := keys.get("train" if iteration > 0 else "base", ""):
                places.setdefault(key, []).append((run, iteration))
    found = []
    for key, uses in places.items():
        stage = data.stages.get(key)
        if stage is None or stage.state != "done" or (stage.folder / "dropped").exists():
            continue
        files = read_json(stage.folder / "record.json").get("files") or {}
        weights = [name for name in files if WEIGHTS.fullmatch(name)]
        if weights and all((stage.folder / name).is_file() for name in weights):
            users = tuple(run.name for run, _ in uses)
            found.append(Kept(*uses[0], stage, files, users))
    return found


def write_cards(data: StudyData, study_dir: Path) -> list[Path]:
    """Write a card for every kept checkpoint and their index; remove those of gone ones."""
    folder = study_dir / "models"
    cards = {folder / item.folder / "README.md": item for item in kept(data)}
    for path in sorted([*folder.glob("*/iteration-*/README.md"), folder / "README.md"]):
        if path not in cards and path.is_file() and MARK in path.read_text(encoding="utf-8"):
            path.unlink()
            _remove_empty(path.parent, study_dir)
    for path, item in cards.items():
        write_atomic(path, card(data, item))
    if cards:
        write_atomic(folder / "README.md", _index(data, list(cards.values())))
    return list(cards)


def _remove_empty(folder: Path, until: Path) -> None:
    while folder != until and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _index(data: StudyData, items: Sequence[Kept]) -> str:
    lines = [f"# Checkpoints of {text.markdown(data.name)}", "", MARK, ""]
    lines += ["Weights that are still in the store, one card each.", ""]
    lines += ["| run | iteration | content hash | card |", "| :-- | --: | :-- | :-- |"]
    for item in items:
        place = f"{text.markdown(item.run.name)} | {item.iteration} | `{item.content[:12]}`"
        lines.append(f"| {place} | [card](<{item.folder}/README.md>) |")
    return "\n".join(lines) + "\n"


# -- one card --------------------------------------------------------------------------------------
class Scored(NamedTuple):
    """One measure of this checkpoint: its estimate over items."""

    measure: Measure
    estimate: Estimate


def scores(data: StudyData, run: Run, iteration: int, asked: Iterable[Measure]) -> list[Scored]:
    """The measures that this one checkpoint holds, with the interval over items."""
    checkpoint = _checkpoint(run, iteration)
    found = (Scored(m, findings.estimate(data, checkpoint, m)) for m in asked)
    return [one for one in found if one.estimate.expected]


def _checkpoint(run: Run, iteration: int) -> Checkpoint:
    return Checkpoint(run.arm_name if iteration > 0 else "", run.label, iteration, (run,))


def card(data: StudyData, item: Kept) -> str:
    """The card's text, by ``card.md.jinja``. Everything that is not ours is escaped."""
    run, at, environment = item.run, item.iteration, item.stage.environment
    asked = (m for table in measures.tables(data) for m in measures.columns(data, table))
    found = scores(data, run, at, asked)
    arm, what = "The base recipe.", "The first model of the study's runs"
    if at:
        c, kappa = (text.coefficient(told.get(at)) for told in (run.c, run.kappa))
        varied = ", ".join(f"{name} = {value}" for name, value in run.arm.items())
        arm = (
            f"Arm: {varied or 'the recipe as it is'}; c = {c} (coefficient on log π(y)), "
            f"κ = 2c/β = {kappa}."
        )
        what = f"Checkpoint after iteration {at} of run {run.name}"
    whose, rows = run.label if at > 0 else "the base", [_row(data, run, at, *one) for one in found]
    packages = environment.get("versions") or {}
    made = [(name, packages.get(name)) for name in LIBRARIES]
    made += [(name, environment.get(name)) for name in ("python", "machine", "kernels")]
    file = text.one_line(str(data.manifest["study"].get("file", "")) or data.name)
    weights = sorted(part for part in item.files.items() if part[0].startswith("model/"))
    return text.template("card.md.jinja").render(
        front=_front_matter(data, item, found).to_yaml().rstrip(),
        title=f"{data.name}: {whose}, iteration {at}, seed {run.seed}",
        mark=MARK,
        what=what,
        item=item,
        data=data,
        pipes=pipes,
        files=[
            ("folder in the store", f"objects/{item.stage.key[:2]}/{item.stage.key}/model"),
            ("key of its stage", item.stage.key),
            ("content hash of the stage's files", item.content),
            *((f"SHA-256 of {name}", digest) for name, digest in weights),
        ],
        scores=pipes(list(rows[0]), (row.values() for row in rows), 7) if rows else "",
        judged={
            title: verdict(summary.get("comparable") is True)
            for title, measure in judged(data).items()
            if (summary := data.summary(run, at, measure.benchmark))
        },
        arm=arm,
        settings=_settings(data, item),
        file=re.sub("[`|]", " ", file),
        versions=", ".join(f"{n} {v}" for n, v in made if v) or "unknown versions",
        ancestors=[(one.name, one.key, one.state) for one in _ancestors(data, item.stage)],
        pocket=(data.recipe.get("judge") or {}).get("kind") == "pocket",
    )


def _front_matter(data: StudyData, item: Kept, found: Sequence[Scored]) -> ModelCardData:
    model, source = (data.recipe.get("model") or {}), (data.recipe.get("data") or {})
    base, rows = str(model.get("source", "")), str(source.get("path", ""))
    hub = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"  # "owner/name": a folder elsewhere is no id
    objective = str((item.stage.settings.get("objective") or {}).get("name", ""))
    kind = "preference-optimization" if item.iteration > 0 else "base"
    titles = {str(one["name"]): str(one["title"]) for one in data.benchmarks}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=m.benchmark,
            dataset_name=text.one_line(titles.get(m.benchmark, m.benchmark)),
            metric_type=m.metric,
            metric_name=text.one_line(f"{m.name} [{m.unit}]"),
            metric_value=estimate.value,
        )
        for m, estimate in found
        if estimate.value is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if re.fullmatch(hub, base) else None,
        datasets=[text.one_line(rows)] if source.get("source") == "hub" and rows else None,
        tags=[tag for tag in ("selm-harness", kind, objective) if tag],
        model_name=text.one_line(f"{data.name}, {item.run.name}, iteration {item.iteration}", 200),
        eval_results=results or None,
    )


def _row(data: StudyData, run: Run, iteration: int, m: Measure, e: Estimate) -> dict[str, str]:
    """A row of the card's table by column."""
    interval, judge = e.intervals.get("items"), ""
    if not m.strata:
        judge = data.identity(_checkpoint(run, iteration), m.benchmark, m.metric)
    return {
        "measure": f"{m.name} [{m.unit}]",
        "score": incomplete_text(e) if e.value is None else text.number(e.value, m.digits),
        "standard error": text.number(interval.se if interval else None, m.digits + 1),
        "95 % interval": interval_text(interval, m.digits),
        "n": f"{e.clusters} {m.unit_of_items}",
        "rows scored": f"{e.scored} of {e.expected}",
        "judge, benchmark version": judge,
    }


def _settings(data: StudyData, item: Kept) -> list[tuple[str, str]]:
    """Resolved settings of the stages of this iteration, as their records hold them."""
    names = ("rollout", "rank", "reference", "train") if item.iteration > 0 else ("base",)
    rows: list[tuple[str, str]] = []
    for name in names:
        stage = data.stage(item.run, item.iteration, name)
        told = flat(stage.settings) if stage and stage.state == "done" else []
        rows += [(f"{name}: {key}", value) for key, value in told if not key.endswith("base_url")]
    return rows


def _ancestors(data: StudyData, stage: Stage) -> list[Stage]:
    """Every stage that ``stage`` rests on, each after all of its own inputs."""
    found: dict[str, Stage] = {}
    waiting = [(key, False) for key in sorted(stage.inputs.values(), reverse=True)]
    while waiting:
        key, expanded = waiting.pop()
        here = data.stages.get(key)
        if here is None or key in found:
            continue
        if expanded:
            found[key] = here
        else:
            parents = sorted(here.inputs.values(), reverse=True)
            waiting += [(key, True), *((parent, False) for parent in parents)]
    return list(found.values())


# -- a repository of the hub -----------------------------------------------------------------------
def write_repository(data: StudyData, cell: str, repo: str, study_dir: Path) -> Path:
    """Write the repository of ``cell`` (a run, or run@iteration) anew; returns its folder.
    HarnessError: no hub id, no single checkpoint, or its weights are gone.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HarnessError(f"{repo!r} is no repository of the hub: {error}") from error
    item = kept_of(data, cell)
    folder = study_dir / "push" / repo.replace("/", "--")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(item.stage.folder / "model", folder)
    write_atomic(folder / "README.md", card(data, item))
    told = json.dumps(without_addresses(settings(data)), indent=1, sort_keys=True)
    write_atomic(folder / "study" / "settings.json", told + "\n")
    answer = data.stage(item.run, item.iteration, "answer")
    if answer and answer.state == "done":
        ignored = shutil.ignore_patterns("record.json")
        shutil.copytree(answer.folder, folder / "study" / "answers", ignore=ignored)
    return folder


def settings(data: StudyData) -> dict[str, Any]:
    """What was asked: recipe, axes, seeds, baseline, declaration, and every run's coefficients."""
    runs = [
        {"run": r.name, "label": r.label, "seed": r.seed, "c": dict(r.c), "kappa": dict(r.kappa)}
        for r in data.runs
    ]
    keep = ("study", "recipe", "axes", "seeds", "declare", "baseline", "checkpoints_kept")
    return {**{key: data.manifest.get(key) for key in keep}, "runs": runs}


def kept_of(data: StudyData, cell: str) -> Kept:
    """The one checkpoint with weights that a name stands for."""
    named, there = resolve(data, cell), kept(data)
    names = {run.name for run in named.runs}
    found = [one for one in there if one.iteration == named.iteration and names & {*one.users}]
    if len(found) == 1:
        (item,) = found
        return replace(item, run=next(run for run in named.runs if run.name in item.users))
    if found:
        raise HarnessError(
            f"{cell!r} names {len(found)} checkpoints; name one run: {', '.join(sorted(names))}"
        )
    known = ", ".join(f"{item.run.name}@{item.iteration}" for item in there) or "none"
    raise HarnessError(
        f"{cell!r}: the weights of {named.title} are not in the store (`keep` in the study's file "
        f"says which stay); those that are: {known}"
    )


def without_addresses(tree: Any) -> Any:
    """A tree of settings without its ``base_url`` entries."""
    if isinstance(tree, Mapping):
        return {k: without_addresses(v) for k, v in tree.items() if k != "base_url"}
    return [without_addresses(one) for one in tree] if isinstance(tree, list) else tree
