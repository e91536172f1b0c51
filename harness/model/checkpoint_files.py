"""What lies in a checkpoint folder: where it is, which files hold its weights, their headers, and
the content hash by which it enters keys.

Weights are read from safetensors only, pickled ones and code from a repository only when that
repository is named.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.files import hash_file, write_atomic
from harness.records import HarnessError, content_hash, first_line

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NATIVE = "consolidated*.safetensors"
"""Mistral's own form, which its repositories hold beside the usual one; never read."""
STATES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
IGNORED = {".git", ".gitattributes", "README.md", "LICENSE", "training_args.bin", *STATES}
"""Files of a checkpoint folder that change nothing about the model."""


class CheckpointError(HarnessError, ValueError):
    """A checkpoint that would not load as it was saved. Says which tensors, and what to do."""


# -- the folder ------------------------------------------------------------------------------------


def location(folder: Path) -> dict[str, Any]:
    """What ``location.json`` says (see stage ``base.checkpoint``); empty where there is none."""
    file = Path(folder) / "location.json"
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def model_folder(folder: Path) -> Path:
    """The checkpoint of a stage's folder: ``model/`` below it, the path in its ``location.json``,
    or the folder itself.
    """
    folder = Path(folder)
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    pointed = location(folder).get("path")
    if pointed and (Path(pointed) / "config.json").is_file():
        return Path(pointed)
    if pointed:
        raise HarnessError(
            f"{folder / 'location.json'} points to {pointed}, which holds no config.json any "
            "more; restore it or run the base stage again"
        )
    if (folder / "config.json").is_file():
        return folder
    check_no_adapter(folder, str(folder))
    raise HarnessError(
        f"{folder}: no checkpoint here (no model/config.json, no location.json, no config.json)"
    )


def check_no_adapter(path: Path, source: str) -> None:
    """Raise CheckpointError for a PEFT adapter, alone or beside a model that it would change."""
    found = sorted(f.name for f in path.glob("adapter_*") if f.suffix in (".json", *WEIGHTS))
    if not found:
        return
    if (path / "config.json").is_file():
        raise CheckpointError(
            f"{source}: adapter files lie beside the model ({', '.join(found)}) and would be "
            "applied to it at each load. If they are merged into its weights already, delete them; "
            "if not, merge them (peft: merge_and_unload, then save_pretrained into a new folder)"
        )
    raise CheckpointError(
        f"{source}: a PEFT adapter alone ({', '.join(found)}), without its model. Merge it into "
        f"its base {base_of(path)} (peft: AutoPeftModelForCausalLM.from_pretrained, "
        "merge_and_unload, save_pretrained into a new folder) and give that folder; a study whose "
        "cells are given takes adapters as they are"
    )


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter without its model."""
    return (path / ADAPTER).is_file() and not (path / "config.json").is_file()


def base_of(path: Path) -> str:
    """What an adapter's configuration names as its base; empty where it names none."""
    try:
        settings = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
        return str(settings["base_model_name_or_path"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@dataclass(frozen=True)
class WeightFiles:
    """The files a load reads: safetensors, or pickled ones."""

    files: tuple[Path, ...]
    pickled: bool = False


def weight_files(path: Path, source: str, pickle_weights: str = "") -> WeightFiles:
    """The one set of weights in a checkpoint folder.

    Raises HarnessError for none, for two, for shards that are absent or that the index does not
    know, and for pickled ones unless ``pickle_weights`` names ``source``.
    """
    check_no_adapter(path, source)
    present = {f.name for f in path.glob("*.safetensors")} - {f.name for f in path.glob(NATIVE)}
    if not present and not (path / INDEX).is_file():
        pickled = sorted(f.name for f in path.glob("*.*") if f.suffix in WEIGHTS[1:])
        pickled = [name for name in pickled if name != "training_args.bin"]
        if not pickled:
            raise HarnessError(f"{path}: no weights here (no *.safetensors)")
        if not pickle_weights or pickle_weights != source:
            raise HarnessError(
                f"{path}: the weights are pickle files ({', '.join(pickled[:3])}), which can run "
                "code when loaded. Convert them to safetensors (save_pretrained of a copy you "
                f"trust), or allow this one by name: model.pickle_weights: {source}"
            )
        return WeightFiles(tuple(path / name for name in pickled), pickled=True)
    if SINGLE in present and (path / INDEX).is_file():
        raise CheckpointError(
            f"{source}: two sets of weights, {SINGLE} and the shards of {INDEX}; delete the one "
            "that is not this model's"
        )
    read = {SINGLE} if SINGLE in present else _shards(path, source, present)
    if stray := sorted(present - read):
        raise CheckpointError(
            f"{source}: {', '.join(stray[:3])} beside {', '.join(sorted(read)[:2])}: weights that "
            "no index names, of another model or an older save; move them out of the folder"
        )
    return WeightFiles(tuple(path / name for name in sorted(read)))


def _shards(path: Path, source: str, present: set[str]) -> set[str]:
    index = path / INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{source}: holds {', '.join(sorted(present)[:3])} but neither {SINGLE} nor {INDEX}, "
            "which says what belongs to the model; fetch or save the whole checkpoint again"
        )
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index}: cannot be read as an index of shards ({first_line(error)}); fetch it again"
        ) from error
    if absent := sorted(named - present):
        raise CheckpointError(
            f"{index} names {len(named)} shards, of which {len(absent)} are absent "
            f"({', '.join(absent[:3])}); fetch the whole checkpoint again"
        )
    return named


def settings_of(file: Path, source: str) -> dict[str, Any]:
    """A checkpoint's JSON file of settings. Raises CheckpointError for one that holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: {file.name} cannot be read ({first_line(error)}); fetch or save it again"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{source}: {file.name} holds no settings, but {str(found)[:40]!r}")
    return found


def check_code(path: Path, source: str, trust_remote_code: str = "") -> bool:
    """Whether the repository's own code is to run. Raises HarnessError when it is needed and
    ``trust_remote_code`` does not name ``source``.
    """
    from transformers import CONFIG_MAPPING

    config = settings_of(path / "config.json", source)
    kind = config.get("model_type", "")
    if kind in CONFIG_MAPPING:
        return False
    if "auto_map" not in config:
        raise HarnessError(
            f"{path}/config.json: model_type {kind!r} is not known to the installed transformers, "
            "and the checkpoint brings no code for it"
        )
    if trust_remote_code and trust_remote_code in (source, str(path)):
        return True
    raise HarnessError(
        f"{source}: model_type {kind!r} needs code from the repository itself. Read that code, "
        f"then allow it by name: model.trust_remote_code: {source}"
    )


# -- the content -----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """What may be lost: it only costs time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selm"


def fingerprint(path: Path) -> str:
    """SHA-256 over the contents of a file, or over names and contents of a folder's files (hex).

    Hashes of files are remembered by real path, size and modification time (ns) in
    `cache_folder`, so that a checkpoint of many gigabytes is read once.
    """
    path = Path(path)
    if not path.exists():
        raise HarnessError(f"{path}: no such file or folder")
    memory = cache_folder() / "fingerprints.json"
    known, new, hashes = _remembered(memory), dict[str, str](), dict[str, str]()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        name = file.relative_to(path)
        if path.is_dir() and (not file.is_file() or IGNORED & set(name.parts)):
            continue
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in known:
            known[key] = new[key] = hash_file(file)
        hashes[str(name)] = known[key]
    if new:
        with contextlib.suppress(HarnessError, OSError):
            write_atomic(memory, json.dumps(_remembered(memory) | new, sort_keys=True))
    return hashes["."] if path.is_file() else content_hash("folder", hashes)


def _remembered(memory: Path) -> dict[str, str]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# -- the tensors -----------------------------------------------------------------------------------


class Stored:
    """The tensors in weight files by name: types and shapes at once, values one at a time."""

    def __init__(self, weights: WeightFiles, source: str) -> None:
        self.weights, self.source = weights, source
        self.headers: dict[str, Tensor] = {}
        places: dict[str, Path] = {}
        for file in weights.files:
            for name, tensor in self._open(file, "meta"):
                if name in places:
                    raise CheckpointError(
                        f"{source}: {name} is stored twice, in {places[name].name} and "
                        f"{file.name}; the shards are of two saves: fetch or save them again"
                    )
                places[name], self.headers[name] = file, tensor

    def values(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the named tensors, file by file."""
        wanted = set(names)
        for file in self.weights.files:
            yield from self._open(file, "cpu", wanted)

    def _open(
        self, file: Path, device: Literal["cpu", "meta"], names: set[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        import torch
        from safetensors import safe_open

        try:
            if self.weights.pickled:
                loaded = torch.load(file, map_location=device, weights_only=True)
                yield from ((n, t) for n, t in loaded.items() if names is None or n in names)
                return
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    if names is None:
                        header = opened.get_slice(name)
                        shape = header.get_shape()
                        none = header[:0] if shape else opened.get_tensor(name)
                        yield name, torch.empty(shape, dtype=none.dtype, device="meta")
                    elif name in names:
                        yield name, opened.get_tensor(name)
        except Exception as error:  # of the file's form, of both libraries: no narrower class
            raise CheckpointError(
                f"{self.source}: the weights cannot be read from {file.name} "
                f"({first_line(error, 200)}); fetch the checkpoint again"
            ) from error
