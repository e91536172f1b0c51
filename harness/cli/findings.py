"""What ``selm doctor`` finds in a file of preference rows, read as the data stage reads it, and of
judges: is the model there, is each kind of request answered and read, what does it cost, and how
long will it be there? Costs one short call for every kind of request; the pocket judge is not
asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import httpx

from harness import cost as judging
from harness.data.files import file_rows
from harness.data.rows import Reader
from harness.evaluate import annotator, mt_bench
from harness.judge import endpoint as endpoints
from harness.judge import verdicts
from harness.judge.client import JudgeClient, JudgeRequest
from harness.model.chat import check_rows
from harness.records import HarnessError, Pair, redact
from harness.study import shipped
from harness.study.sections import DataSettings, JudgeSettings
from harness.study.settings import Recipe
from harness.study.study import JUDGES, checked_judge
from harness.study.tasks import Runtime
from harness.train.batching import encode_pair


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``note``: only worth knowing; ``WRONG``: a run would fail."""

    state: Literal["ok", "note", "WRONG"]
    what: str
    says: str


def ok(what: str, says: str) -> Finding:
    return Finding("ok", what, says)


def note(what: str, says: str) -> Finding:
    return Finding("note", what, says)


def wrong(what: str, says: str) -> Finding:
    return Finding("WRONG", what, says)


# -- a file of rows --------------------------------------------------------------------------------
SHOWN = 3
"""Rows shown as tokens."""
ENDS = 24
"""Tokens shown at either end of a long text."""


def data(path: str, columns: Mapping[str, str], tokenizer: Any = None) -> Iterator[Finding]:
    """What of the file is read, what is left out and why; with a tokenizer, what its chat template
    does to the rows, and the first of them as tokens, those that are trained between « and ».
    columns: as of ``Reader``.
    """
    reader = Reader("data.files", "rows", columns)
    try:
        prompts = reader.prompts(file_rows(Path(path)))
    except HarnessError as error:
        yield wrong(path, str(error))
        return
    for one in reader.left_out():
        where = ", ".join(one.examples)
        yield note(path, f"{one.count} of {one.of} {one.what} left out: {one.reason} ({where})")
    most, read = DataSettings().max_left_out, reader.rows.read
    says = f"{len(prompts)} of {read} rows are pairs"
    if not prompts or read - len(prompts) > most * read:
        yield wrong(path, f"{says}; data.max_left_out allows {most:g} to be left out")
        return
    yield ok(path, says)
    if tokenizer is None:
        return
    rows = ((reader.places[one.id], one.messages, (one.chosen, one.rejected)) for one in prompts)
    try:
        counts = check_rows(tokenizer, rows)
    except HarnessError as error:
        yield wrong(path, str(error))
        return
    for name, count in counts.items():
        yield note(path, f"{name.replace('_', ' ')} in {count} rows")
    for prompt in prompts[:SHOWN]:
        pair = Pair(prompt.id, prompt.messages, prompt.chosen, prompt.rejected, "")
        row = encode_pair(tokenizer, pair)
        for role, ids in row.responses.items():
            says = f"{_tokens(tokenizer, row.prompt_ids)} «{_tokens(tokenizer, ids)}»"
            yield note(f"{reader.places[prompt.id]} {role}", says)


def _tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    """The tokens as the tokenizer writes them, the middle of a long text left out."""
    texts = [repr(token)[1:-1] for token in tokenizer.convert_ids_to_tokens(list(ids))]
    if len(texts) > 2 * ENDS:
        texts[ENDS:-ENDS] = [f"… {len(texts) - 2 * ENDS} tokens …"]
    return " ".join(texts)


# -- judges ----------------------------------------------------------------------------------------
TIMEOUT_S = 10.0
Get = Callable[..., Any]
FOLDERS = (Path("ablations") / "judges", Path("judges"), shipped.FOLDER / "judges")
QUESTION = "Name a fruit."
RATING = (
    "Rate the answer to the question on a scale of 1 to 10 and end with the rating in double "
    f'brackets, for example "Rating: [[5]]".\n\n[Question]\n{QUESTION}\n\n'
    "[The Start of Assistant's Answer]\nAn apple.\n[The End of Assistant's Answer]"
)
PAIR = annotator.Pair("0", QUESTION, "I would rather not.", "An apple.")


def profile_of(name: str) -> Path | None:
    """The profile that a word names: a file in a ``judges`` folder, or the name of one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path if path.is_file() and path.resolve().parent.name == JUDGES else None
    files = [folder / f"{name}.yaml" for folder in FOLDERS]
    return next((file for file in files if file.is_file()), None)


def profile(path: Path, get: Get = httpx.get) -> Iterator[Finding]:
    """Findings about one profile's judge, both kinds of request, and its price of a checkpoint."""
    judge = checked_judge(path)
    yield from asked(judge, tuple(judging.CHECKPOINT), Runtime(), get)
    yield ok("price", judging.of_a_checkpoint(judge, Runtime()))


def recipe(found: Recipe, get: Get = httpx.get) -> Iterator[Finding]:
    """Findings about every judge of a recipe, each asked once for each kind of request."""
    runtime = Runtime(**vars(found.runtime))
    kinds: dict[str, list[str]] = {}
    by_judge: dict[str, JudgeSettings] = {}
    for benchmark, judge in found.judges.items():
        key = judge.model_dump_json()
        by_judge[key] = judge
        kinds.setdefault(key, []).append(benchmark)
    for key, judge in by_judge.items():
        if judge.kind == "pocket" and found.data.source != "pocket":
            says = "the local one; it reads real text by a plain heuristic and measures nothing"
            yield note("judge", says)
            continue
        yield from asked(judge, kinds[key], runtime, get)


def asked(
    judge: JudgeSettings, benchmarks: Sequence[str], runtime: Runtime, get: Get
) -> Iterator[Finding]:
    """One judge: facts, end, endpoint, model, and an answer of each kind. get: httpx.get."""
    name = f"judge {judge.profile or judge.model}"
    if judge.kind == "pocket":
        yield ok(name, "the local one")
        return
    if judge.facts:
        facts = judge.facts
        where = "; ".join(f"{what}: {source}" for what, source in facts.sources.items())
        yield ok(name, f"{facts.about}; {facts.licence} ({where})")
    ends = judge.sunset(date.today())
    if ends:
        gone = judge.facts and str(judge.facts.end_of_life) <= date.today().isoformat()
        yield wrong(name, ends) if gone else note(name, ends)
    there = list(model(judge, get, name))
    if judge.transport == "batch" and all(finding.state != "WRONG" for finding in there):
        there.append(takes_batches(judge, get, name))
        judge = judge.model_copy(update={"transport": "direct"})
    yield from there
    if all(finding.state != "WRONG" for finding in there):
        for benchmark in benchmarks:
            yield request(judge, benchmark, runtime, name)


def _door(judge: JudgeSettings) -> tuple[endpoints.Endpoint, dict[str, str]]:
    """Where a judge is asked, and with what headers. HarnessError where its key is missing."""
    endpoint = endpoints.resolve_endpoint(judge, Runtime())
    return endpoint, endpoints.auth_headers(judge, endpoint)


def _got(get: Get, door: tuple[endpoints.Endpoint, dict[str, str]], path: str) -> Any:
    """What an endpoint answers, asked as a run asks it: one on this machine by no proxy."""
    endpoint, headers = door
    options = {"timeout": TIMEOUT_S, "trust_env": not endpoint.loopback}
    return get(f"{endpoint.url}/{path}", headers=headers, **options)


def _listed(found: Any) -> dict[str, str]:
    """Models that an endpoint lists, each with the day on which it is shut down, where it says."""
    try:
        rows = found.json()["data"] if found.status_code == 200 else []
        return {str(row["id"]): str(row.get("shutdown_date") or "") for row in rows}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def model(judge: JudgeSettings, get: Get, name: str) -> Iterator[Finding]:
    """Whether the key is there, and whether the endpoint lists the model."""
    key = endpoints.KEY_VARIABLE
    try:
        door = endpoint, headers = _door(judge)
        found = _got(get, door, "models")
    except HarnessError as error:
        yield wrong(name, str(error))
        return
    except httpx.HTTPError as error:
        says = f"{endpoint.url} does not answer ({type(error).__name__}); check "
        says += f"{endpoints.URL_VARIABLE}, judge.base_url and the network"
        yield wrong(name, redact(says))
        return
    status, given = found.status_code, "set" if headers else "not needed"
    listed = _listed(found)
    if status in (401, 403):
        yield wrong(name, f"{endpoint.url} refuses the key in {key} (status {status})")
    elif status >= 500:
        yield wrong(name, f"{endpoint.url} answers with status {status}; try again later")
    elif not listed:
        yield note(name, f"{endpoint.url} answers, but lists no models; {key} is {given}")
    elif judge.model not in listed:
        others = ", ".join(sorted(listed)[:8])
        yield wrong(name, f"{endpoint.url} has no {judge.model!r}; it has {others}")
    else:
        yield ok(name, f"{endpoint.url} has {judge.model}; {key} is {given}")
        ends = listed[judge.model]
        if ends and not (judge.facts and judge.facts.end_of_life == ends):
            yield note(name, f"its maker shuts it down on {ends}: write that into its profile")


def takes_batches(judge: JudgeSettings, get: Get, name: str) -> Finding:
    """Whether the endpoint has batches. What follows is asked directly: one may take a day."""
    door = _door(judge)
    try:
        status = _got(get, door, "batches?limit=1").status_code
        answers = f"status {status}"
        if status == 200:
            return ok(name, f"{door[0].url} takes batches")
    except httpx.HTTPError as error:
        answers = type(error).__name__
    says = f"{door[0].url}/batches cannot be asked ({answers})"
    return wrong(name, redact(f"{says}; set judge.transport: direct"))


def request(judge: JudgeSettings, benchmark: str, runtime: Runtime, name: str) -> Finding:
    """One short request as a benchmark will send it, and whether its answer is read."""
    changes = {"judge_deadline_s": min(60.0, runtime.judge_deadline_s), "max_cost_usd": 0.0}
    what = f"{name} for {benchmark}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            own = runtime.model_copy(update=changes)
            with JudgeClient(judge, own, Path(folder)) as client:
                says, status = _ask(client, judge, benchmark)
                spent = client.costs
        except HarnessError as error:
            return wrong(what, " ".join(str(error).split()))
    took = f"{spent['judge_prompt_tokens']:.0f} + {spent['judge_completion_tokens']:.0f} tokens"
    if status != "ok":
        return wrong(what, f"gave no verdict ({status}: {says or 'not of the form asked for'})")
    return ok(what, f"{says}, read from one request of {took}")


def _ask(client: JudgeClient, judge: JudgeSettings, benchmark: str) -> tuple[str, str]:
    """(what was read, or why nothing was; status) of one request."""
    if benchmark != "alpaca_eval":
        messages = ({"role": "user", "content": RATING},)
        requests = [JudgeRequest("0", messages, {})]
        (reply,) = client.complete(requests, accept=mt_bench.readable)
        if reply.status != "ok":
            return reply.error, str(reply.status)
        return f"rating {verdicts.parse_rating(reply.text).value:g}", "ok"
    name = annotator.annotator_of(judge, annotator.OFFICIAL_ANNOTATOR)
    found = annotator.annotate([PAIR], client, annotator=name)["0", 0]
    if found.preference is None:
        return found.reason, found.status
    return f"preference {found.preference:.3f} by {name}", found.status


# -- an address ------------------------------------------------------------------------------------
def address(url: str, get: Get = httpx.get) -> Iterator[Finding]:
    """What an endpoint has, and how its first model can be asked: the two lines of a profile."""
    anyone = JudgeSettings(kind="openai", base_url=url, model="?")
    try:
        listed = list(_listed(_got(get, _door(anyone), "models")))
    except (HarnessError, httpx.HTTPError) as error:
        yield wrong(url, redact(f"cannot be asked: {error}"))
        return
    if not listed:
        yield wrong(url, "lists no models; is this the address that ends in /v1?")
        return
    yield ok(url, f"has {', '.join(listed[:8])}")
    for verdict in ("logprobs", "text"):
        fields = {"kind": "openai", "base_url": url, "model": listed[0], "verdict": verdict}
        found = request(JudgeSettings.model_validate(fields), "alpaca_eval", Runtime(), listed[0])
        tell = ok if found.state == "ok" else note
        yield tell(f"{listed[0]} by verdict: {verdict}", found.says)
