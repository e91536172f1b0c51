"""YAML → Study: what is asked, over which arms and seeds, and what was declared before looking.

A study file names a recipe (every setting of one run), changes some of its keys (``set``), varies
others (``axes``, a grid, or ``arms``, a list), and declares its primary outcome. Unknown keys,
wrong types, doubled axes and empty grids are errors that name file, line and key.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from harness.records import HarnessError
from harness.study import names, shipped
from harness.study.given import Given, check_rows, read_table
from harness.study.names import FolderName, Label
from harness.study.sections import JudgeSettings, Section, keys_of
from harness.study.settings import Recipe
from harness.study.yaml import Location, Places, load_mapping, load_yaml, place_of
from harness.train.objectives import OBJECTIVES

Keep = Literal["all", "last", "none"]
PAPER_SEED = 42
"""Seed of the one run when a recipe stands in for a study."""
JUDGES = "judges"
"""Folder of judges' profiles: one judge a file."""
Model = TypeVar("Model", bound=BaseModel)


class Outcome(Section):
    """One declared outcome: a metric of a benchmark at an iteration."""

    benchmark: str = "alpaca_eval"
    """Its name, or a task's of the academic ones."""
    metric: str = "length_controlled_win_rate"
    """As in scores.parquet."""
    iteration: Annotated[int, Field(ge=0)] | Literal["last"] = "last"
    """After which; last: each arm's own."""


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
    """Further outcomes; Holm's correction is over these and the primary one, of all arms."""
    trend: Trend | None = None
    """A diagnostic that is expected to fall or rise along an axis."""
    pairwise: Annotated[list[str], Field(max_length=8)] = []
    """At most eight checkpoints ``run@iteration`` judged against each other (Fig. 2)."""
    completeness_bar: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Share of scored rows below which a cell is INCOMPLETE and takes no part."""


class Arm(Section):
    label: Label
    preset: str = ""
    """Name of a file in ``presets/`` beside the study or of the harness: a published algorithm's
    keys, changed by ``set``.
    """
    set: dict[str, Any] = {}


class StudyFile(Section):
    """The YAML of a study, key by key."""

    name: FolderName
    """Names the folder below ``results/``."""
    question: str = ""
    """What is asked, in a sentence; opens the report."""
    recipe: str
    """A file, or the name of one in ``recipes/`` beside the study or of the harness."""
    preset: str = ""
    """A published algorithm's keys for every run, as an arm's ``preset``."""
    set: dict[str, Any] = {}
    """Recipe keys changed for every run, nested or dotted."""
    axes: dict[str, list[Any]] = {}
    """Recipe keys and the values each takes: their grid is the arms."""
    arms: list[Arm] = []
    """Arms that change several keys together: beside the grid, or in place of it."""
    given: str = ""
    """In place of axes, arms and seeds: a table (CSV or YAML, beside the study) of checkpoints that
    were trained elsewhere, or of answers and verdicts that exist (`harness.study.given`). Nothing
    is trained: the recipe's model is the base that training started from; its data, ranker,
    evaluation and diagnostics are used.
    """
    seeds: list[Annotated[int, Field(ge=0)]] = []
    """One run per arm and seed: order of prompts, samples and training all follow it."""
    baseline: dict[str, Any] = {}
    """The arm every other is compared with on the same seeds and items, for example
    ``{objective.alpha: 0}``.
    """
    declare: Declaration = Declaration()
    """What will be tested, said before the run."""
    keep: Keep = "last"
    """Whose weights stay on disk once everything that reads them is done."""


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: a run. ``recipe`` is fully resolved. baseline_run: the run of the
    baseline with this seed, empty without one. given: by step, what somebody else made.
    """

    run: str
    arm: Mapping[str, Any]
    label: str
    seed: int
    recipe: Recipe
    baseline_run: str
    given: Mapping[int, Given] = field(default_factory=dict)


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
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What the command line changed, by dotted key."""

    @property
    def has_models(self) -> bool:
        """Whether any of it has weights: a study may be of given answers alone."""
        rows = [row for cell in self.cells for row in cell.given.values()]
        return not rows or any(row.checkpoint for row in rows)


@dataclass(frozen=True)
class _Settings:
    """A recipe as a mapping not yet checked, and where each of its values was written."""

    values: dict[str, Any]
    places: dict[Location, str]
    files: tuple[Path, ...]
    """Beside which a judge's profile is looked for."""

    def changed(self, changes: Mapping[str, Any], written: Places, at: Location = ()) -> _Settings:
        """With nested or dotted keys merged in (an empty mapping replaces what was there).
        written, at: where the changes stand.

        Raises HarnessError when a key is given in both ways.
        """
        values, places = copy.deepcopy(self.values), dict(self.places)
        given = set()
        for keys, leaf in leaves(changes):
            *above, last = location = tuple(".".join(keys).split("."))
            where = place_of(written, (*at, *keys))
            if location in given:
                raise HarnessError(f"{where}: key {'.'.join(location)!r} is set twice")
            given.add(location)
            section = values
            for key in above:
                if not isinstance(section.get(key), dict):
                    named = key == "judge" and isinstance(section.get(key), str)
                    section[key] = {"profile": section[key]} if named else {}
                section = section[key]
            section[last] = leaf
            places[location] = where
        return _Settings(values, places, self.files)

    def with_judges(self, where: str) -> _Settings:
        """With the settings of every judge that is named by its profile: in ``judges/`` beside one
        of the files, or in the folder above, or of the harness; or by a path.
        """
        values, places = copy.deepcopy(self.values), {(): where} | self.places
        scored = values.get("evaluation")
        names = scored if isinstance(scored, dict) else {}
        for at in ((), *(("evaluation", name) for name in names)):
            section: Any = names.get(at[-1]) if at else values
            given = section.get("judge") if isinstance(section, dict) else None
            own = {"profile": given} if isinstance(given, str) else given
            if not isinstance(own, dict) or "profile" not in own:
                continue
            name, place = str(own["profile"]), place_of(places, (*at, "judge", "profile"))
            near = [up for file in self.files for up in file.resolve().parents[:2]]
            folders = list(dict.fromkeys([*near, shipped.FOLDER]))
            beside = [folder / JUDGES for folder in folders]
            found = [folder / name for folder in folders]
            path = shipped.find("judge", name, found, beside, f"{place}: ")
            profile, lines = _read_judge(path)
            section["judge"] = profile | own | {"profile": path.stem}
            written = {(*at, "judge", *key): line for key, line in lines.items() if key}
            places = written | places
        return _Settings(values, places, self.files)

    def recipe(self, where: str) -> Recipe:
        """The recipe, checked as a whole. where: named for what has no place of its own."""
        settings = self.with_judges(where)
        recipe = validate(Recipe, _from_home(settings.values), settings.places)
        name, at = recipe.objective.name, ("objective", "name")
        if name not in OBJECTIVES:
            raise HarnessError(
                f"{place_of(settings.places, at)}: objective.name {name!r} is unknown"
                f"{shipped.suggest(name, OBJECTIVES)}; allowed: {', '.join(sorted(OBJECTIVES))}"
            )
        allowed = OBJECTIVES[name].parameters
        for key in set(recipe.objective.params) - set(allowed):
            place = place_of(settings.places, ("objective", "params", key))
            raise HarnessError(
                f"{place}: objective.params.{key} is no parameter of {name}; allowed: "
                f"{', '.join(allowed) or 'none'}"
            )
        return recipe


@dataclass(frozen=True)
class _File:
    """A study's file: what it asks, and where its keys stand."""

    path: Path
    asked: StudyFile
    places: Places

    def at(self, *location: str | int) -> str:
        """``file:line`` of a key, or of what it stands in."""
        return place_of(self.places, location)

    def made(self, **decided: Any) -> Study:
        """The study, with what was decided of its arms."""
        asked = self.asked
        own: dict[str, Any] = {"declare": asked.declare, "keep": asked.keep}
        return Study(self.path, asked.name, asked.question, **own, **decided)

    def beside(self, kind: str, name: str, *at: str | int) -> Path:
        """A recipe's or preset's file: by path, or by name beside the study or of the harness."""
        here = self.path.parent
        folders = (here / f"{kind}s", shipped.FOLDER / f"{kind}s")
        return shipped.find(kind, name, [here / name], folders, f"{self.at(*at)}: ")

    def preset(self, settings: _Settings, name: str, *at: str | int) -> _Settings:
        """The settings changed by a preset, where one is named."""
        if not name:
            return settings
        path = self.beside("preset", name, *at)
        return settings.changed(*load_mapping(path, "a preset is a mapping of settings"))

    def base(self, overrides: Mapping[str, Any]) -> _Settings:
        """What all arms share."""
        path = self.beside("recipe", self.asked.recipe, "recipe")
        values, places = load_mapping(path, "a recipe is a mapping of settings")
        places.pop(())
        settings = self.preset(
            _Settings(values, places, (self.path, path)), self.asked.preset, "preset"
        )
        settings = settings.changed(self.asked.set, self.places, ("set",))
        changes = {key: value for key, value in overrides.items() if key != "seeds"}
        return settings.changed(changes, {(): "command line"})

    def check_different(self, values: Sequence[Any], what: str, *at: str) -> None:
        """Raise HarnessError where one name would stand for two values."""
        twice = names.first_of_the_same_name(values)
        if not twice:
            return
        later, earlier = (values[place] for place in twice)
        where = f"{self.at(*at, twice[0])}: {what} {later!r}"
        if later == earlier:
            raise HarnessError(f"{where} is given twice (named {names.text_of(later)})")
        raise HarnessError(
            f"{where} and {earlier!r} would have one name; write them apart by more than blanks, "
            "commas, quotes and letter case"
        )


def load_study(
    path: Path, overrides: Mapping[str, Any] | None = None, found: Sequence[Given] = ()
) -> Study:
    """Read, check and resolve a study. ``overrides`` (dotted key → value) come last, as from the
    command line. found: given checkpoints besides those of the study's table.

    Raises HarnessError naming file, line, key and what is allowed.
    """
    file = _read(path)
    if file.asked.given or found:
        return _given_study(file, overrides or {}, found)
    return _study(file, overrides or {})


def load_any(path: Path, overrides: Mapping[str, Any]) -> Study:
    """A study's file; or a recipe's, as one run of it."""
    tree, _ = load_yaml(path)
    if isinstance(tree, dict) and not tree.keys() & {"name", "recipe", "seeds"}:
        whole = str(path.resolve())
        return compose(path, path.stem, whole, overrides, {"recipe": {}}, [PAPER_SEED])
    return load_study(path, overrides)


def _read_judge(path: Path) -> tuple[dict[str, Any], dict[Location, str]]:
    what = "a judge's profile is a mapping of its settings with facts"
    values, places = load_mapping(path, what)
    if "facts" not in values:
        raise HarnessError(f"{path}:1: {what}")
    return {**values, "profile": path.stem}, places


def checked_judge(path: Path) -> JudgeSettings:
    """A judge's profile by itself. Raises HarnessError naming file, line and key."""
    return validate(JudgeSettings, *_read_judge(path))


def _read(path: Path) -> _File:
    data, places = load_mapping(path, "a study is a mapping with name, recipe and seeds")
    return _File(path, validate(StudyFile, data, places), places)


def name_of(path: Path) -> str:
    """The name of a study's file."""
    return _read(path).asked.name


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
    """A study made by code, with the same checks as a file. ``arms``: label → dotted keys."""
    asked = StudyFile.model_construct(
        name=name,
        question=question,
        recipe=recipe,
        arms=[Arm(label=label, set=dict(change)) for label, change in arms.items()],
        seeds=list(seeds),
        baseline={"arm": baseline} if baseline else {},
        declare=declare or Declaration(),
    )
    return _study(_File(file, asked, {(): str(file)}), changes)


def _study(file: _File, overrides: Mapping[str, Any]) -> Study:
    settings, asked = file.base(overrides), file.asked
    base = settings.recipe(str(file.path))
    seeds, arms, recipes, cells = _seeds(file, overrides.get("seeds")), _arms(file), [], []
    for _, arm, at in arms:
        own = file.preset(settings, arm.preset, *at).changed(arm.set, file.places, at)
        recipes.append(own.recipe(f"{file.path} ({arm.label})"))
    baseline = _baseline(file, [values for values, _, _ in arms])
    for (values, arm, _), recipe in zip(arms, recipes, strict=True):
        for seed in seeds:
            beside = names.run_name(baseline, seed) if baseline else ""
            run = names.run_name(values, seed)
            cells.append(Cell(run, values, arm.label, seed, recipe, beside))
    return file.made(
        base=base,
        axes=asked.axes or {"arm": [arm.label for arm in asked.arms]},
        seeds=seeds,
        baseline=baseline,
        cells=tuple(cells),
        changes=dict(overrides),
    )


def _given_study(file: _File, overrides: Mapping[str, Any], found: Sequence[Given]) -> Study:
    asked = file.asked
    for key in ("axes", "arms", "seeds"):
        if getattr(asked, key) or key in overrides:
            raise HarnessError(
                f"{file.at(key)}: {key} are to be trained, and what is given is trained already: "
                f"its table says arm, seed and step; leave {key} or given out"
            )
    rows = list(found)
    if asked.given:
        tables = [file.path.parent / asked.given, Path(asked.given)]
        table = next((one for one in tables if one.is_file()), None)
        if table is None:
            raise HarnessError(f"{file.at('given')}: given: {asked.given} does not exist")
        rows = [*read_table(table), *found]
    untrained = {"loop.iterations": 0, "loop.warmup_dpo": False}
    settings = file.base(overrides).changed(untrained, {(): "a study of what is given"})
    recipe = settings.recipe(str(file.path))
    check_rows(rows, recipe.evaluation.benchmarks)
    runs: dict[tuple[str, int], dict[int, Given]] = {}
    for row in rows:
        runs.setdefault((row.arm, row.seed), {})[row.step] = row
    arms = {arm: {"arm": arm} for arm, _ in runs}
    early = found and asked.baseline.get("arm") not in arms  # it is being trained yet
    baseline = {} if early else _baseline(file, list(arms.values()))
    cells = []
    for (arm, seed), steps in runs.items():
        beside = baseline and (baseline["arm"], seed) in runs
        other = names.run_name(baseline, seed) if beside else ""
        run, given = names.run_name(arms[arm], seed), dict(sorted(steps.items()))
        cells.append(Cell(run, arms[arm], arm, seed, recipe, other, given))
    return file.made(
        base=recipe,
        axes={"arm": list(arms)},
        seeds=tuple(sorted({seed for _, seed in runs})),
        baseline=baseline,
        cells=tuple(cells),
        changes=dict(overrides),
    )


def _seeds(file: _File, given: Any) -> tuple[int, ...]:
    """The file's seeds, or ``--set seeds=``: a list, or how many (the first, then numbers on)."""
    asked = file.asked.seeds
    if not asked:
        raise HarnessError(f"{file.at('seeds')}: seeds is empty; give at least one")
    file.check_different(asked, "seed", "seeds")
    if given is None:
        return tuple(asked)
    if type(given) is int and given > 0:
        more = range(max(asked) + 1, max(asked) + 1 + given)
        return (*asked, *more)[:given]
    whole = isinstance(given, list) and all(type(one) is int and one >= 0 for one in given)
    if not whole or not given or len(set(given)) < len(given):
        raise HarnessError(
            f"command line: seeds: {given!r} is neither how many seeds (seeds=5) nor a list of "
            "different ones (seeds=[3,4,5])"
        )
    return tuple(given)


def _arms(file: _File) -> list[tuple[Mapping[str, Any], Arm, Location]]:
    """By what its runs are named, the arm, and where its changes stand: of the grid of the axes,
    then the named ones; the recipe as it is where there is neither.
    """
    axes, listed = file.asked.axes, file.asked.arms
    for key, several in axes.items():
        if not several:
            where = file.at("axes", key)
            raise HarnessError(f"{where}: axis {key!r} is empty; give at least one value")
        file.check_different(several, f"value of axis {key!r}", "axes", key)
    arms: list[tuple[Mapping[str, Any], Arm, Location]] = []
    if axes or not listed:
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            arm = Arm.model_construct(label=names.label(point), set=point)
            arms.append((point, arm, ("axes",)))
    for index, arm in enumerate(listed):
        arms.append(({"arm": arm.label}, arm, ("arms", index, "set")))
    file.check_different([arm.label for _, arm, _ in arms], "arm label", "arms")
    return arms


def _baseline(file: _File, arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of the arm that the study names, as its runs are named by them."""
    baseline = file.asked.baseline
    if baseline and baseline not in arms:
        shown = "; ".join(str(values) for values in arms[:6])
        where = file.at("baseline")
        raise HarnessError(f"{where}: baseline {baseline} is no arm of this study (arms: {shown})")
    return dict(next((values for values in arms if values == baseline), {}))


# -- merging and checking --------------------------------------------------------------------------
def leaves(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of everything in a nested mapping that is no mapping, or an empty one."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from (((key, *below), leaf) for below, leaf in leaves(value))
        else:
            yield (key,), value


def _from_home(value: Any) -> Any:
    """Settings in which files below ``~/`` stand by their whole name."""
    if isinstance(value, dict):
        return {key: _from_home(one) for key, one in value.items()}
    below = isinstance(value, str) and value.startswith("~/")
    return str(Path(value).expanduser()) if below else value


def validate(model: type[Model], data: Any, places: Places) -> Model:
    """``data`` as a ``model``. Raises HarnessError with place, key and what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        explained = [_explained(one, model, places) for one in error.errors()[:5]]
        raise HarnessError("\n".join(explained)) from None


def _explained(error: Any, model: type[BaseModel], places: Places) -> str:
    """One error of pydantic in words: place, key, what is allowed."""
    unknown = error["type"] == "extra_forbidden"
    *above, last = error["loc"] or ("",)
    # Members of a union and validators are in pydantic's path too: they are no keys.
    key = re.compile(r"[A-Za-z0-9_.]+").fullmatch
    at: Location = tuple(part for part in above if isinstance(part, int) or key(str(part)))
    if unknown or isinstance(last, int) or key(str(last)):
        at = (*at, last)
    below = (one for other, one in places.items() if unknown and other[: len(at)] == at)
    place = next(below, "") or place_of(places, at)
    dotted = ".".join(str(part) for part in at)
    if unknown:
        fields = _fields_at(model, at[:-1])
        close = shipped.suggest(str(at[-1]), fields) or _elsewhere(model, str(at[-1]))
        return f"{place}: unknown key {dotted!r}{close}; allowed: {', '.join(fields)}"
    if error["type"] == "missing":
        return f"{place}: key {dotted!r} is missing"
    said, given = error["msg"].removeprefix("Value error, "), error.get("input")
    if given is None or isinstance(given, (str, int, float, bool)):
        said += f" (given: {given!r})"
    return f"{place}: {dotted or 'recipe'}: {said}"


def _elsewhere(model: type[BaseModel], name: str) -> str:
    """`` (did you mean …?)`` where a recipe has a key of that name at another place."""
    found = [key for key in keys_of(Recipe) if f".{key}".endswith(f".{name}")]
    if not found or not (model is Recipe or "set" in model.model_fields):
        return ""
    under = "" if model is Recipe else ", under set"
    return f" (did you mean {' or '.join(map(repr, found[:3]))}{under}?)"


def _fields_at(model: Any, location: Location) -> list[str]:
    for part in location:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            options = (fields[part].annotation, *getattr(fields[part].annotation, "__args__", ()))
            model = next((one for one in options if hasattr(one, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))
