"""The fields of TRL's configurations: those of its own dataclasses, and those it had."""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
from enum import Enum
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin

from pydantic import TypeAdapter, ValidationError

from harness.records import HarnessError
from harness.study.yaml import load_yaml

ONLINE = ("trl.experimental.online_dpo", "OnlineDPOConfig")
METHODS = {
    "dpo": ("trl", "DPOConfig"),
    "orpo": ("trl.experimental.orpo", "ORPOConfig"),
    "online-dpo": ONLINE,
    "xpo": ONLINE,
}
"""Whose configuration it may be, and the class that TRL reads it into."""

FORMER: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("torch_dtype", "judge", "chat_template"), (str | None, None)),
    **dict.fromkeys(("truncation_side", "tokenizer_name_or_path"), (str | None, None)),
    **dict.fromkeys(("base_model_revision", "model_code_revision"), (str | None, None)),
    **dict.fromkeys(("warmup_ratio", "rpo_alpha"), (float | None, None)),
    **dict.fromkeys(("max_prompt_length", "max_completion_length"), (int | None, None)),
    **dict.fromkeys(("reference_free", "use_flash_attention_2"), (bool, False)),
    **dict.fromkeys(("auto_insert_empty_system_msg", "group_by_length"), (bool, False)),
    "dataset_mixer": (dict[str, float] | None, None),
    "dataset_mixture": (dict[str, Any] | None, None),
    "dataset_splits": (list[str], ["train", "test"]),
    "dataset_configs": (list[str] | None, None),
}
"""Type and default of fields that TRL, transformers or the alignment handbook had and have no more;
beside them the file's ``no_number``."""
XPO_FIELDS: dict[str, tuple[Any, Any]] = {"alpha": (list[float], [1e-5])}
"""What XPOConfig added to OnlineDPOConfig until TRL removed it."""
TOLD, _ = load_yaml(Path(__file__).with_suffix(".yaml"))
"""What becomes of fields that are no key of a recipe."""
SPEED = re.compile(f"({'|'.join(TOLD['speed_words'])})(_|$)")
CHANGES = "CHANGES NUMBERS"
Note = tuple[str, str, str]
"""Field with its line, its value, and what became of it."""


class Configuration:
    """What a file sets over TRL's defaults; which fields were read; what there is to tell."""

    def __init__(self, path: Path, method: str) -> None:
        values, self.lines = load_yaml(path)
        if not isinstance(values, dict):
            raise HarnessError(f"{path}:1: a TRL configuration is a mapping of its fields")
        self.path, self.method, self.offline = path, method, method in ("dpo", "orpo")
        former = dict.fromkeys(TOLD["no_number"], (Any, None)) | FORMER
        self.fields = former | _fields(method)
        self._refuse_unknown(values)
        self.values = {name: self._typed(name, value) for name, value in values.items()}
        self.read: set[str] = set()
        self.notes: list[Note] = []

    def where(self, field: str) -> str:
        """File and line."""
        return f"{self.path}:{self.lines[(field,)]}"

    def take(self, field: str) -> Any:
        """The value, or TRL's default: also for ``null``."""
        self.read.add(field)
        value = self.values.get(field)
        value = self.fields[field][1] if value is None else value
        return value.value if isinstance(value, Enum) else value

    def note(self, field: str, why: str) -> None:
        """What became of a field."""
        line = self.lines.get((field,))
        place = f"{field} (line {line})" if line else f"{field} (TRL's default)"
        value = self.values.get(field, self.fields[field][1])
        self.notes.append((place, " ".join(str(value).split()), why))

    def differs(self, field: str, why: str) -> None:
        """What became of a field on which numbers depend."""
        self.note(field, f"{CHANGES}: {why}")

    def refuse(self, field: str, why: str) -> HarnessError:
        """An error about a field that is set or at its default."""
        place = self.where(field) if (field,) in self.lines else str(self.path)
        return HarnessError(f"{place}: {field}: {why}")

    def told(self) -> list[Note]:
        """All there is to tell, what changes numbers first; with fields that nothing read."""
        for field, value in self.values.items():
            if field in self.read:
                continue
            if SPEED.match(field) or field in (*TOLD["no_number"], *TOLD["speed"]):
                self.note(field, "no number depends on it; see runtime in docs/keys.md")
            elif value in (None, self.fields[field][1]):
                self.note(field, "TRL's default, and how it is here")
            else:
                self.differs(field, TOLD["why"].get(field, "there is no such key"))
        return sorted(self.notes, key=lambda note: not note[2].startswith(CHANGES))

    def _refuse_unknown(self, values: dict[str, Any]) -> None:
        unknown = [name for name in values if name not in self.fields]
        if not unknown:
            return
        others = {one: _fields(one) for one in METHODS if one != self.method}
        told = []
        for name in unknown:
            theirs = [one for one, fields in others.items() if name in fields]
            close = difflib.get_close_matches(name, self.fields, n=1)
            said = "correct it or leave it out"
            if name in TOLD["elsewhere"]:
                said = TOLD["elsewhere"][name]
            elif theirs:
                said = f"it is one of --method {theirs[0]}"
            elif close:
                said = f"did you mean {close[0]}?"
            told.append(f"{self.where(name)}: {name} is no field of TRL's {self.method}: {said}")
        raise HarnessError("\n".join(told))

    def _typed(self, field: str, value: Any) -> Any:
        """As TRL's parser reads it: ``5e-7`` may be text, one number stands for a list of one."""
        kind = self.fields[field][0]
        if get_origin(kind) is list and not isinstance(value, list) and value is not None:
            value = [value]
        try:
            return None if value is None else TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise self.refuse(field, f"{value!r}: {said}") from None


@cache
def _fields(method: str) -> dict[str, tuple[Any, Any]]:
    """Type and default of every field of the classes that TRL's script parses."""
    trl: Any = import_module("trl")
    module, name = METHODS[method]
    with warnings.catch_warnings(action="ignore"):  # some say that they are experimental
        own = getattr(import_module(module), name)
    classes = [trl.ScriptArguments, trl.DatasetMixtureConfig, trl.ModelConfig, own]
    found = dict(XPO_FIELDS) if method == "xpo" else {}
    for one in classes:
        for field in dataclasses.fields(one):
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            found[field.name] = (field.type, default)
    return found
