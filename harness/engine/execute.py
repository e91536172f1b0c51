"""Walk a plan's graph over an executor: stages run when their inputs are committed, the longest
remaining chain goes first, and a failed stage blocks only what needs it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.engine.graph import Node, Plan
from harness.engine.stages import STAGES
from harness.engine.store import Store
from harness.engine.worker import Result, prepare_environment, run_stage
from harness.records import HarnessError, StageRecord

Listener = Callable[[Node, Result | None], None]
"""Called with a stage that starts, and again with its result."""
CHECKS = ("data.files", "data.rules", "base.checkpoint", "benchmarks.files")
"""Stages that only read and check what the recipe names. They go first, and nothing else starts
when one of them fails.
"""
LOOKED_AT = 5000
"""Finished stages whose records are read for their seconds."""
TOWARDS_THE_BASE = (
    *("policy", "answer", "answer_a", "base", "pairs"),
    *("rollout", "current", "first"),
)
"""Inputs that lead back to the base checkpoint."""


@dataclass(frozen=True)
class Expected:
    """Seconds that a stage is expected to take, and where they come from: measured or prior."""

    seconds: float
    source: str


@dataclass
class Summary:
    """How a walk ended: stages by outcome, in seconds of work, and every reason."""

    executed: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    blocked: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_status(self) -> int:
        """0: all there; 1: something failed; 3: nothing failed, but rows are still missing."""
        if self.failed or self.blocked:
            return 1
        return 3 if self.partial else 0


class Executor(Protocol):
    """Where stages run. ``submit`` starts one in a free slot (if it ``takes`` it now); ``collect``
    waits for results.
    """

    def free(self) -> int: ...

    def takes(self, node: Node) -> bool: ...

    def submit(self, node: Node, restore: bool) -> None: ...

    def collect(self, timeout: float) -> list[Result]: ...

    def close(self) -> None: ...


class Inline:
    """Runs every stage in this process, one after the other: for debugging and for reference."""

    def __init__(self, store: Store, hub: bool = False) -> None:
        prepare_environment(hub)
        self.store = store
        self._waiting: list[tuple[Node, bool]] = []

    def free(self) -> int:
        return 0 if self._waiting else 1

    def takes(self, node: Node) -> bool:  # noqa: ARG002
        return True

    def submit(self, node: Node, restore: bool) -> None:
        self._waiting.append((node, restore))

    def collect(self, timeout: float) -> list[Result]:
        if not self._waiting:
            time.sleep(timeout)  # another process runs what is left
        done = [run_stage(self.store, node, restore=restore) for node, restore in self._waiting]
        self._waiting.clear()
        return done

    def close(self) -> None:
        self._waiting.clear()


def execute(
    plan: Plan,
    store: Store,
    executor: Executor,
    listener: Listener | None = None,
    only: Sequence[str] = (),
) -> Summary:
    """Run every stage of the plan that is not done, those of `CHECKS` first. ``only``: names of
    stages to run (their inputs must be there).

    A stage another process is running is waited for. Raises HarnessError only for the store itself.
    """
    walk = _Walk(plan, store, listener or (lambda _node, _result: None), frozenset(only))
    while walk.waiting or walk.running:
        for _ in range(executor.free()):
            node = walk.next_ready(executor.takes)
            if node is None:
                break
            walk.running.add(node.key)
            walk.say(node, None)
            executor.submit(node, node.key in walk.restoring)
        results = executor.collect(0.2)
        for result in results:
            walk.settle(result)
        if not results and not walk.running and not walk.postponed:
            break
    walk.summary.blocked = sorted(walk.waiting)
    return walk.summary


class _Walk:
    """State of one walk: what waits, runs and ended. restoring: committed checkpoints whose weights
    retention deleted, but a waiting stage reads them. checks: those of `CHECKS` to do.
    """

    def __init__(self, plan: Plan, store: Store, listener: Listener, only: frozenset[str]) -> None:
        self.plan, self.store, self.say = plan, store, listener
        states = store.states(list(plan.nodes))
        self.done = {key for key, state in states.items() if state == "done"}
        wanted = (key for key, node in plan.nodes.items() if not only or node.stage in only)
        self.waiting = {key: plan.nodes[key] for key in wanted if key not in self.done}
        self.restoring: set[str] = set()
        frontier = list(self.waiting)
        while frontier:
            inputs = self.done.intersection(plan.nodes[frontier.pop()].inputs.values())
            dropped = {key for key in inputs - self.restoring if not store.has_model(key)}
            self.restoring |= dropped
            frontier += dropped
        self.waiting |= {key: plan.nodes[key] for key in self.restoring}
        self.done -= self.restoring
        self.checks = {key for key in self.waiting if not only and plan.nodes[key].stage in CHECKS}
        self.running: set[str] = set()
        self.postponed: dict[str, float] = {}
        self.summary = Summary(reused=len(self.done))
        prior = {key: STAGES[node.stage].seconds for key, node in plan.nodes.items()}
        self.rank = _chains(plan.nodes, prior)

    def next_ready(self, takes: Callable[[Node], bool]) -> Node | None:
        now = time.monotonic()
        self.postponed = {key: until for key, until in self.postponed.items() if until > now}
        ready = [node for node in self.waiting.values() if self._is_ready(node)]
        for node in sorted(ready, key=lambda n: (self.rank[n.key], n.key), reverse=True):
            if takes(node):
                del self.waiting[node.key]
                return node
        return None

    def _is_ready(self, node: Node) -> bool:
        if node.key in self.postponed or (self.checks and node.key not in self.checks):
            return False
        partial = self.summary.partial if STAGES[node.stage].reads_partial else {}
        return all(key in self.done or key in partial for key in node.inputs.values())

    def settle(self, result: Result) -> None:
        self.running.discard(result.key)
        node = self.plan.nodes[result.key]
        self.summary.seconds += result.seconds
        if result.state == "busy" and not self.store.has(result.key):
            self.waiting[result.key] = node
            self.postponed[result.key] = time.monotonic() + 1.0
            return
        if result.state in ("done", "busy"):
            self.done.add(result.key)
            self.checks.discard(result.key)
            if result.costs:
                self.summary.executed += 1
            else:  # another process finished it between our look and our turn
                self.summary.reused += 1
        elif result.state == "partial":
            self.summary.partial[result.key] = result.message
        else:
            self.summary.failed[result.key] = result.message
        if result.state != "busy":
            self.say(node, result)


def _chains(nodes: Mapping[str, Node], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest chain that starts at each stage: the longest goes first."""
    chains = {key: seconds.get(key, 0.0) for key in nodes}
    for node in reversed(list(nodes.values())):
        for key in node.inputs.values():
            chains[key] = max(chains[key], seconds.get(key, 0.0) + chains[node.key])
    return chains


def longest_chain(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Seconds that no number of workers can go below; a stage without an entry takes none."""
    return max(_chains(plan.nodes, seconds).values(), default=0.0)


def estimate(plan: Plan, store: Store) -> dict[str, Expected]:
    """What each stage is expected to take: the median of this store's finished ones of that name on
    the same base model, else the prior.
    """
    records: dict[str, StageRecord] = {}
    for key in store.all_keys()[:LOOKED_AT]:
        with suppress(HarnessError):
            records[key] = store.record(key)
    measured: dict[tuple[str, str], list[float]] = {}
    for record in records.values():
        if "seconds" in record.costs:
            kind = record.stage, _base_of(record.key, records)
            measured.setdefault(kind, []).append(record.costs["seconds"])
    middle = {
        kind: Expected(sorted(seconds)[len(seconds) // 2], "measured")
        for kind, seconds in measured.items()
    }
    prior = {name: Expected(stage.seconds, "prior") for name, stage in STAGES.items()}
    return {
        key: middle.get((node.stage, _base_of(key, plan.nodes)), prior[node.stage])
        for key, node in plan.nodes.items()
    }


def _base_of(key: str, nodes: Mapping[str, Node | StageRecord]) -> str:
    """Key of the base checkpoint a stage goes back to, empty where it needs none."""
    while key in nodes and not nodes[key].stage.startswith("base."):
        inputs = nodes[key].inputs
        key = next((inputs[name] for name in TOWARDS_THE_BASE if name in inputs), "")
    return key


def untrained(plan: Plan, store: Store) -> dict[str, str]:
    """The last training stage of every run that trained on nothing, though it was to → why."""
    found = {}
    for run in plan.runs:
        stages = [one for number, one in run.iterations.items() if number > 0]
        trained = [one["train"] for one in stages if "train" in one]
        if trained and all(store.has(key) and not store.record(key).rows for key in trained):
            found[trained[-1]] = (
                f"run {run.cell.run}: none of the {len(trained)} portions held a preference pair, "
                "so that the policy is the one it began as; the table of what was left out says "
                "why. Larger portions (loop.prompts_per_iteration), more candidates "
                "(pairs.current, exploration.samples) or a ranker that tells them apart "
                "(ranker.kind) give pairs"
            )
    return found


def retain(plan: Plan, store: Store) -> int:
    """Apply the study's retention: delete weights of checkpoints no longer needed once all their
    users are done. Returns bytes freed.
    """
    if plan.study.keep == "all":
        return 0
    needed = set()
    if plan.study.keep == "last":
        needed = {run.last.get("train", "") for run in plan.runs}
    for node in plan.nodes.values():
        if not store.has(node.key):
            needed |= {node.key, *node.inputs.values()}
    trained = [key for key, node in plan.nodes.items() if node.stage == "train"]
    return sum(store.drop_model(key) for key in trained if key not in needed)


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM (preemption) into KeyboardInterrupt, so that pools close and journals stay
    whole. A second one, which schedulers send to a job's whole tree, cuts neither that short nor
    what follows it: the process is at its end, and tells so by its own status.
    """

    def stop(_signum: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)
