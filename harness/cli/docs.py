"""Reference pages written from the code itself: ``docs/cli.md`` from the commands, ``docs/keys.md``
from the settings.

``python -m harness.cli.docs`` writes both; a test fails when they are stale.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from harness.engine.stages import STAGES
from harness.study import sections, settings, study
from harness.train.objectives import OBJECTIVES
from harness.tune import search as tune_file

FOLDER = Path(__file__).parents[2] / "docs"


def cli_page() -> str:
    """Every command with its arguments, options, defaults and example, in Markdown."""
    import typer

    from harness.cli import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Written by `python -m harness.cli.docs` from the code; `selm COMMAND --help` shows the "
        "same.",
        "",
    ]
    for name, command in group.commands.items():
        lines += [
            f"## `selm {name}`",
            "",
            inspect.cleandoc(command.help or ""),
            "",
            "| argument or option | default | meaning |",
            "|---|---|---|",
        ]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            shown = (
                "/".join(parameter.opts)
                if parameter.param_type_name == "option"
                else parameter.name.upper()
            )
            default = (
                ""
                if parameter.default in (None, ()) or parameter.required
                else f"`{parameter.default}`"
            )
            lines.append(
                f"| `{shown}` | {default} | {getattr(parameter, 'help', '') or ''} |".replace(
                    "  ", " "
                )
            )
        lines.append("")
    return "\n".join(lines)


def keys_page() -> str:
    """Every key of a study and of a recipe with type, default and meaning; every objective and
    stage by name.
    """
    lines = [
        "# Keys",
        "",
        "Written by `python -m harness.cli.docs` from the code. Unknown keys and wrong types are "
        "errors.",
        "",
        "## Study",
        "",
    ]
    lines += [
        *_section(study.StudyFile, ""),
        "",
        "### `declare`",
        "",
        *_section(study.Declaration, "declare."),
    ]
    lines += [
        "",
        "## Recipe",
        "",
        "Any of these can be set (`set`), varied (`axes`, `arms`) or given as `--set key=value`.",
    ]
    for name, field in settings.Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            lines += ["", f"### `{name}`", "", *_section(section, f"{name}.")]
    lines += [
        "",
        "## Search (`selm tune`)",
        "",
        *_section(tune_file.TuneFile, ""),
        "",
        "### `metrics`",
        "",
        *_section(tune_file.Metric, "metrics."),
    ]
    lines += ["", "### `space`", "", *_section(tune_file.Range, "space.KEY.")]
    lines += [
        "",
        "## Objectives",
        "",
        "| name | reads | parameters | definition |",
        "|---|---|---|---|",
    ]
    for name, objective in OBJECTIVES.items():
        parameters = (
            ", ".join(f"`{key}` {value}" for key, value in objective.parameters.items()) or "none"
        )
        first = (
            inspect.cleandoc(objective.function.__doc__ or "").splitlines()[0].replace("|", "\\|")
        )
        lines.append(f"| `{name}` | {', '.join(objective.reads)} | {parameters} | {first} |")
    lines += ["", "## Stages", "", "| stage | version | function |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {stage.version} | `{stage.function}` |" for name, stage in STAGES.items()
    ]
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], prefix: str) -> list[str]:
    notes = _notes(model)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        inner = field.annotation
        if (
            isinstance(inner, type)
            and issubclass(inner, BaseModel)
            and prefix
            and inner is not sections.LoraSettings
        ):
            lines += _section(inner, f"{prefix}{name}.")[2:]
            continue
        kind = _type(field.annotation)
        default = f"`{field.default!r}`"
        if field.is_required():
            default = "required"
        elif isinstance(field.default, BaseModel):
            default = ""
        lines.append(f"| `{prefix}{name}` | {kind} | {default} | {notes.get(name, '')} |")
    return lines


def _type(annotation: Any) -> str:
    """A type as a reader says it: ``float or list of float``, ``one of cpu, cuda``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(
            "nothing" if option is type(None) else _type(option) for option in arguments
        )
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(annotation.model_fields) + "}"
    return getattr(annotation, "__name__", str(annotation)).replace("str", "text")


def _notes(model: type[BaseModel]) -> dict[str, str]:
    """The string that follows a field in the source is its meaning."""
    tree = ast.parse(inspect.getsource(model))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    notes = {}
    for before, after in itertools.pairwise(body):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            notes[before.target.id] = " ".join(str(after.value.value).split()).replace("|", "\\|")
    return notes


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    return {FOLDER / "cli.md": cli_page(), FOLDER / "keys.md": keys_page()}


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
