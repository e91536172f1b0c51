"""YAML → Study: what is asked, over which arms and seeds, and what was declared before looking.

A study file names a recipe (every setting of one run), changes some of its keys (``set``), varies
others (``axes``, a grid, or ``arms``, a list), and declares its primary outcome. Unknown keys,
wrong types, doubled axes and empty grids are errors that name file, line and key.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from harness.records import HarnessError
from harness.study.sections import Section
from harness.study.settings import Recipe
from harness.study.yaml import Location, load_yaml
from harness.train.objectives import OBJECTIVES

Keep = Literal["all", "last", "none"]
Model = TypeVar("Model", bound=BaseModel)


class Outcome(Section):
    """One declared outcome: a metric of a benchmark at an iteration."""

    benchmark: str = "alpaca_eval"
    metric: str = "length_controlled_win_rate"
    iteration: Annotated[int, Field(ge=0)] | Literal["last"] = "last"


class Trend(Section):
    """A diagnostic expected to move along an axis, declared before the run."""

    benchmark: str = "diagnostics"
    metric: str = "rhat_reference_samples"
    iteration: Annotated[int, Field(ge=0)] | Literal["last"] = 1
    axis: str = "objective.alpha"
    expected: Literal["falling", "rising"] = "falling"


class Declaration(Section):
    """What the study says it will test, before it runs: the primary outcome, the Holm family, one
    trend, the pairwise matrix.
    """

    primary: Outcome = Outcome()
    family: list[Outcome] = []
    trend: Trend | None = None
    pairwise: Annotated[list[str], Field(max_length=8)] = []
    """At most eight checkpoints ``run@iteration`` judged against each other (Fig. 2)."""
    pairwise_mt_bench: bool = False
    """Grade the pairs of these checkpoints on MT-Bench too: FastChat's two games for every
    unordered pair.
    """
    completeness_bar: Annotated[float, Field(gt=0, le=1)] = 0.99


class Arm(Section):
    label: str
    set: dict[str, Any] = {}


class StudyFile(Section):
    """The YAML of a study, key by key."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Names the folder below ``results/``."""
    question: str = ""
    """What is asked, in a sentence; opens the report."""
    recipe: str
    """A file, or the name of one in ``recipes/`` beside the study."""
    set: dict[str, Any] = {}
    """Recipe keys changed for every run, nested or dotted."""
    axes: dict[str, list[Any]] = {}
    """Recipe keys and the values each takes; the arms are their grid."""
    arms: list[Arm] = []
    """In place of axes: arms that change several keys together."""
    seeds: list[Annotated[int, Field(ge=0)]]
    """One run per arm and seed: order of prompts, samples and training all follow it."""
    baseline: dict[str, Any] = {}
    """The arm every other is compared with on the same seeds and items, for example
    ``{objective.alpha: 0}``.
    """
    declare: Declaration = Declaration()
    """What will be tested, said before the run."""
    keep: Keep = "last"
    """Whose weights stay on disk once everything that reads them is done."""
    fail: dict[str, Any] = {}
    """Fault injection: {stage, seed, iteration, arm.KEY}; the stage they name raises."""


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: a run. ``recipe`` is fully resolved."""

    run: str
    arm: Mapping[str, Any]
    label: str
    seed: int
    recipe: Recipe
    twin: str


@dataclass(frozen=True)
class Study:
    """A checked study: its cells in file order, seeds innermost."""

    file: Path
    name: str
    question: str
    base: Recipe
    axes: Mapping[str, Sequence[Any]]
    seeds: tuple[int, ...]
    baseline: Mapping[str, Any]
    declare: Declaration
    keep: Keep
    cells: tuple[Cell, ...]
    fail: Mapping[str, Any] = field(default_factory=dict)


def load_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read, check and resolve a study. ``overrides`` (dotted key → value) come last, as from the
    command line.

    Raises HarnessError naming file, line, key and what is allowed.
    """
    data, lines = load_yaml(path)
    if not isinstance(data, dict):
        raise HarnessError(f"{path}:1: a study is a mapping with name, recipe and seeds")
    parsed = validate(StudyFile, data, path, lines)
    recipe_path = _recipe_path(path, parsed.recipe, lines)
    tree, recipe_lines = load_yaml(recipe_path)
    if not isinstance(tree, dict):
        raise HarnessError(f"{recipe_path}:1: a recipe is a mapping of settings")
    validate(Recipe, tree, recipe_path, recipe_lines)
    for key, value in _flatten(parsed.set, f"{path}:{_line(lines, ('set',))}").items():
        tree = _put(tree, key, value, f"{path}:{_line(lines, ('set', *key.split('.')))}")
    for key, value in (overrides or {}).items():
        tree = _put(tree, key, value, "command line")
    return _resolve(path, parsed, tree, lines)


def _resolve(
    path: Path, parsed: StudyFile, tree: dict[str, Any], lines: Mapping[Location, int]
) -> Study:
    base = _check_recipe(tree, path, "set")
    if parsed.axes and parsed.arms:
        raise HarnessError(
            f"{path}:{_line(lines, ('arms',))}: give axes (a grid) or arms (a list), not both"
        )
    if not parsed.seeds:
        raise HarnessError(f"{path}:{_line(lines, ('seeds',))}: seeds is empty; give at least one")
    _no_repeats(parsed.seeds, path, lines, ("seeds",), "seed")
    arms = _arms(parsed, path, lines)
    baseline = _baseline(parsed, arms, path, lines)
    sets = {
        arm.label: _flatten(arm.set, f"{path}:{_line(lines, ('arms', i))}")
        for i, arm in enumerate(parsed.arms)
    }
    cells = []
    for arm, label in arms:
        arm_tree = tree
        for key, value in (sets[label] if parsed.arms else arm).items():
            arm_tree = _put(
                arm_tree,
                key,
                value,
                f"{path}:{_line(lines, ('axes', key) if parsed.axes else ('arms',))}",
            )
        recipe = _check_recipe(arm_tree, path, label)
        for seed in parsed.seeds:
            twin = run_name(baseline, seed) if baseline else ""
            cells.append(Cell(run_name(arm, seed), arm, label, seed, recipe, twin))
    axes: dict[str, list[Any]] = (
        {"arm": [a.label for a in parsed.arms]} if parsed.arms else parsed.axes
    )
    return Study(
        path,
        parsed.name,
        parsed.question,
        base,
        axes,
        tuple(parsed.seeds),
        baseline,
        parsed.declare,
        parsed.keep,
        tuple(cells),
        parsed.fail,
    )


def run_name(arm: Mapping[str, Any], seed: int) -> str:
    """``objective.alpha=0.3,seed=1``: the arm's keys in study order, then the seed."""
    return ",".join([*(f"{key}={_short(value)}" for key, value in arm.items()), f"seed={seed}"])


def _short(value: Any) -> str:
    return (
        f"{value:g}"
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else re.sub(r"[\s,]+", "", str(value))
    )


def _arms(
    parsed: StudyFile, path: Path, lines: Mapping[Location, int]
) -> list[tuple[dict[str, Any], str]]:
    if parsed.arms:
        labels = [arm.label for arm in parsed.arms]
        _no_repeats(labels, path, lines, ("arms",), "arm label")
        return [({"arm": arm.label}, arm.label) for arm in parsed.arms]
    for key, values in parsed.axes.items():
        _section_at(key, f"{path}:{_line(lines, ('axes', key))}")
        if not values:
            raise HarnessError(
                f"{path}:{_line(lines, ('axes', key))}: axis {key!r} is empty; give at least one "
                "value"
            )
        _no_repeats(values, path, lines, ("axes", key), f"value of axis {key!r}")
    names = list(parsed.axes)
    grid = itertools.product(*(parsed.axes[name] for name in names))
    return [
        (dict(zip(names, point, strict=True)), _label(dict(zip(names, point, strict=True))))
        for point in grid
    ]


def _label(arm: Mapping[str, Any]) -> str:
    return (
        ", ".join(
            f"{key.rsplit('.', 1)[-1].replace('alpha', 'α').replace('beta', 'β')} = {_short(value)}"
            for key, value in arm.items()
        )
        or "base recipe"
    )


def _baseline(
    parsed: StudyFile,
    arms: Sequence[tuple[dict[str, Any], str]],
    path: Path,
    lines: Mapping[Location, int],
) -> dict[str, Any]:
    if not parsed.baseline:
        return {}
    for arm, _ in arms:
        if arm == parsed.baseline:
            return dict(parsed.baseline)
    shown = "; ".join(str(arm) for arm, _ in arms[:6])
    raise HarnessError(
        f"{path}:{_line(lines, ('baseline',))}: baseline {parsed.baseline} is no arm of this "
        f"study (arms: {shown})"
    )


def _no_repeats(
    values: Sequence[Any], path: Path, lines: Mapping[Location, int], at: Location, what: str
) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise HarnessError(
                f"{path}:{_line(lines, (*at, index))}: {what} {value!r} is given twice"
            )


def _recipe_path(study: Path, name: str, lines: Mapping[Location, int]) -> Path:
    candidates = [study.parent / name, study.parent / "recipes" / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(p.stem for p in (study.parent / "recipes").glob("*.yaml"))
    raise HarnessError(
        f"{study}:{_line(lines, ('recipe',))}: recipe {name!r} not found{_suggest(name, known)}; "
        f"known: {', '.join(known) or 'none'}"
    )


def _flatten(tree: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Nested or dotted keys of a ``set`` as dotted keys; a key given in both ways is an error."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        leaves = {dotted: value}
        if isinstance(value, Mapping) and _section_at(dotted, where) is not None:
            leaves = _flatten(value, where, f"{dotted}.")
        for name, leaf in leaves.items():
            if name in flat:
                raise HarnessError(f"{where}: key {name!r} is set twice")
            flat[name] = leaf
    return flat


def _put(tree: Mapping[str, Any], dotted: str, value: Any, where: str) -> dict[str, Any]:
    """A copy of ``tree`` with one dotted key replaced; the key must exist in Recipe."""
    _section_at(dotted, where)
    result = dict(tree)
    head, _, rest = dotted.partition(".")
    if rest:
        inner = result.get(head)
        result[head] = _put_unchecked(inner if isinstance(inner, Mapping) else {}, rest, value)
    else:
        result[head] = value
    return result


def _put_unchecked(tree: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    result = dict(tree)
    inner = result.get(head)
    result[head] = (
        _put_unchecked(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value
    )
    return result


def _section_at(dotted: str, where: str) -> type[BaseModel] | None:
    """The Section a dotted key names, or None for a plain value; unknown keys raise."""
    model: Any = Recipe
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return None  # inside a free mapping (params, shots, data)
        if part not in fields:
            at = ".".join(parts[:depth])
            raise HarnessError(
                f"{where}: unknown key {dotted!r}{_suggest(part, fields)}; "
                f"allowed{f' in {at}' if at else ''}: {', '.join(fields)}"
            )
        model = _section_of(fields[part].annotation)
    return model if isinstance(model, type) else None


def _section_of(annotation: Any) -> Any:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _check_recipe(tree: Mapping[str, Any], path: Path, context: str) -> Recipe:
    recipe = validate(Recipe, tree, path, {}, context)
    name = recipe.objective.name
    if name not in OBJECTIVES:
        raise HarnessError(
            f"{path}: objective.name {name!r} is unknown{_suggest(name, OBJECTIVES)}; allowed: "
            f"{', '.join(sorted(OBJECTIVES))}"
        )
    allowed = OBJECTIVES[name].parameters
    for key in recipe.objective.params:
        if key not in allowed:
            raise HarnessError(
                f"{path}: objective.params.{key} is no parameter of {name}; allowed: "
                f"{', '.join(allowed) or 'none'}"
            )
    return recipe


def validate(
    model: type[Model], data: Any, path: Path, lines: Mapping[Location, int], context: str = ""
) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise HarnessError(
            "\n".join(_explain(e, model, path, lines, context) for e in error.errors()[:5])
        ) from None


def _explain(
    error: Any, model: type[BaseModel], path: Path, lines: Mapping[Location, int], context: str
) -> str:
    location: Location = tuple(error["loc"])
    known = [
        part
        for part in location
        if isinstance(part, int) or re.fullmatch(r"[A-Za-z0-9_.]+", str(part))
    ]
    line = _line(lines, tuple(known))
    where = f"{path}:{line}" if lines else f"{path} ({context})"
    dotted = ".".join(str(part) for part in known)
    if error["type"] == "extra_forbidden":
        fields = _fields_at(model, tuple(known[:-1]))
        return f"{where}: unknown key {dotted!r}{_suggest(str(known[-1]), fields)}; allowed: {', '.join(fields)}"
    if error["type"] == "missing":
        return f"{where}: key {dotted!r} is missing"
    shown = error.get("input")
    given = (
        f" (given: {shown!r})"
        if isinstance(shown, (str, int, float, bool)) or shown is None
        else ""
    )
    return f"{where}: {dotted or 'recipe'}: {error['msg'].removeprefix('Value error, ')}{given}"


def _fields_at(model: Any, location: Location) -> list[str]:
    for part in location:
        fields = getattr(model, "model_fields", {})
        if isinstance(part, str) and part in fields:
            model = _section_of(fields[part].annotation)
    return list(getattr(model, "model_fields", {}))


def _line(lines: Mapping[Location, int], at: Location) -> int:
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at, 1)


def _suggest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def compose(
    file: Path,
    name: str,
    recipe: str,
    changes: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    question: str = "",
    baseline: str = "",
    declare: Declaration | None = None,
) -> Study:
    """A study made by code (a search's trials and finalists): the same checks as for a file.
    ``arms``: label → dotted keys.
    """
    tree, lines = load_yaml(_recipe_path(file, recipe, {}))
    validate(Recipe, tree, file, lines)
    for key, value in _flatten(changes, str(file)).items():
        tree = _put(tree, key, value, str(file))
    base = _check_recipe(tree, file, "set")
    cells = []
    for label, change in arms.items():
        arm_tree = tree
        for key, value in _flatten(change, str(file)).items():
            arm_tree = _put(arm_tree, key, value, f"{file} ({label})")
        resolved = _check_recipe(arm_tree, file, label)
        twin = {"arm": baseline} if baseline else {}
        cells += [
            Cell(
                run_name({"arm": label}, seed),
                {"arm": label},
                label,
                seed,
                resolved,
                run_name(twin, seed) if twin else "",
            )
            for seed in seeds
        ]
    return Study(
        file,
        name,
        question,
        base,
        {"arm": list(arms)},
        tuple(seeds),
        {"arm": baseline} if baseline else {},
        declare or Declaration(),
        "last",
        tuple(cells),
    )
