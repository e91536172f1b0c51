"""``selm doctor``: is everything there that a run will need? Every finding says what to do. Nothing
is changed, no key is ever shown.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from harness.cli.console import console
from harness.cli.lazy import lazy
from harness.cost.budget import USABLE, generating_bytes
from harness.engine.runs import files_of
from harness.evaluate.registry import BENCHMARKS
from harness.model.chat import preflight, stop_tokens
from harness.model.shape import Shape, shape_of
from harness.records import HarnessError, first_line, is_hub_id
from harness.study.settings import Recipe
from harness.study.tasks import Runtime
from harness.train.memory import GB, remedies, training_bytes

endpoint_module = lazy("harness.judge.endpoint")
policy_module = lazy("harness.model.policy")
study_module = lazy("harness.study.study")
yaml_module = lazy("harness.study.yaml")

State = Literal["ok", "note", "WRONG"]
PACKAGE = "selm-harness"
FREE_SPACE = 2 * GB
HUB = "https://huggingface.co"
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``note``: only worth knowing; ``WRONG``: a run would fail."""

    state: State
    what: str
    says: str


def examine(what: str, store: Path, overrides: Mapping[str, Any]) -> int:
    """Look at everything ``what`` needs, print it, and return the exit status."""
    found: list[Finding] = []
    for finding in findings(what, store, overrides):
        console.print(
            f"{finding.state:6s} {finding.what}: {finding.says}", markup=False, soft_wrap=True
        )
        found.append(finding)
    wrong = sum(finding.state == "WRONG" for finding in found)
    console.print(f"{len(found)} things looked at, {wrong} wrong.")
    return 1 if wrong else 0


def findings(what: str, store: Path, overrides: Mapping[str, Any]) -> Iterator[Finding]:
    """Every finding, in the order in which a reader wants them."""
    recipe = recipe_of(what, overrides)
    yield from versions()
    yield from accelerators(recipe)
    yield from disk(store, recipe)
    if recipe is None:
        if what and is_hub_id(what):
            yield _hub_entry(what, "model", "")
        yield from model(what) if what else ()
        return
    yield from files(recipe)
    if recipe.model.source != "pocket":
        yield from hub(recipe)
        yield from model(recipe.model.source, recipe)
    yield from judge(recipe)


def recipe_of(what: str, overrides: Mapping[str, Any]) -> Recipe | None:
    """The recipe of a study's or recipe's file; None for a model or nothing."""
    if not what.endswith((".yaml", ".yml")):
        return None

    tree, _ = yaml_module.load_yaml(Path(what))
    if isinstance(tree, dict) and "recipe" not in tree:
        recipe: Recipe = study_module.compose(
            Path(what), Path(what).stem, str(Path(what).resolve()), overrides, {"recipe": {}}, [0]
        ).base
        return recipe
    recipe = study_module.load_study(Path(what), overrides).base
    return recipe


# -- the machine -----------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Python and every required package against the ranges that the project declares."""
    from packaging.requirements import Requirement

    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("WRONG", "python", f"{platform.python_version()}; install 3.11 or 3.12")
    try:
        wanted = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        yield Finding(
            "WRONG",
            PACKAGE,
            "is not installed; run `make setup`, or `pip install -e .` in the repository",
        )
        return
    good = 0
    for requirement in wanted:
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not extra:
                yield Finding(
                    "WRONG",
                    requirement.name,
                    f"is missing; `pip install '{requirement.name}{requirement.specifier}'`",
                )
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good += 1
        else:
            yield Finding(
                "note" if extra else "WRONG",
                requirement.name,
                f"{version}, wanted {requirement.specifier}; `make setup` installs it",
            )
    yield Finding(
        "ok",
        "versions",
        f"Python {platform.python_version()}, {good} packages within the ranges wanted, torch "
        f"{_version('torch')}",
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def accelerators(recipe: Recipe | None) -> Iterator[Finding]:
    """GPUs as torch sees them, and whether the recipe's model can train and sample there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(i) for i in range(count)]
    shown = ", ".join(f"{size.name} {size.total_memory / GB:.0f} GB" for size in sizes)
    yield Finding(
        "ok" if count else "note", "devices", shown or f"no CUDA device; {os.cpu_count()} CPU cores"
    )
    if recipe is None or recipe.model.source == "pocket":
        return
    if recipe.model.generation_backend == "vllm" and _version("vllm") == "missing":
        yield Finding(
            "WRONG",
            "vllm",
            'is missing; `pip install -e ".[gpu]"` on a CUDA machine, or set '
            "model.generation_backend: transformers",
        )
    if recipe.model.attention == "flash_attention_2" and _version("flash-attn") == "missing":
        yield Finding(
            "WRONG",
            "flash-attn",
            "is missing; `pip install flash-attn` on a CUDA machine, or set model.attention: sdpa",
        )
    try:
        shape = shape_of(recipe)
    except HarnessError as error:
        yield Finding("note", "memory", f"not estimated: {error}")
        return
    if not count:
        if shape.parameters > 1e9:
            says = f"{shape.name} with {shape.parameters / 1e9:.1f} B parameters needs a GPU; none is visible"
            yield Finding(
                "WRONG",
                "devices",
                f"{says}: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, and whether torch is "
                "built for CUDA",
            )
        return
    yield from _memory(recipe, shape, USABLE * min(size.total_memory for size in sizes))


def _memory(recipe: Recipe, shape: Shape, room: float) -> Iterator[Finding]:
    """Whether what is certain of training and generating fits into ``room`` bytes of a device."""
    weights, cache = generating_bytes(recipe, shape)
    if recipe.model.generation_backend == "vllm":  # it keeps what fits and queues the rest
        cache = 0.0
    needs = (("training", training_bytes(shape, recipe)), ("generating", weights + cache))
    for what, needed in needs:
        says = f"{needed / GB:.1f} GB before the first row, {room / GB:.1f} GB usable on a device"
        if needed > room:
            advice = remedies(recipe.training, recipe.runtime.sharding != "none")
            says += f"; try {advice}, or a smaller model.generation_batch"
        yield Finding("ok" if needed <= room else "WRONG", f"memory of {what}", says)


def disk(store: Path, recipe: Recipe | None) -> Iterator[Finding]:
    """Room for the checkpoints a run keeps, and a store that can be written."""
    folder = next(path for path in (store.resolve(), *store.resolve().parents) if path.exists())
    if not os.access(folder, os.W_OK):
        yield Finding(
            "WRONG", "store", f"{store} cannot be written; give another folder with --store"
        )
        return
    needed = FREE_SPACE
    if recipe is not None:
        try:
            parameters = shape_of(recipe).parameters
        except HarnessError:
            parameters = 0.0
        wide = 2 if recipe.model.dtype == "bfloat16" else 4
        needed += (
            2 * wide + (16 if recipe.training.lora is None else 0)
        ) * parameters  # two checkpoints, one of them with its optimiser
    free = shutil.disk_usage(folder).free
    says = f"{free / GB:.0f} GB free, about {needed / GB:.0f} GB needed at once (keep: last)"
    yield Finding(
        "ok" if free >= needed else "WRONG",
        "disk",
        says if free >= needed else f"{says}; free some or give another folder with --store",
    )


# -- what the recipe names -------------------------------------------------------------------------


def files(recipe: Recipe) -> Iterator[Finding]:
    """Files and folders that the recipe names, and benchmark files it should name."""
    named = [name for name in files_of(recipe) if not is_hub_id(name)]
    missing = [name for name in named if not Path(name).exists()]
    for name in missing:
        yield Finding("WRONG", "file", f"{name} does not exist")
    if named and not missing:
        yield Finding("ok", "files", f"{len(named)} named by the recipe, all there")
    if recipe.data.source == "pocket":
        return
    for name in recipe.evaluation.benchmarks:
        section = recipe.evaluation.of(name)
        empty = [key for key in BENCHMARKS[name].files if not getattr(section, key)]
        if empty:
            keys = ", ".join(f"evaluation.{name}.{key}" for key in empty)
            says = f"no file is given in {keys}; give it, or leave {name} out of"
            yield Finding("WRONG", name, f"{says} evaluation.benchmarks")


def hub(recipe: Recipe) -> Iterator[Finding]:
    """Whether what the recipe takes from the hub can be had: cached, or the hub answers and lets us
    in.
    """
    models = [recipe.model.source, *([recipe.ranker.model] if recipe.ranker.model else [])]
    wanted = [(name, "model") for name in models if is_hub_id(name)] + (
        [(recipe.data.path, "dataset")] if recipe.data.source == "hub" else []
    )
    for name, kind in wanted:
        yield _hub_entry(name, kind, recipe.model.revision if name == recipe.model.source else "")


def _hub_entry(name: str, kind: str, revision: str) -> Finding:
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound, GatedRepoError, RepositoryNotFoundError

    def cached() -> bool:
        try:
            return any(
                repo.repo_id == name and repo.repo_type == kind for repo in scan_cache_dir().repos
            )
        except CacheNotFound:
            return False

    try:
        HfApi().auth_check(name, repo_type=kind)
    except GatedRepoError:
        return Finding(
            "WRONG",
            name,
            f"is gated; accept its terms on {HUB}/{name} and log in with `hf auth login`",
        )
    except RepositoryNotFoundError:
        return Finding(
            "WRONG",
            name,
            f"the hub has no such {kind}, or it is private and you are not logged in (`hf auth "
            "login`)",
        )
    except Exception as error:  # noqa: BLE001 - no network, a proxy, offline mode: all the same to a reader
        if cached():
            return Finding(
                "note",
                name,
                f"the hub cannot be reached ({type(error).__name__}), but its cache holds this "
                f"{kind}",
            )
        fetch = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
        says = f"is not in the hub's cache and the hub cannot be reached ({type(error).__name__}); run `{fetch}` where there is a network"
        return Finding("WRONG", name, f"{says}, or give a local copy")
    return Finding(
        "ok", name, f"the hub gives this {kind}" + (f" (revision {revision})" if revision else "")
    )


def model(source: str, recipe: Recipe | None = None) -> Iterator[Finding]:
    """Template and stop tokens of a model that is on this machine; of one that is not, only its
    tokenizer is fetched.
    """

    try:
        folder = _tokenizer_folder(source, recipe.model.revision if recipe else "")
        if (folder / "config.json").is_file():
            policy_module.check_code(
                folder, source, recipe.model.trust_remote_code if recipe else ""
            )
        if Path(source).expanduser().is_dir():
            policy_module.check_weights(
                folder, source, recipe.model.pickle_weights if recipe else ""
            )
        tokenizer = policy_module.load_tokenizer(folder)
        if recipe and recipe.model.chat_template:
            tokenizer.chat_template = Path(recipe.model.chat_template).read_text(encoding="utf-8")
        preflight(tokenizer)
    except (HarnessError, OSError) as error:
        yield Finding("WRONG", f"loading {source}", first_line(error))
        return
    stops = ", ".join(
        repr(tokenizer.convert_ids_to_tokens(i)) for i in stop_tokens(tokenizer)
    )
    yield Finding(
        "ok", f"template of {source}", f"passes the token check; an answer ends with {stops}"
    )


def _tokenizer_folder(source: str, revision: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise HarnessError(
            f"{source}: no such checkpoint folder (a hub id has the form owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision or None,
                allow_patterns=["*.json", "*.model", "*.txt", "*.jinja"],
            )
        )
    except Exception as error:
        raise HarnessError(
            f"its tokenizer cannot be fetched ({type(error).__name__}); see the line on the hub"
        ) from error


def judge(recipe: Recipe, get: Callable[..., Any] | None = None) -> Iterator[Finding]:
    """Whether the judge's key is there and its endpoint answers. ``get``: what asks (httpx.get),
    replaced by tests.
    """
    if recipe.judge.kind == "pocket":
        plain = (
            ""
            if recipe.data.source == "pocket"
            else "; it reads real text by a plain heuristic and measures nothing"
        )
        yield Finding("note" if plain else "ok", "judge", f"the local one{plain}")
        return
    import httpx

    try:
        endpoint = endpoint_module.resolve_endpoint(recipe.judge, Runtime())
        headers = endpoint_module.auth_headers(recipe.judge, endpoint)
    except HarnessError as error:
        yield Finding("WRONG", "judge", str(error))
        return
    try:
        status = (get or httpx.get)(
            f"{endpoint.url}/models", headers=headers, timeout=TIMEOUT_S
        ).status_code
    except httpx.HTTPError as error:
        yield Finding(
            "WRONG",
            "judge",
            endpoint_module.redact(
                f"{endpoint.url} does not answer ({type(error).__name__}); check {endpoint_module.URL_VARIABLE} "
                "and the network"
            ),
        )
        return
    if status in (401, 403):
        yield Finding(
            "WRONG",
            "judge",
            f"{endpoint.url} refuses the key in {endpoint_module.KEY_VARIABLE} (status {status})",
        )
    elif status >= 500:
        yield Finding(
            "WRONG", "judge", f"{endpoint.url} answers with status {status}; try again later"
        )
    else:
        yield Finding(
            "ok",
            "judge",
            f"{endpoint.url} answers; {endpoint_module.KEY_VARIABLE} is {'set' if headers else 'not needed'}",
        )
