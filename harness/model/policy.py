"""Loading a policy and its tokenizer from a checkpoint folder.

Weights are read from safetensors only, pickled ones and code from a repository only when that
repository is named.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.model import tokenizer as stored_tokenizer
from harness.model.chat import stop_tokens
from harness.records import HarnessError, first_line

CACHE_SIZE = 2
"""Policies kept in this process: the one being used and the one before it."""


@dataclass(frozen=True)
class Policy:
    """A model in evaluation mode with its tokenizer. Shared by whoever loads the same folder: never
    change it in place.
    """

    model: Any
    tokenizer: Any
    folder: Path
    stop_token_ids: tuple[int, ...]
    device: str


_CACHE: OrderedDict[tuple[Any, ...], Policy] = OrderedDict()


def release_policies() -> None:
    """Drop the policies this process keeps for the next stage, and give their memory back."""
    import torch

    _CACHE.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def location(folder: Path) -> dict[str, Any]:
    """What ``location.json`` says (path, source, trust_remote_code, pickle_weights, chat_template);
    empty when there is none.
    """
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
    if pointed:
        if not (Path(pointed) / "config.json").is_file():
            raise HarnessError(
                f"{folder / 'location.json'} points to {pointed}, which holds no config.json any "
                "more; restore it or run the base stage again"
            )
        return Path(pointed)
    if (folder / "config.json").is_file():
        return folder
    raise HarnessError(
        f"{folder}: no checkpoint here (no model/config.json, no location.json, no config.json)"
    )


def load_policy(
    folder: Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    device: str = "cpu",
    trust_remote_code: str = "",
    cached: bool = True,
    weights: bool = True,
) -> Policy:
    """Load model and tokenizer from ``folder`` (see ``model_folder``); the last two policies of
    this process are kept.

    ``cached=False`` gives a model of the caller's own, free to be trained. ``weights=False`` gives
    an empty model (its configuration and stop tokens), for a sampler that loads the weights itself.
    Raises HarnessError for a missing or broken checkpoint, pickle weights, or repository code that
    was not allowed by name.
    """
    path = model_folder(folder)
    where = location(folder)
    trust = trust_remote_code or str(where.get("trust_remote_code", ""))
    asked = (dtype, attention, device, trust, str(where.get("chat_template", "")), weights)
    key = (str(path.resolve()), *asked, _stamp(path))
    if cached and key in _CACHE:
        _CACHE.move_to_end(key)
        return _CACHE[key]
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    if weights:
        model = _load_model(path, dtype, attention, device, trust, where)
    else:
        model = _empty_model(path, dtype, trust, where)
    policy = Policy(model, tokenizer, path, stop_tokens(tokenizer, model), device)
    if cached:
        _CACHE[key] = policy
        while len(_CACHE) > CACHE_SIZE:
            _CACHE.popitem(last=False)
    return policy


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a checkpoint's files: a folder written again is not served from the
    cache.
    """
    files = [f for f in sorted(path.iterdir()) if f.is_file()]
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)


def _load_model(
    path: Path, dtype: str, attention: str, device: str, trust: str, where: Mapping[str, Any]
) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source = str(where.get("source", path))
    pickled = check_weights(path, source, str(where.get("pickle_weights", "")))
    may_run_code = check_code(path, source, trust)
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=not pickled,
            trust_remote_code=may_run_code,
            local_files_only=True,
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        message = f"{path}: cannot load the model ({first_line(error, 300)})"
        if attention != "eager" and "attention implementation" in str(error):
            message += "; set model.attention: eager"
        raise HarnessError(message) from error
    finally:
        if bar:
            logging.enable_progress_bar()
    return model.to(device).eval()


def _empty_model(path: Path, dtype: str, trust: str, where: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    check_weights(path, str(where.get("source", path)))
    may_run_code = check_code(path, str(where.get("source", path)), trust)
    config = AutoConfig.from_pretrained(path, trust_remote_code=may_run_code, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=may_run_code
        )
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval()


def load_tokenizer(folder: Path, *, trust_remote_code: str = "") -> Any:
    """Tokenizer of a policy folder, with the chat template that ``location.json`` adds; a pad token
    is always set.

    Its ids are those of the stored ``tokenizer.json`` (see ``stored_tokenizer``).
    """
    path = model_folder(folder)
    where = location(folder)
    trust = trust_remote_code or str(where.get("trust_remote_code", ""))
    may_run_code = bool(trust) and trust == where.get("source", str(path))
    try:
        tokenizer = stored_tokenizer.load(path, trust_remote_code=may_run_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        message = f"{path}: cannot load the tokenizer ({first_line(error, 300)})"
        raise HarnessError(message) from error
    if where.get("chat_template"):
        tokenizer.chat_template = where["chat_template"]
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise HarnessError(
                f"{path}: the tokenizer has neither a pad nor an eos token; set one in "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_weights(path: Path, source: str, pickle_weights: str = "") -> bool:
    """Whether the weights are pickled. Raises HarnessError for none, and for pickled ones unless
    ``pickle_weights`` names ``source``.
    """
    if any(path.glob("*.safetensors")):
        return False
    endings, names = {".bin", ".pt", ".pth", ".ckpt"}, {f.name for f in path.glob("*.*")}
    pickled = sorted(name for name in names if Path(name).suffix in endings)
    pickled = [name for name in pickled if name != "training_args.bin"]
    if not pickled:
        raise HarnessError(f"{path}: no weights here (no *.safetensors)")
    if pickle_weights and pickle_weights == source:
        return True
    raise HarnessError(
        f"{path}: the weights are pickle files ({', '.join(pickled[:3])}), which can run code "
        "when loaded. Convert them to safetensors (save_pretrained of a copy you trust), or allow "
        f"this one by name: model.pickle_weights: {source}"
    )


def check_code(path: Path, source: str, trust_remote_code: str = "") -> bool:
    """Whether the repository's own code is to run. Raises HarnessError when it is needed and
    ``trust_remote_code`` does not name ``source``.
    """
    from transformers import CONFIG_MAPPING

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
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
