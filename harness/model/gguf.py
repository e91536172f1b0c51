"""A GGUF file as an ordinary checkpoint: its weights in float32, its tokenizer, its chat template.

transformers reads the file and dequantises it. Its tokenizer splits a byte-level vocabulary as
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
from harness.model.checkpoint import quiet
from harness.model.checkpoint_files import cache_folder
from harness.model.fit import check_fit, fit_of
from harness.records import HarnessError, content_hash, first_line

SUFFIX = ".gguf"
GPT2 = "gpt-2"
DIGITS_APART = ("smollm",)
"""Splits in which every digit stands alone before GPT-2's rule: SmolLM's published tokenizer."""
VERSION = 1
"""Raised when a file's checkpoint changes."""


def is_gguf(source: str | Path) -> bool:
    """Whether a model's source names such a file."""
    return Path(source).suffix.lower() == SUFFIX


def checkpoint_of(file: Path) -> Path:
    """The folder of the file's checkpoint, written once for its content in `cache_folder`.

    Raises HarnessError for a file that is missing, cut short, of an architecture that transformers
    does not read, or with tensors or a tokenizer that would not be read as they were meant.
    """
    import transformers

    if not file.is_file():
        raise HarnessError(f"{file}: no such GGUF file")
    cache = cache_folder() / "gguf"
    name = content_hash(hash_file(file), VERSION, transformers.__version__, length=32)
    if not (cache / name / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache))
        try:
            _tokenizer(file).save_pretrained(scratch)
            _model(file).save_pretrained(scratch)
            # Whoever came first has written the same.
            if not (cache / name).exists():
                scratch.rename(cache / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return cache / name


def settings_of(file: Path) -> dict[str, Any]:
    """What would stand in the checkpoint's config.json. Raises HarnessError as `checkpoint_of`."""
    from transformers import AutoConfig

    with _reading(file):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    found: dict[str, Any] = config.to_dict()
    return found


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever the libraries raise, as one error with the file's name."""
    try:
        with quiet():
            yield
    except HarnessError:
        raise
    except ImportError as error:
        how = "`pip install -e '.[gguf]'`"
        raise HarnessError(f"{file}: reading GGUF needs a package: {how}") from error
    except Exception as error:  # of the file's form, of any class
        raise HarnessError(
            f"{file}: cannot be read as a GGUF model ({first_line(error, 300)}). It is cut short "
            "(fetch it again), or of a kind that the installed transformers does not read (take "
            "the safetensors checkpoint it was made from)"
        ) from error


def _model(file: Path) -> Any:
    """A model of the dequantised weights that knows nothing of their having been quantised. Raises
    HarnessError where they are not those of the model that the file describes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, "output_loading_info": True}
    with _reading(file):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, **options
        )
        read, info = loaded
        config = read.config
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):
            model = type(read)(config)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
    model.generation_config = read.generation_config
    check_fit(fit_of(model, info), {}, str(file))
    return model


def _tokenizer(file: Path) -> Any:
    """The file's tokenizer: its own tokens, its text split as ``tokenizer.ggml.pre`` says. Raises
    HarnessError where neither transformers nor we know that split.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with _reading(file):
        from gguf import GGUFReader

        fields = GGUFReader(file).fields
        split = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else ""
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _drop_added(tokenizer, len(fields["tokenizer.ggml.tokens"].data))
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel) or split == GPT2:
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


def _drop_added(tokenizer: Any, count: int) -> None:
    """Without tokens from ``count`` on: transformers reads byte-level files by its GPT-2 class,
    which adds an <|endoftext|> of its own where the file has none.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    beyond = {token["content"] for token in state["added_tokens"] if token["id"] >= count}
    if not beyond:
        return
    state["added_tokens"] = [one for one in state["added_tokens"] if one["id"] < count]
    if tokenizer.unk_token in beyond:
        tokenizer.unk_token = None
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
