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
from harness.cost.budget import GB, Assumptions, memory
from harness.cost.work import Shape, shape_of
from harness.records import HarnessError
from harness.study.settings import Recipe
from harness.study.tasks import Runtime

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
    from harness.study.study import compose, load_study
    from harness.study.yaml import load_yaml

    tree, _ = load_yaml(Path(what))
    if isinstance(tree, dict) and "recipe" not in tree:
        return compose(
            Path(what), Path(what).stem, str(Path(what).resolve()), overrides, {"recipe": {}}, [0]
        ).base
    return load_study(Path(what), overrides).base


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
    yield from _memory(recipe, shape, 0.9 * min(size.total_memory for size in sizes), count)


def _memory(recipe: Recipe, shape: Shape, room: float, count: int) -> Iterator[Finding]:
    """Whether training and generating fit into ``room`` bytes of each of ``count`` devices, as the
    recipe divides them.
    """
    runtime, advice = (
        recipe.runtime,
        "use training.lora, a smaller runtime.token_budget or model.generation_batch, or more "
        "devices",
    )
    if (
        runtime.memory == "fit"
    ):  # the training stage lowers its token budget by itself, down to one row
        recipe = recipe.model_copy(
            update={
                "runtime": runtime.model_copy(update={"token_budget": recipe.training.max_length})
            }
        )
    spread = min(count, runtime.processes) if runtime.sharding != "none" else 1
    for stage, needs in memory(recipe, shape, Assumptions(devices=count)).items():
        alone, over_all = (
            sum(getattr(need, which) for need in needs) for which in ("alone", "shared")
        )
        says = f"{alone / GB:.1f} GB on one device"
        if stage == "generating":
            if recipe.model.generation_backend == "vllm":  # it keeps what fits and queues the rest
                alone, says = (
                    needs[0].alone,
                    f"{needs[0].alone / GB:.1f} GB of weights on one device",
                )
            fits = alone <= room
        else:
            divided = sum(
                need.shared for need in memory(recipe, shape, Assumptions(devices=spread))[stage]
            )
            fits = min(alone, divided) <= room if spread > 1 else alone <= room
            says += f", {divided / GB:.1f} GB each over {spread}" if spread > 1 else ""
            if not fits and runtime.sharding == "none" and over_all <= room:
                advice = f"set runtime.sharding: fsdp and runtime.processes: {count} ({over_all / GB:.1f} GB each), or {advice}"
        says += f"; {room / GB:.1f} GB usable"
        yield Finding(
            "ok" if fits else "WRONG", f"memory of {stage}", says if fits else f"{says}; {advice}"
        )


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
    from harness.engine.runs import files_of

    named = [name for name in files_of(recipe) if not is_hub_id(name)]
    missing = [name for name in named if not Path(name).exists()]
    for name in missing:
        yield Finding("WRONG", "file", f"{name} does not exist")
    if named and not missing:
        yield Finding("ok", "files", f"{len(named)} named by the recipe, all there")
    if recipe.data.source == "pocket":
        return
    wanted = {
        "mt_bench": ("questions", "references", "judge_prompts"),
        "alpaca_eval": ("instructions",),
    }
    for benchmark, keys in wanted.items():
        empty = [
            key
            for key in keys
            if benchmark in recipe.evaluation.benchmarks
            and not getattr(getattr(recipe.evaluation, benchmark), key)
        ]
        if empty:
            keys_text = ", ".join(f"evaluation.{benchmark}.{key}" for key in empty)
            yield Finding(
                "WRONG",
                benchmark,
                f"no file is given in {keys_text}; give it, or leave {benchmark} out of "
                "evaluation.benchmarks",
            )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name and is nothing on this disk."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/", "~"))
        and not Path(name).exists()
        and Path(name).suffix != ".jinja"
    )


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
    from harness.model.policy import (
        check_code,
        check_weights,
        load_tokenizer,
        preflight,
        stop_tokens,
    )

    try:
        folder = _tokenizer_folder(source, recipe.model.revision if recipe else "")
        if (folder / "config.json").is_file():
            check_code(folder, source, recipe.model.trust_remote_code if recipe else "")
        if Path(source).expanduser().is_dir():
            check_weights(folder, source, recipe.model.pickle_weights if recipe else "")
        tokenizer = load_tokenizer(folder)
        if recipe and recipe.model.chat_template:
            tokenizer.chat_template = Path(recipe.model.chat_template).read_text(encoding="utf-8")
        preflight(tokenizer)
    except (HarnessError, OSError) as error:
        yield Finding("WRONG", f"loading {source}", str(error).splitlines()[0])
        return
    stops = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in stop_tokens(tokenizer))
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

    from harness.judge.endpoint import (
        KEY_VARIABLE,
        URL_VARIABLE,
        auth_headers,
        redact,
        resolve_endpoint,
    )

    try:
        endpoint = resolve_endpoint(recipe.judge, Runtime())
        headers = auth_headers(recipe.judge, endpoint)
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
            redact(
                f"{endpoint.url} does not answer ({type(error).__name__}); check {URL_VARIABLE} "
                "and the network"
            ),
        )
        return
    if status in (401, 403):
        yield Finding(
            "WRONG", "judge", f"{endpoint.url} refuses the key in {KEY_VARIABLE} (status {status})"
        )
    elif status >= 500:
        yield Finding(
            "WRONG", "judge", f"{endpoint.url} answers with status {status}; try again later"
        )
    else:
        yield Finding(
            "ok",
            "judge",
            f"{endpoint.url} answers; {KEY_VARIABLE} is {'set' if headers else 'not needed'}",
        )
