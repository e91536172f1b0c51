"""What arms and runs are called. A name is text that reads back equal, one name stands for one
thing, and no name leaves the folder it is used in.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from harness.records import content_hash

LONGEST = 100
LONGEST_RUN = 240
"""Bytes; file systems take 255."""
QUOTED = str.maketrans({letter: f"%{ord(letter):02X}" for letter in '/\\*?"<>|@%'})
"""Letters that names of folders do not hold."""
TAKEN = ("store", "bench", "examples")
"""Folders of ``results/`` that are no study's."""


def _free(name: str) -> str:
    if name.lower() in TAKEN:
        raise ValueError(f"results/{name.lower()} holds something else; choose another name")
    return name


def check_label(label: str) -> str:
    """The label of an arm. Raises ValueError for one that cannot be shown or is taken."""
    if not label.strip():
        raise ValueError("a label is empty; tables call the arm by it")
    if not label.isprintable():
        raise ValueError("a label holds characters that are not printed")
    if label.lower() == "base":
        raise ValueError("tables call the untrained policy Base; choose another label")
    return label


FolderName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=LONGEST), AfterValidator(_free)
]
"""Names a folder below ``results/``."""
Label = Annotated[str, Field(max_length=LONGEST), AfterValidator(check_label)]


def run_name(arm: Mapping[str, Any], seed: int) -> str:
    """``objective.alpha=0.3,seed=1``: the arm's keys in study order, then the seed. What no folder
    could be called is cut and told apart by its hash.
    """
    parts = [f"{key}={text_of(value).translate(QUOTED)}" for key, value in arm.items()]
    name = ",".join([*parts, f"seed={seed}"])
    if len(name.encode()) <= LONGEST_RUN:
        return name
    digest = f"~{content_hash(name, length=8)},seed={seed}"
    return name.encode()[: LONGEST_RUN - len(digest)].decode(errors="ignore") + digest


def label(arm: Mapping[str, Any]) -> str:
    """``α = 0.3, seed = 1``: an arm of a grid as tables call it."""
    last = {key: key.rsplit(".", 1)[-1] for key in arm}
    uses = Counter(last.values())
    shown = []
    for key, value in arm.items():
        name = last[key] if uses[last[key]] == 1 else key
        name = name.replace("alpha", "α").replace("beta", "β")
        shown.append(f"{name} = {text_of(value)}")
    return ", ".join(shown) or "base recipe"


def text_of(value: Any) -> str:
    """A value as text without commas; a number as the shortest that reads back equal (1, 1e-05)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Mapping):
        return "{" + ";".join(f"{key}:{text_of(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ";".join(map(text_of, value)) + "]"
    if value is None:
        return "null"
    return re.sub(r"[\s,]+", "", str(value))


def first_of_the_same_name(values: Sequence[Any]) -> tuple[int, int] | None:
    """Places of two values that one name would stand for, the later one first; None where every
    name is its own. Names that differ in letter case or in the encoding of a character alone are
    one folder on some disks, and one name to a reader.
    """
    seen: dict[str, int] = {}
    for place, value in enumerate(values):
        folded = unicodedata.normalize("NFKC", text_of(value)).casefold()
        if folded in seen:
            return place, seen[folded]
        seen[folded] = place
    return None
