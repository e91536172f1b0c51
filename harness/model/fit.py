"""How tensors fit a model: what is missing, without a place or of another shape, and what their
names tell of the cause and its cure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.model.checkpoint_files import CheckpointError, Stored

if TYPE_CHECKING:
    from torch import Tensor


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
    architecture = type(fit.model).__name__
    parts = [*fit.errors]
    if fit.missing:
        parts.append(f"missing: {three(sorted(fit.missing))}")
    if fit.unexpected:
        parts.append(f"without a place in it: {three(sorted(fit.unexpected))}")
    if fit.mismatched:
        shapes = [f"{name} {list(has)} instead of {list(w)}" for name, has, w in fit.mismatched]
        parts.append(f"of another shape: {three(sorted(shapes))}")
    if parts:
        raise CheckpointError(
            f"{source}: the weights are not those of the {architecture} that config.json "
            f"describes; {'; '.join(parts)}. {' '.join(_remedies(fit, stored))}"
        )


def three(names: Iterable[str]) -> str:
    """The first three, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "PEFT",
    "pretrained_model.": "a TRL model with a value head",
    "module.": "DataParallel or DeepSpeed",
}
"""What wrappers put into names, and whose it is; any other prefix is found by what follows it."""
ADAPTER = re.compile(r"\blora_|\.base_layer\.|\.modules_to_save\.|\.original_module\.")
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def _remedies(fit: Fit, stored: Mapping[str, Tensor]) -> list[str]:
    """What the names tell of the cause and its cure."""
    first = _renaming(fit)
    if any(ADAPTER.search(name) for name in fit.unexpected):
        first = "They are a PEFT adapter's: merge it (merge_and_unload) and save the model again."
    found = [text for text in (first, _depths(fit, stored), *_about_heads(fit, stored)) if text]
    matrices = [(name, has, w) for name, has, w in fit.mismatched if len(has) == len(w) == 2]
    rows = [has[0] for name, has, w in matrices if "embed" in name and has[1] == w[1]]
    if any(has[0] == 1 and has[1] == w[1] for _, has, w in matrices):
        found.append('Its head has one label: give config.json one, "num_labels": 1.')
    if rows:
        found.append(f"If the vocabulary was resized, set vocab_size: {rows[0]} in config.json.")
    save = "Save it again from the model itself (save_pretrained), or fetch it again."
    return found or [save]


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
    lost = sorted(name for name in fit.missing & head_names(fit.model) if name.endswith("weight"))
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


def head_names(model: Any) -> set[str]:
    """Names of a model's tensors outside its body."""
    body = f"{model.base_model_prefix}."
    return {name for name in model.state_dict() if not name.startswith(body)}


def ends(model: Any) -> set[str]:
    """Names of the embedding's and the heads' matrices, which no training leaves at zero."""
    embedding = model.get_input_embeddings()
    first = {f"{name}.weight" for name, module in model.named_modules() if module is embedding}
    return first | {name for name in head_names(model) if name.endswith("weight")}
