"""What judging may cost, and how fast it may ask."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from harness.judge.journal import Journal
from harness.judge.replies import estimate_tokens, token_limit
from harness.records import HarnessError
from harness.study.sections import JudgeSettings
from harness.study.tasks import Runtime


class Budget:
    """What judging has cost and may cost, in USD: a call is sent only when, at its dearest, it fits
    under the limit with those in flight.
    """

    def __init__(self, judge: JudgeSettings, runtime: Runtime) -> None:
        self.prices, self.limit = judge.prices(runtime), runtime.max_cost_usd
        self.each = [judge.prices(runtime, way) for way in ("direct", "batch")]
        priced = any(self.prices) or judge.facts
        if self.limit and judge.kind != "pocket" and not priced:
            raise HarnessError(
                "max_cost_usd is set but no price is: give runtime.price_prompt_usd_per_million "
                "and price_completion_usd_per_million"
            )
        self.reserved: dict[object, float] = {}

    def start(self, journal: Journal) -> None:
        """Begin counting, on the loop's thread."""
        self.journal, self.released = journal, asyncio.Condition()

    def spent(self) -> float:
        """Price of every journalled reply, each by the transport with which it came."""
        spent, batched = self.journal.spent, self.journal.by_batch
        prompts = spent["judge_prompt_tokens"] - batched[0], batched[0]
        replies = spent["judge_completion_tokens"] - batched[1], batched[1]
        ways = zip(prompts, replies, self.each, strict=True)
        return sum(prompt * price[0] + reply * price[1] for prompt, reply, price in ways) / 1e6

    @contextlib.asynccontextmanager
    async def call(self, body: Mapping[str, Any]) -> AsyncIterator[None]:
        """Room for one call; HarnessError when the limit leaves none any more."""
        if not self.limit:
            yield
            return
        prompt = estimate_tokens(body["messages"]) * self.prices[0]
        worst = (prompt + (token_limit(body) or 0) * self.prices[1]) / 1e6
        mine = object()
        async with self.released:
            while self.spent() + sum(self.reserved.values()) + worst > self.limit:
                if not self.reserved:
                    raise HarnessError(
                        f"max_cost_usd {self.limit:g} reached: {self.spent():.4f} USD spent on "
                        f"{len(self.journal.final)} judgments, the next may cost {worst:.4f}; the "
                        "journal keeps them, raise the limit and run again"
                    )
                await self.released.wait()
            self.reserved[mine] = worst
        try:
            yield
        finally:
            async with self.released:
                del self.reserved[mine]
                self.released.notify_all()


class Pace:
    """Spaces calls under ``judge_requests_per_minute``."""

    def __init__(self, per_minute: int) -> None:
        self.interval_s = 60.0 / per_minute if per_minute else 0.0
        self.next_slot = 0.0
        self.no_slack = False

    def start(self) -> None:
        """Begin, on the loop's thread."""
        self.turn = asyncio.Lock()

    async def wait(self) -> None:
        """Wait for this call's turn."""
        if not self.interval_s:
            return
        async with self.turn:
            slot = max(self.next_slot, time.monotonic())
            await asyncio.sleep(slot - time.monotonic())
            # an endpoint without slack counts from the call itself, which is a little late:
            # then the next must not be early
            self.next_slot = (time.monotonic() if self.no_slack else slot) + self.interval_s

    def yield_to_limit(self, retry_after_s: float | None) -> None:
        """After a 429 the paced calls fall into step with the endpoint's own count; at most a
        second, so that others go on.
        """
        if self.interval_s and retry_after_s is not None:
            self.no_slack = True
            self.next_slot = max(self.next_slot, time.monotonic() + min(1.0, retry_after_s))
