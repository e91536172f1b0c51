"""Pages written from the code itself: ``docs/cli.md`` from the commands, ``docs/keys.md`` from the
settings and every registry, ``docs/arithmetic.md`` from the planner's figures, and a JSON schema
for each kind of YAML file. ``python -m harness.cli.docs`` writes them; a test fails when they are
stale.
"""

from __future__ import annotations

import inspect
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from analysis.power import Components, seeds_needed
from harness.cli import app, schema
from harness.cost.budget import Assumptions, Budget, amount, budget
from harness.engine.runs import build_plan
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.evaluate.registry import BENCHMARKS
from harness.rankers.pairs import PAIR_RULES, SELECTORS
from harness.rankers.registry import RANKERS
from harness.stages.diagnostics.measures import DIAGNOSTICS
from harness.study import sections, settings, shipped, study
from harness.train.objectives import OBJECTIVES, source_of
from harness.tune import search

DOCS = Path(__file__).parents[2] / "docs"
WRITTEN = "Written by `python -m harness.cli.docs` from the code"


def cli_page() -> str:
    """Every command with its arguments, options, defaults and example, in Markdown."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", f"{WRITTEN}; `selm COMMAND --help` shows the same.", ""]
    for name, command in group.commands.items():
        lines += [f"## `selm {name}`", "", inspect.cleandoc(command.help or ""), ""]
        rows = [_option(option) for option in command.params if option.name != "help"]
        lines += [*_table(("argument or option", "default", "meaning"), rows), ""]
    return "\n".join(lines)


def _option(option: Any) -> tuple[str, str, str]:
    shown = option.name.upper()
    if option.param_type_name == "option":
        shown = "/".join(option.opts)
    known = option.default not in (None, ()) and not option.required
    return f"`{shown}`", f"`{option.default}`" if known else "", getattr(option, "help", "") or ""


def keys_page() -> str:
    """Every key of a study, a recipe and a search with type, default and meaning; then everything
    that a key can name: objectives, benchmarks, rankers, pair rules, diagnostics, stages.
    """
    set_by = (
        "Any of these can be set (`set`), varied (`axes`, `arms`) or given as `--set key=value`."
    )
    lines = ["# Keys", "", f"{WRITTEN}. Unknown keys and wrong types are errors.", ""]
    lines += ["## Study", "", *_section(study.StudyFile, ""), ""]
    lines += ["### `declare`", "", *_section(study.Declaration, "declare."), ""]
    lines += ["## Recipe", "", set_by]
    for name, field in settings.Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            lines += ["", f"### `{name}`", "", *_section(section, f"{name}.")]
    lines += ["", "## Search (`selm tune`)", "", *_section(search.TuneFile, ""), ""]
    lines += ["### `metrics`", "", *_section(search.Metric, "metrics."), ""]
    lines += ["### `space`", "", *_section(search.Range, "space.KEY.")]
    for title, heads, rows in _registries():
        lines += ["", f"## {title}", "", *_table(heads, rows)]
    return "\n".join(lines) + "\n"


def _registries() -> Iterator[tuple[str, Sequence[str], Iterable[Sequence[object]]]]:
    """Title, heads and rows of everything that is listed."""
    listed: tuple[tuple[str, str, Mapping[str, Any], Callable[[Any], tuple[object, ...]]], ...] = (
        (
            "Objectives",
            "name, reads, parameters, definition, source, checked against",
            OBJECTIVES,
            _objective,
        ),
        (
            "Benchmarks",
            "name, title, stage, asks a judge, files outside the pocket world",
            BENCHMARKS,
            _benchmark,
        ),
        ("Rankers", "kind, compares texts, checkpoint, asks a judge, definition", RANKERS, _ranker),
        (
            "Pair rules",
            "name, asks the ranker, definition",
            PAIR_RULES,
            lambda one: (_yes(one.scored), _first(one.choose)),
        ),
        (
            "Selectors of pairs",
            "name, definition, source, checked against",
            SELECTORS,
            lambda one: (_first(one.choose), source_of(one.choose), "the formula only"),
        ),
        (
            "Diagnostics",
            "name, measured on, unit, title",
            DIAGNOSTICS,
            lambda one: (one.split, one.unit, one.title),
        ),
        (
            "Stages",
            "stage, version, function",
            STAGES,
            lambda one: (one.version, f"`{one.function}`"),
        ),
    )
    for title, heads, entries, told in listed:
        yield title, heads.split(", "), [(f"`{key}`", *told(one)) for key, one in entries.items()]


def _objective(one: Any) -> tuple[object, ...]:
    checked = f"TRL's {one.trl}" if one.trl else "the formula only"
    reads, parameters = ", ".join(one.reads), _pairs(one.parameters)
    return reads, parameters, _first(one.function), source_of(one.function), checked


def _benchmark(one: Any) -> tuple[object, ...]:
    files = ", ".join(f"`evaluation.{one.name}.{key}`" for key in one.files)
    return one.title, f"`{one.stage}`", _yes(one.judged), files


def _ranker(one: Any) -> tuple[object, ...]:
    compares = "with each other" if one.pairwise else "one by one"
    return compares, one.checkpoint, _yes(one.asks_judge), _first(one.rank)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _pairs(values: Any) -> str:
    return ", ".join(f"`{key}` {value}" for key, value in values.items()) or "none"


def _first(function: Callable[..., Any]) -> str:
    """First sentence of a docstring, up to its first empty line."""
    return " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], rule: str = "---|") -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---|" + rule * (len(heads) - 1)]
    for row in rows:
        cells = (" ".join(str(cell).split()).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _section(model: Any, prefix: str) -> list[str]:
    return _table(("key", "type", "default", "meaning"), _fields(model, prefix))


def _fields(model: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        if nested and prefix and inner is not sections.LoraSettings:
            yield from _fields(inner, f"{prefix}{name}.")
            continue
        default = f"`{field.default!r}`"
        if field.is_required():
            default = "required"
        elif isinstance(field.default, BaseModel):
            default = ""
        yield f"`{prefix}{name}`", _type(field.annotation), default, field.description or ""


def _type(annotation: Any) -> str:
    """A type as a reader says it: ``float or list of float``, ``one of cpu, cuda``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        names = ("nothing" if option is type(None) else _type(option) for option in arguments)
        return " or ".join(names)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return getattr(annotation, "__name__", str(annotation)).replace("str", "text")


RECIPES = ("zephyr-7b", "llama-3-8b", "phi-3-mini")
PRICED = ("llama-3-70b", "gpt-6-luna")
"""Judges whose price is told: an open one served by oneself, and an API's."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "rollout, ranking": ("rollout", "rank"),
    "reference, training": ("reference", "train"),
    "answers, held-out rewards": ("answer", "heldout"),
    "academic tasks": ("academic",),
    "diagnostics": ("diagnostics",),
}
ITEMS, DELTA = 805, 1.0
SPREADS = (0.5, 1.0, 2.0)
"""Assumed standard deviations over seeds of a difference between two arms, LC points."""
GPU_PRICE = 2.5
"""USD for an hour of an H100, assumed; `selm plan --cost --gpu-price` takes another."""


def cost_of(recipe: str, judge: str) -> Budget:
    """One run of a recipe, nothing of it done; the hub is not asked."""
    path = shipped.FOLDER / "recipes" / f"{recipe}.yaml"
    asked = study.load_any(path, {"judge": judge})
    with tempfile.TemporaryDirectory() as folder:
        return budget(build_plan(asked), Store(Path(folder)), Assumptions())


def hours(found: Budget, *stages: str) -> float:
    """GPU-hours of these stages, or of all."""
    lines = [line for line in found.lines if not stages or line.node.stage in stages]
    return found.gpu_seconds(lines) / 3600


def price(found: Budget) -> float:
    """USD of its judging."""
    return sum(line.usd for line in found.lines)


def cost_page() -> str:
    """The page, from the planner's own figures."""
    open_judge, paid = PRICED
    found = {name: cost_of(name, paid) for name in RECIPES}
    free = {name: cost_of(name, open_judge) for name in RECIPES}
    total = {name: hours(one) for name, one in found.items()}

    def parts() -> Iterator[tuple[str, ...]]:
        for part, stages in PARTS.items():
            yield part, *(f"{hours(one, *stages):.1f}" for one in found.values())
        yield "**GPU-hours**", *(f"**{one:.1f}**" for one in total.values())
        yield (
            f"USD at {GPU_PRICE:.2f} an hour",
            *(f"{one * GPU_PRICE:.0f}" for one in total.values()),
        )
        for judges in (free, found):
            yield from judging(judges)

    def judging(judges: Mapping[str, Budget]) -> Iterator[tuple[str, ...]]:
        bills = {name: one.bills()[0] for name, one in judges.items()}
        said = (f"{amount(bill.calls)} calls, {bill.usd:.2f} USD" for bill in bills.values())
        yield f"judge {bills[RECIPES[0]].name}", *said

    def differences() -> Iterator[tuple[str, ...]]:
        for spread in SPREADS:
            seeds = seeds_needed(Components(spread, 0, 0), DELTA, ITEMS, "A").value or 0
            runs = 2 * seeds
            costs = (
                f"{runs * total[name]:,.0f} h, "
                f"{runs * (total[name] * GPU_PRICE + price(found[name])):,.0f} USD"
                for name in RECIPES
            )
            yield f"{spread:g}", str(seeds), *costs

    return PAGE.format(
        parts="\n".join(_table(("one run", *RECIPES), parts(), " --: |")),
        differences="\n".join(_table(("σ over seeds", "seeds", *RECIPES), differences(), " --: |")),
        paid=paid,
        shares=Assumptions(),
    )


PAGE = """# What it costs

Written by `python -m harness.cli.docs` from what `selm plan ablations/recipes/NAME.yaml --cost`
counts. That command shows how each figure comes about, with every assumption, and takes your
devices, their price and your judge.

## The paper's recipes: one run

One arm, one seed, every checkpoint scored; on H100s, by operations: of a card's peak training is
taken to reach {shares.training:.0%}, reading {shares.reading:.0%} and generating with vLLM
{shares.generating:.0%}. Loading and start-up are not counted. None of these runs has been made with
this harness.

{parts}

Judge tokens are those of MT-Bench and AlpacaEval 2.0 at the profile's prices; an open judge costs
its own GPU instead. Stages that arms share (data, base, its scores) are counted in each run here
and are run once in a study.

## One difference that can be told

How many seeds an arm and its α = 0 twin need, so that a true difference of 1 point of AlpacaEval's
length-controlled win rate is found four times in five (two-sided 5 % test over seeds, these items),
and what both arms then take, judge {paid} included. σ is the standard deviation over seeds of the
difference of the two arms in LC points. It is assumed: nobody has published it for SELM. A study of
three seeds estimates it within a factor of 0.5 to 6; `selm power STUDY --delta 1.0` then says what
it takes.

{differences}

New items widen the interval further: on 805 instructions no number of seeds tells a difference
under 2.8·σ_i/√805, where σ_i is the difference's standard deviation over instructions.
"""


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    made = {"cli.md": cli_page(), "keys.md": keys_page(), "arithmetic.md": cost_page()}
    made |= schema.files()
    return {DOCS / name: text for name, text in made.items()}


def main() -> None:
    """Write the pages."""
    DOCS.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
