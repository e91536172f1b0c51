"""Loading a policy and its tokenizer, chat encoding, and the token pre-flight.

Weights are read from safetensors only, code from a repository is run only when that repository is
named, and every token sequence of the project is made here, so that prompts and answers are encoded
one way everywhere.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.model import tokenizer as stored_tokenizer
from harness.records import HarnessError

CACHE_SIZE = 2
"""Policies kept in this process: the one being used and the one before it."""

_PROBE_ANSWER = "Fine thanks"
_PROBE = ({"role": "user", "content": "How are you"},)
_PROBE_LONG = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "How are you"},
)


class PromptTooLongError(HarnessError):
    """A prompt has more tokens than allowed. The caller decides: refuse, drop or truncate, never
    silently.
    """


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
    key = (
        str(path.resolve()),
        dtype,
        attention,
        device,
        trust,
        str(where.get("chat_template", "")),
        weights,
        _stamp(path),
    )
    if cached and key in _CACHE:
        _CACHE.move_to_end(key)
        return _CACHE[key]
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    model = (
        _load_model(path, dtype, attention, device, trust, where)
        if weights
        else _empty_model(path, dtype, trust, where)
    )
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
    return tuple(
        (f.name, f.stat().st_size, f.stat().st_mtime_ns)
        for f in sorted(path.iterdir())
        if f.is_file()
    )


def _load_model(
    path: Path, dtype: str, attention: str, device: str, trust: str, where: Mapping[str, Any]
) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    pickled = check_weights(
        path, str(where.get("source", path)), str(where.get("pickle_weights", ""))
    )
    may_run_code = check_code(path, str(where.get("source", path)), trust)
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
        advice = (
            "; set model.attention: eager"
            if attention != "eager" and "attention implementation" in str(error)
            else ""
        )
        raise HarnessError(
            f"{path}: cannot load the model ({_first_line(error)}){advice}"
        ) from error
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
    try:
        tokenizer = stored_tokenizer.load(
            path, trust_remote_code=bool(trust) and trust == where.get("source", str(path))
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise HarnessError(f"{path}: cannot load the tokenizer ({_first_line(error)})") from error
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def check_weights(path: Path, source: str, pickle_weights: str = "") -> bool:
    """Whether the weights are pickled. Raises HarnessError for none, and for pickled ones unless
    ``pickle_weights`` names ``source``.
    """
    if any(path.glob("*.safetensors")):
        return False
    pickled = sorted(
        f.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
        for f in path.glob(pattern)
        if f.name != "training_args.bin"
    )
    if not pickled:
        raise HarnessError(f"{path}: no weights here (no *.safetensors)")
    if pickle_weights and pickle_weights == source:
        return True
    raise HarnessError(
        f"{path}: the weights are pickle files ({', '.join(pickled[:3])}), which can run code "
        "when loaded. Convert them to safetensors "
        "(save_pretrained of a copy you trust), or allow this one by name: model.pickle_weights: "
        f"{source}"
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
        "then allow it by name: "
        f"model.trust_remote_code: {source}"
    )


# Chat encoding. One rule everywhere: the template writes the text, special tokens are added by
# nobody else, except one
# BOS where the tokenizer is one that starts its texts with it and the template does not write it.


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, generation: bool) -> str:
    """Text of a conversation as the chat template writes it; ``generation`` adds the header of the
    coming assistant turn.
    """
    if not tokenizer.chat_template:
        raise HarnessError(
            "the tokenizer has no chat template; give one with model.chat_template: <file.jinja>"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generation
        )
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):
            roles = [m.get("role") for m in messages]
            raise HarnessError(
                f"the chat template refuses a conversation with roles {roles}: {_first_line(error)}"
            ) from error
        raise
    return str(text)


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and _adds_bos(tokenizer) and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids


@lru_cache(maxsize=16)
def _adds_bos(tokenizer: Any) -> bool:
    return list(tokenizer("a")["input_ids"][:1]) == [tokenizer.bos_token_id]


def encode_prompt(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], max_prompt_length: int = 0
) -> list[int]:
    """Token ids of the conversation up to and with the header of the assistant's turn. At most one
    BOS, first.

    Raises PromptTooLongError over ``max_prompt_length`` (0: no limit); nothing is ever cut here.
    """
    ids = _encode(tokenizer, render(tokenizer, messages, generation=True))
    if max_prompt_length and len(ids) > max_prompt_length:
        start = str(messages[-1].get("content", ""))[:60]
        raise PromptTooLongError(
            f"a prompt has {len(ids)} tokens, the limit is {max_prompt_length} (its last turn "
            f"starts {start!r})"
        )
    return ids


def encode_conversation(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a finished conversation (what a reward model reads). At most one BOS, first."""
    return _encode(tokenizer, render(tokenizer, messages, generation=False))


def encode_response(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], text: str, max_tokens: int = 0
) -> list[int]:
    """Token ids of the assistant's turn after the header, end-of-turn token included, cut to
    ``max_tokens`` (0: no limit).
    """
    header = render(tokenizer, messages, generation=True)
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": text}], generation=False)
    if not whole.startswith(header):
        raise HarnessError(
            "the chat template rewrites the prompt when the answer is added: "
            f"{_difference(header, whole)}"
        )
    end = end_of_turn(tokenizer)
    cut = whole.rfind(end)
    if cut < len(header):
        raise HarnessError(f"the chat template writes no {end!r} after the answer {text[:60]!r}")
    prompt_ids = _encode(tokenizer, header)
    ids = _encode(tokenizer, whole[: cut + len(end)])
    if ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    # a token would span header and answer: the model, which continues the header's tokens, sees the
    # answer's own
    else:
        ids = tokenizer(whole[len(header) : cut + len(end)], add_special_tokens=False)["input_ids"]
    return list(ids[:max_tokens] if max_tokens else ids)


def end_of_turn(tokenizer: Any) -> str:
    """The special token with which the template ends an assistant's turn (not always the
    tokenizer's eos).
    """
    return _end_of_turn(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: Any, template: str) -> str:
    del (
        template
    )  # only a part of the cache's key: a template may be set on a tokenizer already seen
    header = render(tokenizer, _PROBE, generation=True)
    whole = render(
        tokenizer, [*_PROBE, {"role": "assistant", "content": _PROBE_ANSWER}], generation=False
    )
    tail = (
        whole[whole.rfind(_PROBE_ANSWER) + len(_PROBE_ANSWER) :]
        if _PROBE_ANSWER in whole
        else whole[len(header) :]
    )
    known = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    for token in known:
        if tail.lstrip().startswith(token):
            return token
    shown = _shown(tokenizer, _encode(tokenizer, whole))
    raise HarnessError(
        "the chat template ends an assistant's turn without an end-of-turn token: after the "
        f"answer comes {tail!r}. Tokens: {shown}"
    )


def _special_tokens(tokenizer: Any) -> set[str]:
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return {token for token in added | set(tokenizer.all_special_tokens) if token}


def stop_tokens(tokenizer: Any, model: Any = None) -> tuple[int, ...]:
    """Ids that end an answer: the template's end of turn, the eos token, and those of the
    generation config, sorted.
    """
    ids = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        ids.add(tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer)))
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids.update(listed if isinstance(listed, (list, tuple)) else [listed])
    return tuple(sorted(int(i) for i in ids if i is not None))


def preflight(tokenizer: Any) -> None:
    """Refuse a tokenizer and template that would train or sample on wrong tokens; the message shows
    the tokens.

    Looks for: no template, doubled BOS, BOS in mid-sequence, no end-of-turn token, a template that
    rewrites the prompt when the answer is added, a template that ignores the generation prompt.
    """
    for messages in (_PROBE, _PROBE_LONG):
        prompt_ids = _encode(tokenizer, render(tokenizer, messages, generation=True))
        header = render(tokenizer, messages, generation=True)
        whole = render(
            tokenizer,
            [*messages, {"role": "assistant", "content": _PROBE_ANSWER}],
            generation=False,
        )
        ids = _encode(tokenizer, whole)
        shown = _shown(tokenizer, ids)
        _check_bos(tokenizer, ids, shown)
        if not whole.startswith(header):
            raise HarnessError(
                "the chat template rewrites the prompt when the answer is added: "
                f"{_difference(header, whole)}. Tokens: {shown}"
            )
        if not whole[len(header) :].lstrip().startswith(_PROBE_ANSWER):
            raise HarnessError(
                "the chat template ignores add_generation_prompt: the model would have to write "
                "the assistant's header itself "
                f"({whole[len(header) :][:40]!r}). Tokens: {shown}"
            )
        end_of_turn(tokenizer)
        if ids[: len(prompt_ids)] != prompt_ids:
            raise HarnessError(
                "the prompt's tokens change when the answer is added. Alone: "
                f"{_shown(tokenizer, prompt_ids)}. With the answer: {shown}. "
                "The header should end in a special token or a line break that never merges with "
                "text"
            )


def _check_bos(tokenizer: Any, ids: Sequence[int], shown: str) -> None:
    bos = tokenizer.bos_token_id
    if bos is None or bos in (
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer)),
    ):
        return
    places = [i for i, token in enumerate(ids) if token == bos]
    if places[:2] == [0, 1]:
        raise HarnessError(
            "the beginning-of-text token is doubled; let the chat template write it once. "
            f"Tokens: {shown}"
        )
    if any(place > 0 for place in places):
        raise HarnessError(
            f"the beginning-of-text token stands in mid-sequence (place {max(places)}). Tokens: "
            f"{shown}"
        )


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    return " ".join(repr(str(token)) for token in tokenizer.convert_ids_to_tokens(list(ids)))


def _difference(prompt: str, whole: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return (
        f"prompt {prompt[max(0, at - 20) : at + 20]!r} becomes {whole[max(0, at - 20) : at + 20]!r}"
    )
