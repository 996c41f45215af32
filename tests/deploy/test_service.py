"""The decision service through HTTP: answers, refusals, back-pressure, metrics, graceful stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest
from bundles import instance, small_bundle
from fastapi.testclient import TestClient

from offload_jax import cli, deploy
from offload_jax.deploy.batching import Batcher, Busy
from offload_jax.deploy.metrics import ServiceMetrics
from offload_jax.deploy.service import Limits, make_app
from offload_jax.files.records import parse_instances


@pytest.fixture(scope="module")
def decider(tmp_path_factory) -> deploy.Decider:
    return deploy.load(small_bundle(tmp_path_factory).folder, "iree")


@pytest.fixture
def client(decider):
    with TestClient(make_app(decider, Limits(body_bytes=50_000, instances=3))) as client:
        yield client


def test_one_instance_gets_one_answer_and_many_get_many(client, decider) -> None:
    wanted = [vector["answers"]["greedy"]["assignment"] for vector in decider.bundle.vectors]
    answer = client.post("/plan", json=instance(decider.bundle)).json()
    assert answer["plan"]["assignment"] == wanted[0]
    assert answer["source"] == "policy"
    many = client.post("/plan", json=[instance(decider.bundle, i) for i in range(3)]).json()
    assert [answer["plan"]["assignment"] for answer in many] == wanted[:3]
    better = client.post("/plan?samples=3&seed=1", json=instance(decider.bundle)).json()
    assert better["plan"]["objective"] >= answer["plan"]["objective"]


@pytest.mark.parametrize(
    ("body", "status", "field", "text"),
    [
        (b"", 422, "body", "is not JSON"),
        (b"{", 422, "body", "is not JSON"),
        (b"[]", 422, "body", "must be 1..3"),
        (b" []", 422, "body", "must be 1..3"),
        (b"[" * 10_000, 422, "body", "nested too deeply"),
        (b"\xff", 422, "body", "not UTF-8"),
        (b"0" * 60_000, 413, None, "longer than 50000 bytes"),
        (b"[1, 2, 3, 4]", 422, "body", "holds 4 instances"),
        (b"\n[1, 2, 3, 4]", 422, "body", "holds 4 instances"),
        (b'{"format": 1}', 422, "body.format", "offload-jax/instance"),
    ],
)
def test_bad_bodies_are_refused(client, body, status, field, text) -> None:
    response = client.post("/plan", content=body)
    assert response.status_code == status
    assert response.json()["field"] == field
    assert text in response.json()["detail"]


def test_bad_fields_and_parameters_are_named(client, decider) -> None:
    bad = instance(decider.bundle)
    bad["users"][1]["demand"] = -1
    response = client.post("/plan", json=bad)
    assert response.status_code == 422
    assert response.json()["field"] == "body.users[1].demand"
    response = client.post("/plan?samples=99", json=instance(decider.bundle))
    assert response.status_code == 422
    assert "samples" in response.text


def test_the_page_of_metrics_counts(client, decider) -> None:
    strange = instance(decider.bundle) | {"bandwidth": 1.0}
    client.post("/plan", json=instance(decider.bundle))
    assert client.post("/plan", json=strange).json()["source"] == "fallback"
    client.post("/plan", content=b"{")
    page = client.get("/metrics").text
    for line in (
        'offload_jax_requests_total{status="200"} 2.0',
        'offload_jax_requests_total{status="422"} 1.0',
        'offload_jax_plans_total{source="policy"} 1.0',
        'offload_jax_plans_total{source="fallback"} 1.0',
        "offload_jax_out_of_range_total 1.0",
        "offload_jax_request_seconds_count 3.0",
        "offload_jax_price_count 2.0",
    ):
        assert line in page
    health = client.get("/healthz").json()
    assert health == {"status": "ok", "bundle": "mine", "runtime": "iree"}


def test_the_openapi_page_knows_requests_and_answers(client) -> None:
    described = client.get("/openapi.json").json()["paths"]["/plan"]["post"]
    one, many = described["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert one["properties"]["users"]["maxItems"] == 6
    assert many["items"] == one
    assert {"200", "413", "422", "503"} <= set(described["responses"])
    assert client.get("/docs").status_code == 200


def test_a_token_is_wanted_where_there_is_one(decider) -> None:
    with TestClient(make_app(decider, token="s3cret")) as client:
        body = instance(decider.bundle)
        assert client.post("/plan", json=body).status_code == 401
        wrong = {"Authorization": "Bearer other"}
        assert client.post("/plan", json=body, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/plan", json=body, headers=right).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_too_much_at_once_is_refused_and_the_rest_decided(decider) -> None:
    (record,) = parse_instances(instance(decider.bundle))

    async def rush() -> list:
        batcher = Batcher(decider, ServiceMetrics(), window_s=0.001, most_waiting=8)
        batcher.start()
        ask = deploy.Ask()
        work = [batcher.decide([record], [ask]) for _ in range(50)]
        found = await asyncio.gather(*work, return_exceptions=True)
        later = await batcher.decide([record], [ask])
        await batcher.stop()
        return [*found, later]

    found = asyncio.run(rush())
    refused = [x for x in found if isinstance(x, Busy)]
    answered = [x for x in found if isinstance(x, list)]
    assert refused
    assert len(answered) >= 9
    assert len(refused) + len(answered) == 51
    assert isinstance(found[-1], list)


def test_the_command_serves_until_it_is_told_to_stop(decider) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "offload_jax", "serve", str(decider.bundle.folder)]
    words += ["--port", str(port)]
    environment = {**os.environ, "OFFLOAD_JAX_TOKEN": ""}
    server = subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, text=True)
    assert server.stderr is not None
    try:
        assert json.loads(server.stderr.readline())["event"] == "ready"
        url, limit = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while time.monotonic() < limit:
            try:
                response = httpx2.post(f"{url}/plan", json=instance(decider.bundle))
                break
            except httpx2.ConnectError:
                time.sleep(0.1)
        assert response.json()["source"] == "policy"
    finally:
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=30)[1]
    assert server.returncode == 0
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"


def test_wrong_options_are_refused_before_anything_is_loaded(capsys) -> None:
    assert cli.main(["serve", "nowhere", "--port", "70000"]) == 1
    assert "port is 70000; must be in 0..65535" in capsys.readouterr().err
    assert cli.main(["serve", "nowhere"]) == 1
    assert "must be a folder or .zip that `offload-jax export` wrote" in capsys.readouterr().err
