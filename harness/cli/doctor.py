"""``selm doctor``: is everything there that a run will need? Every finding says what to do.

Nothing is changed, no key is ever shown.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from harness.cli.options import STORE, Overrides, StoreRoot, lazily, parse_overrides, worker_count
from harness.records import HarnessError, is_hub_id

with lazily():
    import huggingface_hub as hub_client
    import torch

    from harness import cost as costs
    from harness.cli import console as shown
    from harness.cli import findings as looking
    from harness.cli.findings import Finding, note, ok, wrong
    from harness.engine import launch, runs
    from harness.engine import store as stores
    from harness.evaluate import registry as benchmarks
    from harness.model import chat, checkpoint_files, policy, sources
    from harness.model import checkpoint as checkpoints
    from harness.model import shape as shapes
    from harness.model.shape import Shape
    from harness.rankers import registry as rankers
    from harness.study import sections
    from harness.study import study as studies
    from harness.study.settings import Recipe

PACKAGE = "selm-harness"
GB = 1e9
FREE_SPACE = 2 * GB
ROWS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
"""How the name of a file of preference rows ends."""
COLUMNS = "data.columns."
TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]


def doctor(
    what: Annotated[
        str,
        Argument(
            help="A study, recipe, checkpoint folder, hub id, file of preference rows, judge's "
            "profile (llama-3-70b) or address (https://…/v1); empty: the installation alone."
        ),
    ] = "",
    policy_model: Annotated[
        str, Option("--model", help="With a file of rows: the checkpoint that will train on them.")
    ] = "",
    store: StoreRoot = STORE,
    overrides: Overrides = None,
) -> None:
    """Check versions, devices, disk, hub, judge and the model's template, and say what to fix.

    Of a file of preference rows: what is read and what is left out; with --model also what the
    template does to them, and three rows as tokens, those that are trained between « and ».

    Of a judge: whether its endpoint has the model, whether one short request of each kind that
    benchmarks send is answered and read (the only calls that cost anything), prices, and its end.

    Exit status 1 if something needed is wrong.

    Example: selm doctor ablations/recipes/zephyr-7b.yaml

    Example: selm doctor pairs.jsonl --model CHECKPOINT
    """
    changes = parse_overrides(overrides)
    is_rows = what.lower().endswith(ROWS)
    if policy_model and not is_rows:
        raise HarnessError("--model goes with a file of preference rows")
    states = Counter[str]()
    for finding in rows(what, policy_model, changes) if is_rows else findings(what, store, changes):
        shown.say(f"{finding.state:6s} {finding.what}: {finding.says}")
        states[finding.state] += 1
    shown.say(f"{states.total()} things looked at, {states['WRONG']} wrong.")
    raise typer.Exit(1 if states["WRONG"] else 0)


def rows(path: str, checkpoint: str, changes: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings about a file of preference rows, and the checkpoint that will train on them.

    changes: ``data.columns.<our name>`` → the file's. Raises HarnessError for other keys.
    """
    columns = {key.removeprefix(COLUMNS): str(name) for key, name in changes.items()}
    other = [key for key in changes if not key.startswith(COLUMNS)]
    if other:
        raise HarnessError(f"--set {other[0]}: with a file of rows only {COLUMNS}NAME is read")
    tokenizer = None
    if checkpoint:
        found = list(model(checkpoint))
        yield from found
        if any(finding.state == "WRONG" for finding in found):
            return
        tokenizer = policy.load_tokenizer(_tokenizer_folder(checkpoint, ""))
    yield from looking.data(path, columns, tokenizer)


def findings(what: str, store: Path, overrides: Mapping[str, Any]) -> Iterator[Finding]:
    """Every finding, in the order in which a reader wants them."""
    recipe = recipe_of(what, overrides)
    yield from versions()
    yield from accelerators(recipe)
    yield from disk(store, recipe)
    if recipe is not None:
        yield from files(recipe)
        yield ranker(recipe)
        if recipe.model.source != "pocket":
            yield from hub(recipe)
            yield from model(recipe.model.source, recipe)
        yield from looking.recipe(recipe)
        yield from judging_cost(what, overrides, store)
    elif profile := looking.profile_of(what):
        yield from looking.profile(profile)
    elif what.startswith(("http://", "https://")):
        yield from looking.address(what)
    elif what:
        if is_hub_id(what):
            yield _hub_entry(what, "model", "")
        yield from model(what)


def judging_cost(what: str, overrides: Mapping[str, Any], store: Path) -> Iterator[Finding]:
    """What the study's judging would cost, judge by judge, with what is done already left out."""
    try:
        plan = launch.prepare_recipe(Path(what), overrides)
        found = costs.budget(plan, stores.Store(store), costs.Assumptions())
    except HarnessError as error:
        yield note("price of judging", f"not counted: {' '.join(str(error).split())}")
        return
    for bill in found.bills():
        yield ok("price of judging", str(bill))


def recipe_of(what: str, overrides: Mapping[str, Any]) -> Recipe | None:
    """The recipe of a study's or recipe's file; None for anything else."""
    if not what.endswith((".yaml", ".yml")) or looking.profile_of(what):
        return None
    study = studies.load_any(Path(what), overrides)
    if study.has_models:
        return study.base
    # Given answers: no model answers, nothing is trained on or ranked.
    fresh = type(study.base)()
    unread = study.base.data.model_copy(update={"path": "", "heldout_path": ""})
    unused = {"model": fresh.model, "ranker": fresh.ranker, "data": unread}
    return study.base.model_copy(update=unused)


# -- the machine -----------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Python and every required package against the ranges that the project declares."""
    from packaging.requirements import Requirement

    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        yield wrong("python", f"{platform.python_version()}; install 3.11 or 3.12")
    try:
        wanted = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        how = "run `make setup`, or `pip install -e .` in the repository"
        yield wrong(PACKAGE, f"is not installed; {how}")
        return
    good = 0
    for requirement in wanted:
        name, span = requirement.name, requirement.specifier
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        found = _version(name)
        if found and span.contains(found, prereleases=True):
            good += 1
        elif found:
            finding = note if extra else wrong
            yield finding(name, f"{found}, wanted {span}; `make setup` installs it")
        elif not extra:
            yield wrong(name, f"is missing; `pip install '{name}{span}'`")
    python, torch_version = platform.python_version(), _version("torch") or "missing"
    says = f"Python {python}, {good} packages within the ranges wanted, torch {torch_version}"
    yield ok("versions", says)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def accelerators(recipe: Recipe | None) -> Iterator[Finding]:
    """GPUs as torch sees them, and whether the recipe's model can train and sample there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(i) for i in range(count)]
    if sizes:
        names = (f"{size.name} {size.total_memory / GB:.0f} GB" for size in sizes)
        yield ok("devices", ", ".join(names))
    else:
        yield note("devices", f"no CUDA device; {worker_count(0)} CPU cores")
    if recipe is None:
        return
    on_cpu = recipe.runtime.device == "cpu"
    for what, check in launch.needs(recipe, 0 if on_cpu else count).items():
        try:
            check()
        except HarnessError as error:
            yield wrong(what, str(error))
    if recipe.model.source == "pocket":
        return
    try:
        shape = shapes.shape_of(recipe)
    except HarnessError as error:
        yield note("memory", f"not estimated: {error}")
        return
    if sizes:
        room = costs.USABLE * min(size.total_memory for size in sizes)
        yield from _memory(recipe, shape, room)
    elif shape.parameters > 1e9:
        needs = f"{shape.name} with {shape.parameters / 1e9:.1f} B parameters needs a GPU"
        look = "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, and whether torch is built for CUDA"
        yield wrong("devices", f"{needs}; none is visible: {look}")


def _memory(recipe: Recipe, shape: Shape, room: float) -> Iterator[Finding]:
    """Whether what is certain of training and generating fits into ``room`` bytes of a device."""
    weights, cache = costs.generating_bytes(recipe, shape)
    if recipe.model.generation_backend == "vllm":  # it keeps what fits and queues the rest
        cache = 0.0
    needs = {
        "training": shapes.training_bytes(shape, recipe),
        "scoring": shapes.scoring_bytes(shape, recipe),
        "generating": weights + cache,
    }
    advice = shapes.remedies(recipe.training, recipe.runtime.sharding != "none")
    for what, needed in needs.items():
        says = f"{needed / GB:.1f} GB before the first row, {room / GB:.1f} GB usable on a device"
        if needed <= room:
            yield ok(f"memory of {what}", says)
        else:
            says += f"; try {advice}, or a smaller model.generation_batch"
            yield wrong(f"memory of {what}", says)


def disk(store: Path, recipe: Recipe | None) -> Iterator[Finding]:
    """Room for the checkpoints a run keeps, and a store that can be written."""
    folder = next(path for path in (store.resolve(), *store.resolve().parents) if path.exists())
    if not os.access(folder, os.W_OK):
        yield wrong("store", f"{store} cannot be written; give another folder with --store")
        return
    free, needed = shutil.disk_usage(folder).free, FREE_SPACE
    if recipe is not None:
        with suppress(HarnessError):  # a model whose sizes are not known
            # Two checkpoints, one of them with its optimiser.
            weights = 2 if recipe.model.dtype == "bfloat16" else 4
            optimiser = 16 if recipe.training.lora is None else 0
            needed += (2 * weights + optimiser) * shapes.shape_of(recipe).parameters
    says = f"{free / GB:.0f} GB free, about {needed / GB:.0f} GB needed at once (keep: last)"
    if free >= needed:
        yield ok("disk", says)
    else:
        yield wrong("disk", f"{says}; free some or give another folder with --store")


# -- what the recipe names -------------------------------------------------------------------------


def files(recipe: Recipe) -> Iterator[Finding]:
    """Files and folders that the recipe names, and benchmark files it should name."""
    named, _ = runs.named_in(recipe)
    missing = sorted(name for name in named if not Path(name).exists())
    for name in missing:
        yield wrong("file", f"{name} does not exist")
    if named and not missing:
        yield ok("files", f"{len(named)} named by the recipe, all there")
    for name in recipe.evaluation.benchmarks:
        one, section = benchmarks.BENCHMARKS[name], recipe.evaluation.of(name)
        empty = [f"evaluation.{name}.{key}" for key in one.files if not getattr(section, key)]
        if recipe.data.source == "pocket" and one.pocket:
            yield ok(name, f"{one.title} of the pocket world")
        elif empty:
            instead = f"give it, or leave {name} out of evaluation.benchmarks"
            yield wrong(name, f"no file is given in {', '.join(empty)}; {instead}")
        else:
            yield ok(name, f"{one.title} has every file that it needs")


def ranker(recipe: Recipe) -> Finding:
    """What ranks, and with which checkpoint, which is looked at where it is here."""
    one = rankers.RANKERS[recipe.ranker.kind]
    says = recipe.ranker.model or "no checkpoint needed"
    if one.checkpoint != "none" and Path(recipe.ranker.model or "?").is_dir():
        try:
            says += f": {rankers.check_ranker(Path(recipe.ranker.model))}"
        except HarnessError as error:
            return wrong(f"ranker {one.kind}", " ".join(str(error).split()))
    if one.checkpoint == "given or trained" and not recipe.ranker.model:
        says = "trained in place"
    if one.asks_judge:
        says += "; it asks the judge"
    return ok(f"ranker {one.kind}", says)


def hub(recipe: Recipe) -> Iterator[Finding]:
    """Whether what the recipe takes from the hub can be had: cached, or the hub lets us in."""
    model, ranker, data = recipe.model, recipe.ranker, recipe.data
    for name, revision in ((model.source, model.revision), (ranker.model, ranker.revision)):
        if is_hub_id(name):
            yield _hub_entry(name, "model", revision)
    if data.source == "hub":
        yield _hub_entry(data.path, "dataset", data.revision)


def _hub_entry(name: str, kind: str, revision: str) -> Finding:
    errors = hub_client.errors
    try:
        hub_client.HfApi().auth_check(name, repo_type=kind)
    except errors.GatedRepoError:
        how = f"accept its terms on https://huggingface.co/{name} and log in with `hf auth login`"
        return wrong(name, f"is gated; {how}")
    except errors.RepositoryNotFoundError:
        private = "or it is private and you are not logged in (`hf auth login`)"
        return wrong(name, f"the hub has no such {kind}, {private}")
    except Exception as error:  # noqa: BLE001 - no network, a proxy, offline mode: all the same
        says = f"the hub cannot be reached ({type(error).__name__})"
        with suppress(errors.CacheNotFound):
            repos = hub_client.scan_cache_dir().repos
            if any(repo.repo_id == name and repo.repo_type == kind for repo in repos):
                return note(name, f"{says}, but its cache holds this {kind}")
        fetch = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
        return wrong(name, f"{says}; run `{fetch}` where it can, or give a local copy")
    return ok(name, f"the hub gives this {kind}" + (f" (revision {revision})" if revision else ""))


def model(source: str, recipe: Recipe | None = None) -> Iterator[Finding]:
    """Template and stop tokens of a model; of one not here, only its tokenizer is fetched."""
    asked = recipe.model if recipe else sections.ModelSettings()
    code, template = asked.trust_remote_code, asked.chat_template
    told = policy.template_settings(template, asked.template_date, asked.template_arguments)
    try:
        folder = _tokenizer_folder(source, asked.revision)
        config = folder / "config.json"
        if config.is_file() and rankers.is_ranker(checkpoint_files.settings_of(config, source)):
            yield ok(f"ranker {source}", rankers.check_ranker(folder))
            return
        if Path(source).expanduser().exists():
            checkpoints.check_checkpoint(
                folder, head="causal", trust_remote_code=code, pickle_weights=asked.pickle_weights
            )
        elif config.is_file():
            checkpoint_files.check_code(folder, source, code)
        tokenizer = policy.load_tokenizer(folder, trust_remote_code=code, template=told)
        chat.preflight(tokenizer)
    except (HarnessError, OSError) as error:
        yield wrong(f"loading {source}", " ".join(str(error).split()))
        return
    stops = (repr(tokenizer.convert_ids_to_tokens(i)) for i in chat.stop_tokens(tokenizer))
    says = f"passes the token check; an answer ends with {', '.join(stops)}"
    yield ok(f"template of {source}", says)


def _tokenizer_folder(source: str, revision: str) -> Path:
    folder = Path(source).expanduser()
    if sources.is_gguf(folder):
        return sources.gguf_checkpoint(folder)
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        form = "a hub id has the form owner/name"
        raise HarnessError(f"{source}: no such checkpoint folder ({form})")
    fetch = hub_client.snapshot_download
    try:
        return Path(fetch(source, revision=revision or None, allow_patterns=TOKENIZER_FILES))
    except Exception as error:
        says = f"its tokenizer cannot be fetched ({type(error).__name__})"
        raise HarnessError(f"{says}; see the line on the hub") from error
