"""Requests that arrive together are decided together; too many are refused at once.

As many threads compute as the runtime has use for. While they do, requests gather, so that load
makes larger batches rather than a longer queue; where the runtime takes several instances at once,
a request waits for `window_s` for others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from offload_jax.deploy.decide import Answer, Ask, Decider
from offload_jax.deploy.metrics import ServiceMetrics
from offload_jax.files.records import InstanceRecord


class Busy(Exception):
    """More instances wait than the service takes."""


@dataclass
class _Job:
    record: InstanceRecord
    ask: Ask
    answer: asyncio.Future[Answer]


class Batcher:
    """Decides instances in batches, in threads of its own; used from one event loop."""

    def __init__(
        self, decider: Decider, metrics: ServiceMetrics, window_s: float, most_waiting: int
    ) -> None:
        self._decider, self._metrics, self._window_s = decider, metrics, window_s
        self._most_waiting = most_waiting
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        threads = decider.runtime.threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decide")
        self._free = asyncio.Semaphore(threads)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begins to decide; called in the event loop."""
        self._begin(self._run())

    async def stop(self) -> None:
        """Decides what waits, then ends."""
        while self._jobs or len(self._tasks) > 1:
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._threads.shutdown)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # or it might be collected before it ends
        task.add_done_callback(self._tasks.discard)

    def check_room(self, count: int = 1) -> None:
        """Raises Busy where so many more instances would be too many."""
        if len(self._jobs) + count > self._most_waiting:
            raise Busy(f"{len(self._jobs)} instances wait; the service takes {self._most_waiting}")

    async def decide(self, records: Sequence[InstanceRecord], asks: Sequence[Ask]) -> list[Answer]:
        """The answers of one request. Raises Busy at once where too much waits already."""
        self.check_room(len(records))
        loop = asyncio.get_running_loop()
        jobs = [_Job(r, a, loop.create_future()) for r, a in zip(records, asks, strict=True)]
        self._jobs.extend(jobs)
        self._metrics.waiting.set(len(self._jobs))
        self._arrived.set()
        return list(await asyncio.gather(*(job.answer for job in jobs)))

    async def _run(self) -> None:
        most = self._decider.runtime.batches("greedy")[-1]
        while True:
            await self._arrived.wait()
            if len(self._jobs) < most:
                await asyncio.sleep(self._window_s)
            await self._free.acquire()
            jobs = [self._jobs.popleft() for _ in range(min(most, len(self._jobs)))]
            if not self._jobs:
                self._arrived.clear()
            self._metrics.waiting.set(len(self._jobs))
            self._begin(self._batch([job for job in jobs if not job.answer.cancelled()]))

    async def _batch(self, jobs: list[_Job]) -> None:
        if not jobs:
            self._free.release()
            return
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        records, asks = [job.record for job in jobs], [job.ask for job in jobs]
        try:
            decide = self._decider.decide_many
            answers = await loop.run_in_executor(self._threads, decide, records, asks)
        except Exception as error:  # a bug, or out of memory: this batch fails, the service goes on
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
            return
        finally:
            self._free.release()
        self._metrics.decided(answers, time.perf_counter() - start)
        for job, answer in zip(jobs, answers, strict=True):
            if not job.answer.done():
                job.answer.set_result(answer)
