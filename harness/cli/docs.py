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
from harness.cost import Assumptions, Budget, amount, budget
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
        rows = []
        for option in command.params:
            named = option.param_type_name == "option"
            shown = "/".join(option.opts) if named else option.name.upper()
            known = option.default not in (None, ()) and not option.required
            default = f"`{option.default}`" if known else ""
            rows.append((f"`{shown}`", default, getattr(option, "help", "") or ""))
        lines += [*_table(("argument or option", "default", "meaning"), rows), ""]
    return "\n".join(lines)


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
    for title, heads, entries, told in REGISTRIES:
        rows = [(f"`{key}`", *told(one)) for key, one in entries.items()]
        lines += ["", f"## {title}", "", *_table(heads.split(", "), rows)]
    return "\n".join(lines) + "\n"


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _first(function: Callable[..., Any]) -> str:
    """First sentence of a docstring, up to its first empty line."""
    return " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())


REGISTRIES: Sequence[tuple[str, str, Mapping[str, Any], Callable[[Any], tuple[object, ...]]]] = (
    (
        "Objectives",
        "name, reads, parameters, definition, source, checked against",
        OBJECTIVES,
        lambda one: (
            ", ".join(one.reads),
            ", ".join(f"`{key}` {value}" for key, value in one.parameters.items()) or "none",
            _first(one.function),
            source_of(one.function),
            f"TRL's {one.trl}" if one.trl else "the formula only",
        ),
    ),
    (
        "Benchmarks",
        "name, title, stage, asks a judge, files outside the pocket world",
        BENCHMARKS,
        lambda one: (
            one.title,
            f"`{one.stage}`",
            _yes(one.judged),
            ", ".join(f"`evaluation.{one.name}.{key}`" for key in one.files),
        ),
    ),
    (
        "Rankers",
        "kind, compares texts, checkpoint, asks a judge, definition",
        RANKERS,
        lambda one: (
            "with each other" if one.pairwise else "one by one",
            one.checkpoint,
            _yes(one.asks_judge),
            _first(one.rank),
        ),
    ),
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
    ("Stages", "stage, version, function", STAGES, lambda one: (one.version, f"`{one.function}`")),
)
"""Title, heads, what is listed and the cells of one of it, without its name."""


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


def cost_page() -> str:
    """The page, from the planner's own figures: one run of each recipe, nothing of it done; the hub
    is not asked.
    """
    open_judge, paid = PRICED
    with tempfile.TemporaryDirectory() as empty:

        def budgets(judge: str) -> list[Budget]:
            paths = (shipped.FOLDER / "recipes" / f"{recipe}.yaml" for recipe in RECIPES)
            plans = (build_plan(study.load_any(path, {"judge": judge})) for path in paths)
            return [budget(plan, Store(Path(empty)), Assumptions()) for plan in plans]

        free, found = budgets(open_judge), budgets(paid)
    total = [hours(one) for one in found]
    parts = [
        (part, *(f"{hours(one, *stages):.1f}" for one in found)) for part, stages in PARTS.items()
    ]
    parts.append(("**GPU-hours**", *(f"**{one:.1f}**" for one in total)))
    usd = (f"{one * GPU_PRICE:.0f}" for one in total)
    parts.append((f"USD at {GPU_PRICE:.2f} an hour", *usd))
    for judged in (free, found):
        bills = [one.bills()[0] for one in judged]
        said = (f"{amount(bill.calls)} calls, {bill.usd:.2f} USD" for bill in bills)
        parts.append((f"judge {bills[0].name}", *said))
    # USD of a run: its GPU-hours and its judging.
    price = [
        taken * GPU_PRICE + sum(line.usd for line in one.lines)
        for taken, one in zip(total, found, strict=True)
    ]
    differences = []
    for spread in SPREADS:
        seeds = seeds_needed(Components(spread, 0, 0), DELTA, ITEMS, "A").value or 0
        both = zip(total, price, strict=True)
        told = (
            f"{2 * seeds * taken:,.0f} h, {2 * seeds * costs:,.0f} USD" for taken, costs in both
        )
        differences.append((f"{spread:g}", str(seeds), *told))
    return (
        Path(__file__)
        .with_name("arithmetic.md")
        .read_text(encoding="utf-8")
        .format(
            parts="\n".join(_table(("one run", *RECIPES), parts, " --: |")),
            differences="\n".join(
                _table(("σ over seeds", "seeds", *RECIPES), differences, " --: |")
            ),
            paid=paid,
            shares=Assumptions(),
        )
    )


def hours(found: Budget, *stages: str) -> float:
    """GPU-hours of these stages, or of all."""
    lines = [line for line in found.lines if not stages or line.node.stage in stages]
    return found.gpu_seconds(lines) / 3600


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
