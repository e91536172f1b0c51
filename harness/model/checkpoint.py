"""What is loaded is what was saved: one check for every load of a model, before weights are read.

transformers makes what a checkpoint lacks at random, skips what it has no place for, and warns.
Here the names, shapes and types in the files' headers go through its own loading on the meta
device first, where nothing has a value. Any difference is an error, which says what the names tell
of the cause and its cure.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.model import tokenizer as stored_tokenizer
from harness.model.checkpoint_files import (
    CheckpointError,
    Stored,
    WeightFiles,
    check_code,
    location,
    model_folder,
    settings_of,
    weight_files,
)
from harness.records import HarnessError, first_line

if TYPE_CHECKING:
    from torch import Tensor

Head = Literal["causal", "sequence", "new"]
"""What is loaded: a language model, a reward model (one label), or the body of a language model
that a new reward head is put on.
"""


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint that passed. architecture: the class that loads it; tensors: how many are
    stored; code: whether the repository's own code runs.
    """

    path: Path
    source: str
    head: Head
    architecture: str
    tensors: int
    weights: WeightFiles
    code: bool


def check_checkpoint(
    folder: Path,
    *,
    head: Head,
    tokenizer: Any = None,
    trust_remote_code: str = "",
    pickle_weights: str = "",
    values: bool = True,
) -> CheckpointSummary:
    """Check a stage's or a checkpoint's folder against the model that its config.json describes.

    Names, shapes, types and layers from the files' headers; the ids of tokenizer and end tokens
    against the embedding; with ``values`` every weight is read and must be finite (``load_model``
    looks at them itself). tokenizer: the folder's, where it is loaded already. PairRM's own network
    is checked where it is loaded. Raises CheckpointError, and HarnessError for pickled weights or
    repository code that is not allowed by name.
    """
    from transformers import AutoConfig

    path, where = model_folder(Path(folder)), location(Path(folder))
    source = str(where.get("source", path))
    code = check_code(path, source, trust_remote_code or str(where.get("trust_remote_code", "")))
    weights = weight_files(path, source, pickle_weights or str(where.get("pickle_weights", "")))
    stored = Stored(weights, source)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=code, local_files_only=True)
    except Exception as error:  # values of the wrong type raise the library's own classes
        message = f"{source}: config.json cannot be read ({first_line(error, 300)})"
        raise CheckpointError(message) from error
    _check_types(stored, settings_of(path / "config.json", source))
    fit = _dry_load(stored, config, "causal" if head == "new" else head, code)
    check_fit(fit, stored.headers, source)
    _check_use(fit.model, source, head)
    _check_tied(fit.model, stored)
    tokenizer = tokenizer or stored_tokenizer.load(path, trust_remote_code=code)
    _check_ids(fit.model, tokenizer, path, source, stops=head != "sequence")
    if head == "new":
        config.num_labels = 1
        fit = _dry_load(stored, config, head, code)
        fit = replace(fit, missing=fit.missing - _head_names(fit.model), unexpected=set())
        check_fit(fit, stored.headers, source)
    if values:
        check_values(source, stored.values(stored.headers), _ends(fit.model))
    architecture = type(fit.model).__name__
    return CheckpointSummary(path, source, head, architecture, len(stored.headers), weights, code)


def load_model(
    found: CheckpointSummary,
    *,
    dtype: str,
    attention: str | None,
    device: str,
    quantised: bool = False,
) -> Any:
    """The model of a checked folder in evaluation mode, after a second look: what transformers says
    of its loading, and whether every weight is finite. quantised: linear layers but the head in 4
    bits (NF4, double quantisation: Dettmers et al. 2023, arXiv 2305.14314), computed in ``dtype``.
    Raises HarnessError.
    """
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if quantised:
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options |= {"quantization_config": four_bits, "device_map": {"": device}}
    try:
        with quiet():
            model, info = _auto(found.head).from_pretrained(
                found.path,
                dtype=dtype,
                use_safetensors=not found.weights.pickled,
                trust_remote_code=found.code,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        message = f"{found.source}: cannot load the model ({first_line(error, 300)})"
        if attention != "eager" and "attention implementation" in str(error):
            message += "; set model.attention: eager"
        raise HarnessError(message) from error
    check_fit(fit_of(model, info), {}, found.source)
    for module in model.modules() if quantised else ():
        # On some CPUs bitsandbytes packs a layer anew when it is first run outside training, and
        # computes in bfloat16 from then on: the reference would be another model than the policy.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = (model if quantised else model.to(device)).eval()
    check_values(found.source, model.named_parameters(), _ends(model))
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers: what they would say is checked here."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _auto(head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head == "causal" else AutoModelForSequenceClassification


def _dry_load(stored: Stored, config: Any, head: Head, code: bool) -> Fit:
    """transformers' own loading of the headers into the empty model, renamings and all."""
    import torch

    try:
        with quiet():
            with torch.device("meta"):
                empty = _auto(head).from_config(config, trust_remote_code=code)
            model, info = type(empty).from_pretrained(
                None,
                config=config,
                state_dict=dict(stored.headers),
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a configuration of the wrong sizes fails anywhere in a model
        use = "policy" if head == "causal" else "reward model"
        raise CheckpointError(
            f"{stored.source}: config.json describes no {use} that can be built "
            f"({first_line(error, 300)})"
        ) from error
    fit = fit_of(model, info)
    own, body = model.state_dict(), model.base_model_prefix
    doubled = [
        f"{name} and {body}.{name} are one tensor of it"
        for name in stored.headers
        if f"{body}.{name}" in stored.headers and not (name in own and f"{body}.{name}" in own)
    ]
    return replace(fit, errors=[*fit.errors, *doubled[:3]])


# -- the checks ------------------------------------------------------------------------------------


def _check_types(stored: Stored, config: Mapping[str, Any]) -> None:
    """No weights that are quantised, as config.json says or as their own types do."""
    import torch

    for key in ("quantization_config", "compression_config"):
        if given := config.get(key):
            method = given.get("quant_method", "?") if isinstance(given, dict) else given
            raise CheckpointError(
                f"{stored.source}: the weights are quantised ({key}: {method}). Take the "
                f"checkpoint they were made from, or dequantise them and save them without {key}"
            )
    whole = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for name, header in stored.headers.items():
        if name.endswith("weight") and header.dtype not in whole:
            raise CheckpointError(
                f"{stored.source}: {name} is stored as {header.dtype}, without the scales that "
                "would give its values; save the checkpoint in float32, bfloat16 or float16"
            )


def _check_use(model: Any, source: str, head: Head) -> None:
    """One label for a reward model; attention to what came before only for a policy."""
    config = model.config
    if head == "sequence" and config.num_labels != 1:
        raise CheckpointError(
            f"{source}: a reward model has one label, this one has {config.num_labels}"
        )
    # An encoder's configuration class knows is_decoder, and says no unless told; so does that of
    # GPT-NeoX, whose layers say for themselves that they are causal.
    encodes = getattr(type(config)(), "is_decoder", None) is False and not config.is_decoder
    encodes &= not any(getattr(module, "is_causal", False) for module in model.modules())
    if head != "sequence" and encodes:
        raise CheckpointError(
            f"{source}: {config.model_type} is an encoder that sees the tokens to come "
            "(is_decoder is not set); it cannot be a policy"
        )


def _check_tied(model: Any, stored: Stored) -> None:
    """Tensors that the configuration ties must be equal where both are stored."""
    import torch

    for target, kept in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target not in stored.headers or kept not in stored.headers:
            continue
        values = dict(stored.values({target, kept}))
        if not torch.equal(values[target], values[kept]):
            raise CheckpointError(
                f"{stored.source}: tie_word_embeddings is true in config.json, but {target} and "
                f"{kept} are stored with other values. Set tie_word_embeddings: false if both "
                f"were trained, or save the checkpoint without {target}"
            )


def _check_ids(model: Any, tokenizer: Any, path: Path, source: str, *, stops: bool) -> None:
    """Every id of the tokenizer has a row of the embedding (more rows are padding); with ``stops``
    so have the tokens that end an answer, by the two files that name some: transformers goes on
    without a generation config that it cannot read.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    by_id = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if by_id:
        beyond = _three([f"{token!r} ({number})" for number, token in by_id])
        raise CheckpointError(
            f"{source}: the embedding has {rows} rows, but the tokenizer has tokens beyond them: "
            f"{beyond}. Give the checkpoint's own tokenizer, or resize the embedding "
            "(resize_token_embeddings) and train it"
        )
    for name in ("config.json", "generation_config.json") if stops else ():
        if not (path / name).is_file():
            continue
        listed = settings_of(path / name, source).get("eos_token_id")
        for number in listed if isinstance(listed, list) else [listed]:
            if number is not None and not (isinstance(number, int) and 0 <= number < rows):
                raise CheckpointError(
                    f"{source}: {name} ends answers with eos_token_id {number!r}, which is no row "
                    f"of the embedding (0 to {rows - 1}); fetch the file again, or set the "
                    "tokenizer's own id"
                )


def check_values(source: str, tensors: Iterable[tuple[str, Tensor]], ends: Iterable[str]) -> None:
    """Raise CheckpointError for a weight that is not finite, and for one of ``ends`` (embeddings
    and heads) that is zero throughout: what was never written, or lost in gathering shards.
    """
    known = set(ends)
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(value) for value in tensor.detach().aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinite values (a run that diverged, or a broken "
                "copy); take an earlier checkpoint or fetch it again"
            )
        if low == high == 0.0 and name in known:
            raise CheckpointError(
                f"{source}: {name} is zero throughout, so it was not saved as it was trained "
                "(weights not gathered from their shards?); save the checkpoint again"
            )


# -- how tensors fit a model -----------------------------------------------------------------------

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "PEFT",
    "pretrained_model.": "a TRL model with a value head",
    "module.": "DataParallel or DeepSpeed",
}
"""What wrappers put into names, and whose it is; any other prefix is found by what follows it."""
ADAPTER_NAME = re.compile(r"\blora_|\.base_layer\.|\.modules_to_save\.|\.original_module\.")
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class Fit:
    """How tensors fitted a model: names of it that were missing, names without a place in it, and
    (name, stored shape, the model's shape).
    """

    model: Any
    missing: set[str]
    unexpected: set[str]
    mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    errors: list[str] = field(default_factory=list)


def fit_of(model: Any, info: Mapping[str, Any]) -> Fit:
    """What transformers said of a loading (``output_loading_info``)."""
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    mismatched = sorted((name, list(a), list(b)) for name, a, b in info["mismatched_keys"])
    return Fit(model, missing, unexpected, mismatched, [str(e) for e in info["error_msgs"]])


def plain_fit(model: Any, stored: Stored, ignored: str) -> Fit:
    """The same for a network that is none of transformers'. ignored: pattern of names to pass."""
    wanted, found = model.state_dict(), stored.headers
    other = [
        (name, list(found[name].shape), list(tensor.shape))
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    unexpected = {name for name in found.keys() - wanted.keys() if not re.search(ignored, name)}
    return Fit(model, wanted.keys() - found.keys(), unexpected, other)


def check_fit(fit: Fit, stored: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError when tensors and model differ, with three names a kind and, where the
    cause is known, what to rename. stored: the headers, for what the names tell.
    """
    parts = [*fit.errors]
    if fit.missing:
        parts.append(f"missing: {_three(sorted(fit.missing))}")
    if fit.unexpected:
        parts.append(f"without a place in it: {_three(sorted(fit.unexpected))}")
    if fit.mismatched:
        shapes = [f"{name} {list(has)} instead of {list(w)}" for name, has, w in fit.mismatched]
        parts.append(f"of another shape: {_three(sorted(shapes))}")
    if parts:
        raise CheckpointError(
            f"{source}: the weights are not those of the {type(fit.model).__name__} that "
            f"config.json describes; {'; '.join(parts)}. {' '.join(_remedies(fit, stored))}"
        )


def _three(found: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _remedies(fit: Fit, stored: Mapping[str, Tensor]) -> list[str]:
    """What the names tell of the cause and its cure."""
    found = [_renaming(fit)]
    if any(ADAPTER_NAME.search(name) for name in fit.unexpected):
        found = ["They are a PEFT adapter's: merge it (merge_and_unload) and save the model again."]
    found += [_depths(fit, stored), *_about_heads(fit, stored)]
    matrices = [(name, has, w) for name, has, w in fit.mismatched if len(has) == len(w) == 2]
    rows = [has[0] for name, has, w in matrices if "embed" in name and has[1] == w[1]]
    if any(has[0] == 1 and has[1] == w[1] for _, has, w in matrices):
        found.append('Its head has one label: give config.json one, "num_labels": 1.')
    if rows:
        found.append(f"If the vocabulary was resized, set vocab_size: {rows[0]} in config.json.")
    save = "Save it again from the model itself (save_pretrained), or fetch it again."
    return [text for text in found if text] or [save]


def _renaming(fit: Fit) -> str:
    """Where a stored name is a missing one under a wrapper's prefix: whose, and the rename."""
    body = getattr(fit.model, "base_model_prefix", "")
    for name in sorted(fit.unexpected):
        plain = name
        for part in WRAPPERS:
            plain = re.sub(rf"(^|\.){re.escape(part)}", r"\1", plain)
        parts = plain.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts) - 1)]
        wanted = (*ends, *(f"{body}.{end}" for end in ends))
        if match := next((end for end in wanted if end in fit.missing), ""):
            whose = [f"{part!r} ({who})" for part, who in WRAPPERS.items() if part in name]
            prefix = " and ".join(whose) or repr(name.removesuffix(match))
            return (
                f"The names carry {prefix} of a wrapper: save the model inside it, or rename "
                f"{name} to {match} and the others alike."
            )
    return ""


def _depths(fit: Fit, stored: Mapping[str, Tensor]) -> str:
    has, wants = (
        max((int(found[1]) + 1 for name in names if (found := LAYER.search(name))), default=0)
        for names in (stored, fit.model.state_dict())
    )
    if not stored or has == wants:
        return ""
    return f"The weights have {has} layers, config.json describes {wants}: one of the two is wrong."


def _about_heads(fit: Fit, stored: Mapping[str, Tensor]) -> Iterator[str]:
    lost = sorted(name for name in fit.missing & _head_names(fit.model) if name.endswith("weight"))
    rows = {name: stored[name].shape[:1] for name in fit.unexpected if name in stored}
    scalar = sorted(n for n, one in rows.items() if one == (1,) and n.endswith("weight"))
    if getattr(fit.model, "get_output_embeddings", lambda: None)() is not None:
        if scalar:
            yield f"{scalar[0]} is a value or reward head: a policy is saved without it."
        if lost and fit.missing == set(lost):
            yield "If the output layer is the embedding, set tie_word_embeddings: true."
    elif lost and scalar:
        yield (
            f"Its reward head is called {scalar[0]}: rename it to {lost[0]} (and leave out a bias, "
            "which moves every reward alike)."
        )
    elif lost:
        yield "It has no reward head: give a reward model, or train one with data.ranker_pairs."


def _head_names(model: Any) -> set[str]:
    """Names of a model's tensors outside its body."""
    body = f"{model.base_model_prefix}."
    return {name for name in model.state_dict() if not name.startswith(body)}


def _ends(model: Any) -> set[str]:
    """Names of the embedding's and the heads' matrices, which no training leaves at zero."""
    embedding = model.get_input_embeddings()
    first = {f"{name}.weight" for name, module in model.named_modules() if module is embedding}
    return first | {name for name in _head_names(model) if name.endswith("weight")}
