"""How fast and how sound deployed decisions are.

`python -m benchmarks.systems.serving --out FILE.json`

The bundle is that of the shipped policy of edge, exported here (minutes) unless the environment
variable BUNDLE names one. Latencies and loads mean something on an otherwise idle machine only.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import parts
from benchmarks.common import Row
from offload_jax import cli, deploy
from offload_jax.deploy.physics import effect
from offload_jax.deploy.ports import packed
from offload_jax.deploy.runtimes import compiler_options
from offload_jax.files.checks import SchemaError
from offload_jax.files.records import InstanceRecord, instance_to_json
from offload_jax.plans.plan import Decision, to_plans
from offload_jax.policy.decoding import greedy_plan
from offload_jax.problem.instance import from_record, stack, taken, to_record
from offload_jax.runs import policy_folder

CALLS, AGREED, FUZZED, ENDURED = 10_000, 1_000, 100_000, 100_000
CLIENTS, LOAD_S = 16, 60.0


@cache
def bundle_path() -> str:
    if given := os.environ.get("BUNDLE"):
        return given
    path = Path(tempfile.mkdtemp(prefix="serving-")) / "edge"
    assert cli.main(["export", "--policy", "edge", "--sizes", "16", "24", "--out", str(path)]) == 0
    return str(path)


@cache
def records(users: int | None, count: int) -> list[InstanceRecord]:
    """Fresh instances of edge, all of them with that many users."""
    _, config = policy_folder.load("edge")
    scenario = config.scenario
    scenario = scenario if users is None else scenario.cells()[f"N{users}"]
    keys = jax.random.split(jax.random.key(99), count)
    drawn = jax.device_get(jax.vmap(scenario.sample, out_axes=-1)(keys))
    return [to_record(taken(drawn, i)) for i in range(count)]


def latency() -> Iterator[Row]:
    """One plan of 16 users after the other, splits included: the program alone, and `decide`.
    `first answer`: from the start of a new Python process. `again`: the same for a second start,
    with what JAX kept in its compilation cache.
    """
    some = records(16, 64)
    for name in deploy.RUNTIMES:
        decider = deploy.load(bundle_path(), name)
        inputs = [packed([record], 16) for record in some]

        def program(i: int, decider: Any = decider, inputs: Any = inputs) -> None:
            decider.runtime.call("greedy", 16, inputs[i % 64])

        def decide(i: int, decider: Any = decider) -> None:
            decider.decide_many([some[i % 64]])

        for what, call in (("program", program), ("decide", decide)):
            starts = _first_answers(name) if what == "decide" else (None, None)
            times = np.sort([_timed(call, i) for i in range(CALLS)])
            yield {
                "runtime": name,
                "call": what,
                "calls": CALLS,
                "p50 ms": float(np.median(times)) * 1e3,
                "p99 ms": float(times[int(0.99 * CALLS)]) * 1e3,
                "p99 over p50": float(times[int(0.99 * CALLS)] / np.median(times)),
                "first answer s": starts[0],
                "again s": starts[1],
            }


def generators() -> Iterator[Row]:
    """The jax program of one plan of 16 users by XLA's two code generators for CPUs, calls in turn:
    seconds to compile, ms a call. Bundles use the older one where this jax has it."""
    options = compiler_options()
    assert options is not None, "this version of jax has one code generator only"
    content = (deploy.open_bundle(bundle_path()).folder / "greedy.jax").read_bytes()
    inputs = packed(records(16, 1), 16)
    programs, seconds = {}, {}
    for name, chosen in (("newer", None), ("older", options)):
        program = jax.export.deserialize(bytearray(content)).call
        lowered = jax.jit(program, compiler_options=chosen).lower(*inputs)
        start = time.perf_counter()
        programs[name] = lowered.compile()
        seconds[name] = time.perf_counter() - start

    def call(i: int) -> None:
        jax.device_get(programs["older" if i % 2 else "newer"](*inputs))

    times = np.array([_timed(call, i) for i in range(2 * CALLS // 5)])
    for i, name in enumerate(programs):
        p50 = float(np.median(times[i::2])) * 1e3
        yield {"generator": name, "compile s": seconds[name], "p50 ms": p50}


def _timed(call: Callable[[int], None], i: int) -> float:
    start = time.perf_counter()
    call(i)
    return time.perf_counter() - start


def _first_answers(runtime: str) -> tuple[float, float]:
    """Of two starts, one after the other, with a compilation cache that begins empty."""
    with tempfile.TemporaryDirectory() as cache:
        return _first_answer(runtime, cache), _first_answer(runtime, cache)


def _first_answer(runtime: str, cache: str) -> float:
    code = (
        "import sys; from offload_jax import deploy\n"
        "d = deploy.load(sys.argv[1], sys.argv[2], warm=False)\n"
        "d.decide(d.bundle.vectors[0]['instance'])"
    )
    words = [sys.executable, "-c", code, bundle_path(), runtime]
    start = time.perf_counter()
    subprocess.run(words, check=True, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache})
    return time.perf_counter() - start


def agreement() -> Iterator[Row]:
    """Plans of each runtime compared with the policy's own (`eval.py`), on fresh instances.
    `farthest objective`: the largest difference among plans that differ, as a share.
    """
    some = records(None, AGREED)
    policy, _ = policy_folder.load("edge")
    batch = stack([from_record(record) for record in some])
    plans = to_plans(batch, Decision(greedy_plan(policy, batch)[0], 0.0), "policy")
    for name in deploy.RUNTIMES:
        decider = deploy.load(bundle_path(), name)
        same, farthest, by_policy = 0, 0.0, 0
        for record, plan in zip(some, plans, strict=True):
            answer = decider.decide_many([record])[0]
            by_policy += answer.source == "policy"
            keys = ("assignment", "integer_split")
            if all(np.array_equal(getattr(answer.plan, k), getattr(plan, k)) for k in keys):
                same += 1
            else:
                apart = abs(answer.plan.objective - plan.objective) / abs(plan.objective)
                farthest = max(farthest, apart)
        yield {
            "runtime": name,
            "instances": AGREED,
            "identical": same,
            "farthest objective": farthest,
            "by the policy": by_policy,
        }


# ---- the service


@contextmanager
def served(*words: str) -> Iterator[tuple[int, int]]:
    """A service in a process of its own: (port, process id)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "offload_jax", "serve", bundle_path(), "--port", str(port)]
    server = subprocess.Popen([*command, *words], stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port, server.pid
    finally:
        server.terminate()
        server.wait(30)


def _client(port: int, bodies: Sequence[bytes], until: float, most: int, out: Any) -> None:
    """Sends one request after the other on one connection; reports (status, seconds) of each.

    On a bare socket: http.client takes longer to read an answer than the service to write it.
    """
    requests = [
        b"POST /plan HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        for body in bodies
    ]
    stream, found = None, []
    for number in range(most):
        start = time.perf_counter()
        if time.monotonic() >= until:
            break
        try:
            stream = stream or _connected(port)
            stream.write(requests[number % len(requests)])
            stream.flush()
            status = _status(stream)
        except (OSError, ValueError, IndexError):
            stream, status = None, 0
        found.append((status, time.perf_counter() - start))
    out.extend(found)


def _connected(port: int) -> Any:
    return socket.create_connection(("127.0.0.1", port)).makefile("rwb", buffering=2**18)


def _status(stream: Any) -> int:
    """The status of the next answer, read to its end; ValueError or IndexError for no answer."""
    status, length = int(stream.readline().split(b" ")[1]), 0
    while (line := stream.readline()).strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if len(stream.read(length)) != length:
        raise ValueError("cut short")
    return status


def _clients(
    port: int, bodies: Sequence[bytes], count: int, seconds: float, most: int, out: Any
) -> None:
    """Clients in threads of one process, which leaves the service its own interpreter."""
    found: list[tuple[int, float]] = []
    start = time.monotonic()
    work = [
        threading.Thread(target=_client, args=(port, bodies, start + seconds, most, found))
        for _ in range(count)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    out.put((found, time.monotonic() - start))


def _load(
    port: int, bodies: Sequence[bytes], count: int, seconds: float, most: int = 10**9
) -> tuple[list[tuple[int, float]], float]:
    """What all clients saw, and the seconds it took."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    work = context.Process(target=_clients, args=(port, bodies, count, seconds, most, out))
    work.start()
    found: tuple[list[tuple[int, float]], float] = out.get()
    work.join()
    return found


def _bodies(together: int = 1) -> list[bytes]:
    """Requests of 16 users each; several of them in an array where `together` is above 1."""
    objects = [instance_to_json(record) for record in records(16, 64)]
    if together == 1:
        return [json.dumps(one).encode() for one in objects]
    return [json.dumps(objects[:together]).encode()]


def _row(found: Sequence[tuple[int, float]], seconds: float, plans: int = 1) -> Row:
    statuses = Counter(status for status, _ in found)
    good = np.sort([took for status, took in found if status == 200])
    return {
        "requests": len(found),
        "plans per s": statuses[200] * plans / seconds,
        "p50 ms": float(np.median(good)) * 1e3,
        "p99 ms": float(good[int(0.99 * len(good))]) * 1e3,
        "status 200": statuses[200],
        "status 503": statuses[503],
        "other": len(found) - statuses[200] - statuses[503],
    }


def load() -> Iterator[Row]:
    """`load`: 16 clients on loopback, one instance of 16 users a request. `too much`: 32 clients
    with 16 instances a request, far more than it carries. `afterwards`: the first load again.
    """
    with served() as (port, _):
        _load(port, _bodies(), CLIENTS, 2.0)
        for name, together, clients, seconds in (
            ("load", 1, CLIENTS, LOAD_S),
            ("too much", 16, 2 * CLIENTS, 20.0),
            ("afterwards", 1, CLIENTS, 10.0),
        ):
            found, took = _load(port, _bodies(together), clients, seconds)
            yield {"phase": name, "clients": clients, **_row(found, took, together)}


def memory() -> Iterator[Row]:
    """Resident memory of the service over 100,000 requests, bad ones among them."""
    good = _bodies()
    bodies = [body if i % 4 else b"{" + body for i, body in enumerate(good)]
    with served() as (port, pid):
        _load(port, bodies, CLIENTS, 600.0, 200)
        for _ in range(4):
            before = _resident(pid)
            found, took = _load(port, bodies, CLIENTS, 600.0, ENDURED // 4 // CLIENTS)
            counted = Counter(status for status, _ in found)
            yield {
                "requests": len(found),
                "answered": counted[200],
                "refused": counted[422],
                "other": len(found) - counted[200] - counted[422],
                "MB before": before,
                "MB after": _resident(pid),
                "requests per s": len(found) / took,
            }


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- bad input


def fuzz() -> Iterator[Row]:
    """Instances with something wrong in them. Each must be refused by its field, or decided
    soundly.
    """
    decider, rng = deploy.load(bundle_path()), random.Random(0)
    objects = [instance_to_json(record) for record in records(None, 64)]
    counted: Counter[str] = Counter()
    for _ in range(FUZZED):
        broken = copy.deepcopy(rng.choice(objects))
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            spoil(broken, rng)
        try:
            (record,) = decider.parse(json.dumps(broken))
        except SchemaError as error:
            counted["refused" if error.path.startswith("request") else "field not named"] += 1
            continue
        answer = decider.decide_many([record])[0]
        plan = answer.plan
        flaws = effect(record, plan.assignment, plan.integer_split).flaws
        counted["infeasible" if flaws else f"by {answer.source}"] += 1
    names = ("refused", "field not named", "by policy", "by fallback", "by deny", "infeasible")
    yield {"requests": FUZZED, **{name: counted[name] for name in names}}


HUGE = (0, -1, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf, 2**60, 10**400, 0.5, 1e9)
WRONG = (*HUGE, None, True, "1", "", [], {}, [[]], {"a": 1})


def spoil(document: Any, rng: random.Random) -> None:
    """Changes one place of a JSON document: a value, a key, a length or a depth."""
    node, path = document, []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.8):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(list(keys))
        path.append((node, key))
        node = node[key]
    if not path:
        return
    parent, key = path[-1]
    kind = rng.random()
    if kind < 0.55:
        parent[key] = copy.deepcopy(rng.choice(WRONG))
    elif kind < 0.7 and isinstance(parent[key], int | float) and abs(parent[key]) < 1e300:
        parent[key] = parent[key] * 10 ** rng.uniform(-6, 6)
    elif kind < 0.8:
        del parent[key]
    elif kind < 0.9 and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent[:1]) * rng.choice((1, 3, 50, 2000)))
    elif isinstance(parent, dict):
        parent[rng.choice(("extra", "", "format", key + "s"))] = rng.choice(WRONG)
    else:
        for _ in range(rng.choice((1, 50))):
            parent[key] = [parent[key]]


PARTS = {
    "latency": latency,
    "generators": generators,
    "agreement": agreement,
    "load": load,
    "memory": memory,
    "fuzz": fuzz,
}


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused, 130 stopped."""
    return parts.command(
        words, "benchmarks.systems.serving", "Measure deployed decisions; half an hour.", PARTS
    )


if __name__ == "__main__":
    sys.exit(main())
