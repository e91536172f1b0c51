"""Loading a policy and its tokenizer from a checkpoint folder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.model import tokenizer as stored_tokenizer
from harness.model.chat import stop_tokens
from harness.model.checkpoint import check_checkpoint, load_model
from harness.model.checkpoint_files import location, model_folder
from harness.model.tokenizer import chosen, told
from harness.records import HarnessError
from harness.study.sections import Argument

TEMPLATE = ("chat_template", "template_name", "template_date", "template_arguments")
"""What ``location.json`` says of the chat template: a text in place of the checkpoint's, or which
of its named ones; the day and the arguments it is told.
"""
CACHE_SIZE = 2
"""Policies kept in this process: the one being used and the one before it."""


@dataclass(frozen=True)
class Policy:
    """A model in evaluation mode with its tokenizer, shared by all who load it: never change it."""

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


def template_settings(
    asked: str, day: str = "", arguments: Mapping[str, Argument] | None = None
) -> dict[str, Any]:
    """What ``model.chat_template`` asks for (a file's text, or a name among the checkpoint's own),
    and what the template is told, as ``location.json`` says it.
    """
    text, name = "", asked
    if Path(asked).is_file():
        try:
            text, name = Path(asked).read_text(encoding="utf-8"), ""
        except UnicodeDecodeError as error:
            raise HarnessError(f"model.chat_template: {asked} is no UTF-8 ({error})") from error
    return dict(zip(TEMPLATE, (text, name, day, dict(arguments or {})), strict=True))


def load_policy(
    folder: Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    device: str = "cpu",
    cached: bool = True,
    weights: bool = True,
    quantised: bool = False,
) -> Policy:
    """Load model and tokenizer from ``folder`` (see ``model_folder``); the last two policies of
    this process are kept. A GPU holds one: what was kept goes before the next is loaded.

    ``cached=False`` gives a model of the caller's own, free to be trained. ``weights=False`` gives
    an empty model (its configuration and stop tokens), for a sampler that loads the weights itself.
    Raises HarnessError for a missing or broken checkpoint, pickle weights, or repository code that
    was not allowed by name. ``quantised``: linear layers in 4 bits, see ``checkpoint.load_model``.
    """
    path = model_folder(folder)
    where = location(folder)
    template = (str(where.get(name, "")) for name in TEMPLATE)
    trust = str(where.get("trust_remote_code", ""))
    asked = (dtype, attention, device, trust, *template, weights, quantised)
    # A folder written again is not served from the cache.
    stats = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    stamp = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    key = (str(path.resolve()), *asked, stamp)
    if cached and key in _CACHE:
        _CACHE.move_to_end(key)
        return _CACHE[key]
    tokenizer = load_tokenizer(folder)
    # A sampler that loads the weights itself looks at no value.
    found = check_checkpoint(folder, head="causal", tokenizer=tokenizer, values=not weights)
    if weights and device.startswith("cuda"):
        release_policies()
    if weights:
        model = load_model(
            found, dtype=dtype, attention=attention, device=device, quantised=quantised
        )
    else:
        model = _empty_model(path, dtype, found.code)
    policy = Policy(model, tokenizer, path, stop_tokens(tokenizer, model), device)
    if cached:
        _CACHE[key] = policy
        while len(_CACHE) > CACHE_SIZE:
            _CACHE.popitem(last=False)
    return policy


def _empty_model(path: Path, dtype: str, code: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=code, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=code
        )
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval()


def load_tokenizer(
    folder: Path, *, trust_remote_code: str = "", template: Mapping[str, Any] | None = None
) -> Any:
    """Tokenizer of a policy folder, with the chat template that ``location.json`` (or ``template``,
    see ``template_settings``) chooses, and what it is told fixed in it; a pad token is always set.

    Its ids are those of the stored ``tokenizer.json`` (see ``stored_tokenizer``).
    """
    path = model_folder(folder)
    where = {**location(folder), **(template or {})}
    trust = trust_remote_code or str(where.get("trust_remote_code", ""))
    may_run_code = bool(trust) and trust == where.get("source", str(path))
    tokenizer = stored_tokenizer.load(path, trust_remote_code=may_run_code)
    own = chosen(tokenizer.chat_template, str(where.get("template_name", "")))
    text = str(where.get("chat_template") or own)
    day, arguments = str(where.get("template_date", "")), where.get("template_arguments")
    tokenizer.chat_template = told(text, day, arguments) or None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise HarnessError(
                f"{path}: the tokenizer has neither a pad nor an eos token; set one in "
                "tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
