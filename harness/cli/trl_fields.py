"""The fields of TRL's configurations: those of its own dataclasses, and those it had."""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
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
    "torch_dtype": (str | None, None),
    "warmup_ratio": (float | None, None),
    "max_prompt_length": (int | None, None),
    "max_completion_length": (int | None, None),
    "rpo_alpha": (float | None, None),
    "reference_free": (bool, False),
    "judge": (str | None, None),
    "use_flash_attention_2": (bool, False),
    "dataset_mixer": (dict[str, float] | None, None),
    "dataset_mixture": (dict[str, Any] | None, None),
    "dataset_splits": (list[str], ["train", "test"]),
    "dataset_configs": (list[str] | None, None),
    "chat_template": (str | None, None),
    "auto_insert_empty_system_msg": (bool, False),
    "truncation_side": (str | None, None),
    "tokenizer_name_or_path": (str | None, None),
    "base_model_revision": (str | None, None),
    "model_code_revision": (str | None, None),
    "group_by_length": (bool, False),
}
"""Type and default of fields that TRL, transformers or the alignment handbook had and have no
more."""
NO_NUMBER = {
    *("env", "generate_during_eval", "preprocessing_num_workers", "hub_model_revision"),
    *("evaluation_strategy", "overwrite_output_dir", "save_safetensors", "logging_dir"),
    *("push_to_hub_revision", "overwrite_hub_revision", "wandb_entity", "wandb_project"),
    *("label_pad_token_id", "padding_value", "use_logits_to_keep", "use_num_logits_to_keep"),
    *(
        "use_liger_loss",
        "use_ipex",
        "no_cuda",
        "half_precision_backend",
        "include_tokens_per_second",
    ),
    *("dispatch_batches", "split_batches", "gradient_checkpointing_use_reentrant"),
}
"""Former fields on which no number depended, and the environment that TRL's parser sets."""
FORMER |= dict.fromkeys(NO_NUMBER, (Any, None))
XPO_FIELDS: dict[str, tuple[Any, Any]] = {"alpha": (list[float], [1e-5])}
"""What XPOConfig added to OnlineDPOConfig until TRL removed it."""

SPEED = re.compile(
    r"(eval|logging|log|save|hub|push_to_hub|dataloader|ddp|fsdp|deepspeed|trackio|vllm"
    r"|torch_compile|precompute_ref|include|do|skip|dataset_num)(_|$)"
)
OTHER_SPEED = {
    *NO_NUMBER,
    *("output_dir", "run_name", "project", "disable_tqdm", "resume_from_checkpoint", "debug"),
    *("gradient_checkpointing_kwargs", "activation_offloading", "use_liger_kernel", "padding_free"),
    *("pad_to_multiple_of", "remove_unused_columns", "per_device_eval_batch_size", "prediction_"),
    *("cache_implementation", "use_cache", "tf32", "label_names", "dataset_streaming"),
    *("ds3_gather_for_generation", "streaming", "ignore_bias_buffers", "local_rank"),
    *("torch_empty_cache_steps", "prediction_loss_only"),
}
"""Fields on which no number depends: where a run goes, what it says, how fast it is."""

WHY = {
    "load_best_model_at_end": "no checkpoint is picked: each is scored (loop.mode: offline)",
    "sync_ref_model": "loop.reference_policy: ema averages before each iteration, not each N steps",
    "chat_template": "write it into a file and name that in model.chat_template",
    "missing_eos_penalty": "a cut answer has the ranker's score",
    "label_smoothing": "TRL reads it with robust and exo_pair; as cDPO: objective.name cdpo",
    "reference_free": "objectives without a reference: simpo, orpo",
    "dataset_config": "data has no configuration name: save that part as a file (data.path)",
    "dataset_configs": "data has no configuration name: save that part as a file (data.path)",
    "test_split_size": "data.heldout_split or data.heldout say what is held out",
}
ELSEWHERE = {
    "alpha": "SELM's recipes are ours: zephyr-7b, llama-3-8b, phi-3-mini; XPO's is --method xpo",
    "gamma_beta_ratio": "SimPO's: objective simpo, params {gamma: this × beta}",
    "simpo_gamma": "SimPO's: objective simpo, params {gamma: this}",
}
"""Fields of methods that are objectives here, and what to write for them by hand."""
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
        self.fields = {**FORMER, **_fields(method)}
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
        default = self.fields[field][1]
        value = self.values.get(field)
        return default if value is None else value

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
            if SPEED.match(field) or field in OTHER_SPEED:
                self.note(field, "no number depends on it; see runtime in docs/keys.md")
            elif value in (None, self.fields[field][1]):
                self.note(field, "TRL's default, and how it is here")
            else:
                self.differs(field, WHY.get(field, "there is no such key"))
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
            advice = [ELSEWHERE[name]] if name in ELSEWHERE else []
            advice += [f"it is one of --method {one}" for one in theirs[:1]]
            advice += [f"did you mean {one}?" for one in close if not theirs]
            said = advice[0] if advice else "correct it or leave it out"
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
