"""``selm`` commands for what is stored: look, forget, check, clean, carry elsewhere."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from harness.cli.options import RESULTS, STORE, Key, Results, StoreRoot, StudyName, lazily
from harness.cli.run import open_store, read_manifest
from harness.files import write_atomic
from harness.records import HarnessError, first_line
from harness.study import shipped

with lazily():
    from analysis import cards as pushing
    from analysis import load as loading
    from harness.cli import console as shown
    from harness.cli import schema
    from harness.engine import archive
    from harness.engine import store as stores
    from harness.engine.store import Store

STATES = ("done", "running", "partial", "failed", "missing")


def status(study: StudyName, store: StoreRoot = STORE, results: Results = RESULTS) -> None:
    """Show running, done, failed and missing stages of a study, also while it runs elsewhere.

    Example: selm status alpha
    """
    _, manifest = read_manifest(results, study)
    opened, stages = stores.Store(store), manifest["stages"]
    states = opened.states(list(stages))
    counts = Counter(states.values())
    told = ", ".join(f"{counts[state]} {state}" for state in STATES)
    shown.say(f"Study {manifest['study']['name']}: {len(stages)} stages: {told}")
    rows = []
    for run in manifest["runs"][:200]:
        keys = {key for part in run["iterations"] for key in part["stages"].values()}
        mine = Counter(states[key] for key in keys)
        rows.append([run["run"], *(mine[state] for state in STATES)])
    shown.table("", ("run", *STATES), rows)
    for key, state in states.items():
        name = f"{stages[key]['stage']}  [{key[:12]}]"
        if state == "running":
            owner, by = opened.owner(key), ""
            if owner:
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
                by = f" on {owner['host']}, process {owner['pid']}, since {since}"
            shown.say(f"running  {name}{by}")
        elif state == "failed":
            shown.say(f"FAILED   {name}: {opened.failure(key).get('reason', '')}")


def show(key: Key, store: StoreRoot = STORE) -> None:
    """Show one finished stage: settings, inputs, files, costs.

    Example: selm show 3fa9c1
    """
    opened = stores.Store(store)
    whole = find_key(opened, key)
    record = opened.record(whole)
    shown.say(f"stage {record.stage} v{record.version}  {whole}\nfolder {opened.folder(whole)}")
    for title in ("settings", "inputs", "costs", "summary", "files", "environment"):
        shown.say(f"{title}:")
        for name, value in getattr(record, title).items():
            shown.say(f"  {name}: {value}")


def find_key(store: Store, prefix: str) -> str:
    """The one committed stage whose key starts with ``prefix``."""
    matches = [key for key in store.all_keys() if key.startswith(prefix)]
    if len(matches) != 1:
        advice = "give more of the key" if matches else "`selm status` names what there is"
        raise HarnessError(f"{prefix!r} names {len(matches)} stages in {store.root}; {advice}")
    return matches[0]


def invalidate(key: Key, store: StoreRoot = STORE) -> None:
    """Forget one finished stage, so that the next run does it again.

    Example: selm invalidate 3fa9c1
    """
    opened = stores.Store(store)
    whole = find_key(opened, key)
    opened.invalidate(whole)
    shown.say(f"Forgotten: {whole}")


def verify(store: StoreRoot = STORE) -> None:
    """Re-hash every finished stage; name what is missing or altered and what depends on it.

    Exit status 1 if anything is.

    Example: selm verify
    """
    opened = stores.Store(store)
    found = opened.verify()
    for item in found:
        shown.say(f"{item.path}: {item.what}; {item.action}")
    shown.say(f"{len(opened.all_keys())} stages checked, {len(found)} findings.")
    raise typer.Exit(1 if found else 0)


def gc(
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    delete: Annotated[bool, Option("--delete", help="Delete; without it nothing is.")] = False,
    searches: Annotated[bool, Option(help="Keep what only a search's trials used.")] = True,
) -> None:
    """List stages that no study below --results needs, and what dead attempts left.

    With them the journals and failures of such stages.

    Example: selm gc --delete
    """
    opened = stores.Store(store)
    found = archive.waste(opened, results, searches)
    for item in found:
        shown.say(f"{item.kind:17s} {item.size / 1e6:10.2f} MB  {item.path}")
    if delete:
        freed = archive.collect(opened, found) / 1e6
        shown.say(f"{len(found)} things deleted, {freed:.1f} MB freed.")
        return
    size = sum(item.size for item in found) / 1e6
    shown.say(
        f"{len(found)} things, {size:.1f} MB. Nothing was deleted; `selm gc --delete` does it."
    )


def export(
    study: StudyName,
    file: Annotated[Path, Argument(help="The archive to write, for example alpha.tar.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
    weights: Annotated[bool, Option(help="With the checkpoints' weights.")] = True,
) -> None:
    """Write a study and its finished stages into one archive with the checksum of every file.

    Equal studies give equal archives.

    Example: selm export alpha alpha.tar --no-weights
    """
    folder, _ = read_manifest(results, study)
    done = archive.export_study(folder, stores.Store(store), file, weights)
    size = f"{done.stages} stages, {file.stat().st_size / 1e6:.1f} MB"
    shown.say(f"{file}: study {done.study}, {size}; {done.missing} are not done.")


def import_(
    file: Annotated[Path, Argument(help="An archive written by `selm export`.")],
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Check an archive's every file, then add its study.

    An archive that is not whole, or contradicts the store, changes nothing.

    Example: selm import alpha.tar
    """
    done = archive.import_archive(file, open_store(store), results)
    there = f"{done.present} were here already, {done.missing} are not done"
    shown.say(f"Study {done.study}: {done.stages} stages added, {there}.")
    shown.say(f"Every checksum agrees. Next: selm report {done.study}")


def push(
    study: StudyName,
    cell: Annotated[str, Argument(help="A run, with @iteration behind it; without: its last.")],
    repo: Annotated[str, Argument(help="The hub's repository, for example ours/selm-1.")],
    yes: Annotated[bool, Option("--yes", help="Upload it, not only write it.")] = False,
    store: StoreRoot = STORE,
    results: Results = RESULTS,
) -> None:
    """Write a checkpoint as a repository of the Hugging Face hub, and upload it with --yes.

    Model, card with evaluation results in the hub's own form, the study's settings and the answers.
    A repository that is not there is made private. Log in first (hf auth login, or HF_TOKEN).

    Example: selm push alpha objective.alpha=1,seed=0@3 ours/selm-1
    """
    home, _ = read_manifest(results, study)
    folder = pushing.write_repository(loading.load_study(home, store), cell, repo, home)
    count = sum(path.is_file() for path in folder.rglob("*"))
    shown.say(f"{folder}: {count} files, {archive.size(folder) / 1e6:.1f} MB.")
    if not yes:
        shown.say(f"Nothing was uploaded; with --yes it goes to {repo}.")
        return
    shown.say(f"Uploaded: {upload(folder, repo)}")


def upload(folder: Path, repo: str) -> str:
    """Put a folder's files into a repository of the hub, private where it has to be made; returns
    the commit's address. Raises HarnessError with the hub's reason.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder).commit_url)
    except Exception as error:  # of many kinds: no token, no access, no network
        why = first_line(error, 300)
        says = f"{repo}: the hub took nothing ({why}); the files are in {folder}"
        raise HarnessError(says) from error


def init(
    folder: Annotated[Path, Argument(help="Where ablations/ and docs/ are made.")] = Path(),
) -> None:
    """Copy the studies, recipes, presets and judges of the harness into ablations/ of a folder, and
    the schemas that editors read them with into docs/.

    Example: selm init ours
    """
    target = folder / shipped.FOLDER.name
    if target.exists():
        raise HarnessError(f"{target}: is there already; give another folder")
    shutil.copytree(shipped.FOLDER, target, ignore=shutil.ignore_patterns("LOG.md", "README.md"))
    for name, text in schema.files().items():
        write_atomic(folder / "docs" / name, text)
    shown.say(f"{target}: change a study, then selm run {target}/STUDY.yaml")
