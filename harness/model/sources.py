"""A model's source as a checkpoint folder: the folder itself, the hub's files, a GGUF file, or a
PEFT adapter with its base.

transformers reads a GGUF file and dequantises it. Its tokenizer splits a byte-level vocabulary as
GPT-2 does wherever it does not know how the file's own was split (``tokenizer.ggml.pre``): the ids
are then not those of training, so such a file is cured here or refused.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.files import hash_file
from harness.model.checkpoint import check_checkpoint, check_fit, fit_of, load_model, quiet
from harness.model.checkpoint_files import (
    ADAPTER_WEIGHTS,
    CheckpointError,
    cache_folder,
    check_no_adapter,
)
from harness.model.isolated_rng import isolated_rng
from harness.records import HarnessError, content_hash, first_line

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is fetched of a hub repository: configuration, tokenizer and safetensors weights."""
DIGITS_APART = ("smollm",)
"""Splits in which every digit stands alone before GPT-2's rule: SmolLM's published tokenizer."""
GGUF_VERSION = 1
"""Raised when a GGUF file's checkpoint changes."""
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""Files of a tokenizer: an adapter's where its folder holds any, else its base's."""


def resolve(source: str, revision: str = "", *, pickle_weights: str = "") -> Path:
    """The checkpoint's local folder: ``source`` itself, what a GGUF file holds, or the hub's files
    from the cache, fetched when there is a network.

    Raises HarnessError for a missing, gated or unreachable one, saying what to do.
    """
    folder = Path(source).expanduser()
    if is_gguf(folder):
        return gguf_checkpoint(folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            check_no_adapter(folder, source)
            raise HarnessError(f"{source}: this folder is no checkpoint (no config.json)")
        return folder.resolve()
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise HarnessError(
            f"{source}: no such checkpoint folder (a hub id has the form owner/name)"
        )
    more = ["*.bin"] if pickle_weights == source else []
    return _from_hub(source, revision, [*HUB_FILES, *more])


def _from_hub(source: str, revision: str, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    def fetch(offline: bool) -> Path:
        options: Any = {"allow_patterns": patterns, "local_files_only": offline}
        return Path(snapshot_download(source, revision=revision or None, **options))

    where = "the hub repository"
    try:
        path = fetch(False)
    except errors.GatedRepoError as error:
        raise HarnessError(
            f"{source}: gated on the hub; accept its terms on its page and log in with `hf auth "
            "login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HarnessError(f"{source}: the hub has no revision {revision!r} of it") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise HarnessError(
            f"{source}: no such model on the hub, or it is private and you are not logged in (`hf "
            "auth login`)"
        ) from error
    except OSError as error:  # no network, or told to do without one
        where = f"the hub cannot be reached ({first_line(error)}), and its cached copy"
        try:
            path = fetch(True)
        except Exception as missing:
            raise HarnessError(
                f"{source}: not a local folder, not in the hub's cache, and the hub cannot be "
                f"reached ({first_line(error)}). Download it where there is a network (`hf "
                "download`) or give a folder"
            ) from missing
    if not (path / "config.json").is_file():
        check_no_adapter(path, source)
        raise HarnessError(
            f"{source}: {where} holds no config.json at its top; it is not a whole transformers "
            "checkpoint"
        )
    if not any(path.glob("*.safetensors")) and "*.bin" not in patterns:
        raise HarnessError(
            f"{source}: {where} holds no safetensors weights (pickle files are not fetched). "
            f"Convert it, or allow it by name: model.pickle_weights: {source}"
        )
    return path


# -- GGUF ------------------------------------------------------------------------------------------


def is_gguf(source: str | Path) -> bool:
    """Whether a model's source names such a file."""
    return Path(source).suffix.lower() == ".gguf"


def gguf_checkpoint(file: Path) -> Path:
    """The folder of the file's checkpoint in float32, written once for its content in
    `cache_folder`.

    Raises HarnessError for a file that is missing, cut short, of an architecture that transformers
    does not read, or with tensors or a tokenizer that would not be read as they were meant.
    """
    import transformers

    if not file.is_file():
        raise HarnessError(f"{file}: no such GGUF file")
    cache = cache_folder() / "gguf"
    name = content_hash(hash_file(file), GGUF_VERSION, transformers.__version__, length=32)
    if not (cache / name / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache))
        try:
            _gguf_tokenizer(file).save_pretrained(scratch)
            _gguf_model(file).save_pretrained(scratch)
            # Whoever came first has written the same.
            if not (cache / name).exists():
                scratch.rename(cache / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return cache / name


def gguf_settings(file: Path) -> dict[str, Any]:
    """What would stand in the checkpoint's config.json. Raises as `gguf_checkpoint`."""
    from transformers import AutoConfig

    with _reading(file):
        found: dict[str, Any] = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name
        ).to_dict()
    return found


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever the libraries raise, as one error with the file's name."""
    try:
        with quiet():
            yield
    except ImportError as error:
        how = "`pip install -e '.[gguf]'`"
        raise HarnessError(f"{file}: reading GGUF needs a package: {how}") from error
    except Exception as error:  # of the file's form, of any class
        raise HarnessError(
            f"{file}: cannot be read as a GGUF model ({first_line(error, 300)}). It is cut short "
            "(fetch it again), or of a kind that the installed transformers does not read (take "
            "the safetensors checkpoint it was made from)"
        ) from error


def _gguf_model(file: Path) -> Any:
    """A model of the dequantised weights that knows nothing of their having been quantised."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    with _reading(file):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, **options
        )
        read, info = loaded
        vars(read.config).pop("quantization_config", None)
        with torch.device("meta"):
            model = type(read)(read.config)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
    model.generation_config = read.generation_config
    check_fit(fit_of(model, info), {}, str(file))
    return model


def _gguf_tokenizer(file: Path) -> Any:
    """The file's tokenizer: its own tokens, its text split as ``tokenizer.ggml.pre`` says. Raises
    HarnessError where neither transformers nor we know that split.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer

    with _reading(file):
        from gguf import GGUFReader

        fields = GGUFReader(file).fields
        split = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else ""
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        count = len(fields["tokenizer.ggml.tokens"].data)
        # Byte-level files are read by the GPT-2 class, which adds an <|endoftext|> of its own.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        beyond = {token["content"] for token in state["added_tokens"] if token["id"] >= count}
        if beyond:
            state["added_tokens"] = [one for one in state["added_tokens"] if one["id"] < count]
            if tokenizer.unk_token in beyond:
                tokenizer.unk_token = None
            tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) or split == "gpt-2":
        return tokenizer
    if split not in DIGITS_APART:
        raise HarnessError(
            f"{file}: how its tokenizer splits text (tokenizer.ggml.pre: {split or 'not said'}) is "
            "not known to the installed transformers, which would make other tokens than the model "
            "was trained on; take the safetensors checkpoint it was made from"
        )
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer


# -- PEFT adapters ---------------------------------------------------------------------------------


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Write ``base`` with the adapter added to its weights, in the base's precision, to ``out``;
    with the adapter's vocabulary where it was extended and the adapter stores its rows.

    Raises CheckpointError for pickled weights, for an adapter that is not of this base, and for one
    that adds to no weights (prompt tuning).
    """
    from peft import PeftConfig, get_peft_model

    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{adapter}: no {ADAPTER_WEIGHTS} (pickled ones are not read; save it as safetensors)"
        )
    whole = check_checkpoint(base, head="causal")
    model = load_model(whole, dtype="auto", attention=None, device="cpu")
    try:
        settings = PeftConfig.from_pretrained(str(adapter))
        if settings.is_prompt_learning:
            raise CheckpointError(
                f"{adapter}: {settings.peft_type} learns tokens before the prompt and adds to no "
                "weights, so there is no checkpoint that it and its base stand for"
            )
        stored = _extend_vocabulary(model, adapter / ADAPTER_WEIGHTS)
        with isolated_rng(0):
            wrapped = get_peft_model(model, settings)
        told = wrapped.load_adapter(str(adapter), "default", torch_device="cpu")
        whole_model = merged(wrapped)
    except CheckpointError:
        raise
    except Exception as error:  # of three libraries: no narrower class
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{adapter}: cannot be merged into {base} ({reason}); name its own base in column "
            "'base'"
        ) from error
    # With an extended vocabulary peft stores what it trained whole twice, under two names.
    twice = {name for name in stored if name.replace(".modules_to_save.", ".") in stored - {name}}
    stray = [*told.missing_keys, *(set(told.unexpected_keys) - twice)]
    if stray:
        raise CheckpointError(
            f"{adapter}: {len(stray)} tensors are missing or have no place in {base} "
            f"({', '.join(stray[:3])}); name its own base in column 'base'"
        )
    whole_model.save_pretrained(out)
    named = adapter if any(adapter.glob("tokenizer*")) else base
    for file in {found for pattern in TOKENIZER for found in named.glob(pattern)}:
        if file.is_file():
            shutil.copy(file, out)


def merged(policy: Any) -> Any:
    """The whole model of a PEFT model, its adapter added to its weights. Where it changes one of
    embedding and head, which share a matrix, each gets its own first: peft would add to both.
    """
    from torch import nn

    base = policy.get_base_model()
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        if base.config.get_text_config().tie_word_embeddings and hasattr(layer, "base_layer"):
            layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().clone())
    return policy.merge_and_unload(safe_merge=True)


def _extend_vocabulary(model: Any, file: Path) -> set[str]:
    """Give embedding and head the rows that the adapter's file stores of both; their values come
    with the adapter. Returns the names in the file.
    """
    from safetensors import safe_open

    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    parts = [name for name, module in model.named_modules() if module in layers]
    names = {f"base_model.model.{name}.weight" for name in parts}
    with safe_open(file, framework="pt") as opened:
        stored = set(opened.keys())
        if names <= stored:
            rows = {opened.get_slice(name).get_shape()[0] for name in names}
            if len(rows) == 1 and rows != {layers[0].num_embeddings}:
                model.resize_token_embeddings(rows.pop(), mean_resizing=False)
    return stored
