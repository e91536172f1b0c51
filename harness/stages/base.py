"""A checkpoint folder or hub id, validated before any compute. Stage ``base.checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.model import gguf
from harness.model.adapter import merge
from harness.model.chat import preflight
from harness.model.checkpoint import check_checkpoint
from harness.model.checkpoint_files import check_no_adapter, fingerprint
from harness.model.policy import load_tokenizer, template_settings
from harness.rankers.registry import check_ranker
from harness.records import HarnessError, StageOutcome, StageTask, canonical_json, first_line
from harness.study.tasks import CheckpointTask

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is fetched of a hub repository: configuration, tokenizer and safetensors weights."""


def run(task: StageTask[CheckpointTask]) -> StageOutcome:
    """Write ``location.json``: path, source, revision, fingerprint, and what loading it needs. The
    tokenizer passes the token pre-flight where a template is needed (rankers need none). An adapter
    is merged into its base, as ``model/``.
    """
    settings = task.settings
    source = settings.source
    allowed_pickle = settings.pickle_weights
    revision = settings.commit or settings.revision
    if settings.adapter_base:
        path = _merged(settings, task.out / "model")
    else:
        path = resolve(source, revision, pickle_weights=allowed_pickle)
    own = gguf.is_gguf(source) or settings.adapter_base
    found = fingerprint(Path(source).expanduser() if own else path)
    _same_files(source, settings.source_fingerprint, found)
    needs_template = settings.needs_template
    where = {
        "path": "" if settings.adapter_base else str(path),
        "source": source,
        "revision": revision,
        "fingerprint": found,
        "trust_remote_code": settings.trust_remote_code,
        "pickle_weights": allowed_pickle,
        **template_settings(
            settings.chat_template if needs_template else "",
            settings.template_date,
            settings.template_arguments,
        ),
    }
    (task.out / "location.json").write_text(canonical_json(where) + "\n", encoding="utf-8")
    if not needs_template:
        check_ranker(task.out)
    else:
        check_checkpoint(task.out, head="causal")
        tokenizer = load_tokenizer(task.out)
        if not tokenizer.chat_template:
            raise HarnessError(
                f"{source}: the tokenizer has no chat template (is it a base model?); give one "
                "with model.chat_template: <file.jinja>"
            )
        try:
            preflight(tokenizer)
        except HarnessError as error:
            raise HarnessError(f"{source}: {error}") from error
    return StageOutcome(rows=1, summary={"source": source, "fingerprint": found[:12]})


def _merged(settings: CheckpointTask, out: Path) -> Path:
    base = resolve(settings.adapter_base, settings.adapter_commit)
    _same_files(settings.adapter_base, settings.adapter_base_fingerprint, fingerprint(base))
    merge(Path(settings.source), base, out)
    return out


def _same_files(source: str, planned: str, found: str) -> None:
    if planned and planned != found:
        raise HarnessError(
            f"{source}: its files changed since the study was planned (planned {planned[:12]}, "
            f"now {found[:12]}); plan and run again"
        )


def resolve(source: str, revision: str = "", *, pickle_weights: str = "") -> Path:
    """The checkpoint's local folder: ``source`` itself, what a GGUF file holds, or the hub's files
    from the cache, fetched when there is a network.

    Raises HarnessError for a missing, gated or unreachable one, saying what to do.
    """
    folder = Path(source).expanduser()
    if gguf.is_gguf(folder):
        return gguf.checkpoint_of(folder)
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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(offline: bool) -> Path:
        options: Any = {"allow_patterns": patterns, "local_files_only": offline}
        return Path(snapshot_download(source, revision=revision or None, **options))

    where = "the hub repository"
    try:
        path = fetch(False)
    except GatedRepoError as error:
        raise HarnessError(
            f"{source}: gated on the hub; accept its terms on its page and log in with `hf auth "
            "login`"
        ) from error
    except RevisionNotFoundError as error:
        raise HarnessError(f"{source}: the hub has no revision {revision!r} of it") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise HarnessError(
            f"{source}: no such model on the hub, or it is private and you are not logged in (`hf "
            "auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
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
