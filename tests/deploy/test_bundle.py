"""Bundles: programs decide as the policy does, damage is refused, bad plans never leave."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import CONFIG, WANTED, instance, small_bundle, small_policy
from paths import ROOT

from benchmarks.systems.serving import spoil
from offload_jax import deploy
from offload_jax.deploy.physics import effect
from offload_jax.deploy.ports import OUTPUTS, draws
from offload_jax.deploy.verify import replay
from offload_jax.export.bundle import fewest_users, trained_ranges, write_bundle
from offload_jax.files.checks import BundleError, ConfigError, SchemaError
from offload_jax.files.records import parse_instances, parse_plan
from offload_jax.plans.plan import add_batch
from offload_jax.policy.decoding import greedy_plan
from offload_jax.policy.policy import Policy
from offload_jax.problem.instance import from_record
from offload_jax.runs.config_file import from_settings, load_config
from offload_jax.splits import solver_named


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small_policy()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> deploy.Bundle:
    return small_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def decider(bundle) -> deploy.Decider:
    return deploy.load(bundle.folder, "iree")


# ---- programs


@pytest.mark.parametrize("runtime", ["iree", "jax"])
@pytest.mark.parametrize("entry", deploy.ENTRIES)
def test_every_program_decides_as_what_was_exported(bundle, runtime, entry) -> None:
    opened = deploy.open_runtime(bundle, runtime)
    for batch in opened.batches(entry):
        found = replay(bundle, opened, entry, batch)
        assert found.count >= 30
        assert found.identical == found.count
        assert found.good
    few = copy.copy(bundle)
    vars(few)["vectors"] = bundle.vectors[:20]  # no multiple of 16
    found = replay(few, opened, entry, opened.batches(entry)[-1])
    assert found.count == found.identical == 20


def test_the_vectors_are_the_policys_own_plans(bundle, policy) -> None:
    vector = bundle.vectors[1]
    (record,) = parse_instances(vector["instance"])
    plan, _ = greedy_plan(policy, add_batch(from_record(record)))
    np.testing.assert_array_equal(vector["answers"]["greedy"]["assignment"], plan[:, 0])


def test_outputs_are_what_numpy_says(bundle) -> None:
    for vector in bundle.vectors[:8]:
        (record,) = parse_instances(vector["instance"])
        for entry in deploy.ENTRIES:
            said = {k: np.asarray(x) for k, x in vector["answers"][entry].items()}
            done = effect(record, said["assignment"], said["integer_split"])
            assert done.flaws == ()
            np.testing.assert_allclose(said["latency"], done.latency, rtol=1e-5)
            np.testing.assert_allclose(said["accuracy"], done.accuracy, atol=1e-6)
            np.testing.assert_allclose(said["integer_objective"], done.objective, rtol=1e-5)
            real = effect(record, said["assignment"], said["split"])
            np.testing.assert_allclose(said["objective"], real.objective, rtol=1e-5)


def test_a_policy_with_rules_of_its_own_is_refused(policy, tmp_path) -> None:
    ruled = policy.with_solver(solver_named("cvxpylayers-moreau"))
    with pytest.raises(ConfigError, match=r"splits.solver is cvxpylayers-moreau; must be native"):
        write_bundle(tmp_path / "b", ruled, CONFIG, {}, "", WANTED)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        write_bundle(tmp_path / "c", policy, CONFIG, {}, "", WANTED)
    with pytest.raises(ConfigError, match=r"sizes begins with 3; must be at least 4 for 2"):
        write_bundle(tmp_path / "d", policy, CONFIG, {}, "", replace(WANTED, sizes=(3, 6)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


@pytest.mark.fast
def test_the_smallest_size_there_may_be() -> None:
    assert fewest_users(load_config("smoke")) == 8
    assert fewest_users(load_config("edge")) == 2


def test_ranges_without_an_end_can_be_written() -> None:
    limits = {"kind": "paper"}, {"kind": "edge", "budget": float("inf")}
    for scenario in limits:
        ranges = trained_ranges(from_settings({"scenario": scenario}, "test"))
        assert ranges["budget"] == [None, None]
        json.dumps(ranges, allow_nan=False)
    assert ranges["load"][0] > 0


# ---- bundles


def test_a_changed_byte_anywhere_is_refused(bundle, tmp_path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "copy"
    shutil.copytree(bundle.folder, folder)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for at in {0, len(content) - 1, *rng.integers(0, len(content), 8).tolist()}:
            broken = bytearray(content)
            broken[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(broken)
            with pytest.raises(BundleError, match="not as it was written"):
                deploy.open_bundle(folder)
        file.write_bytes(content)
    deploy.open_bundle(folder)
    (folder / "added").write_text("x")
    with pytest.raises(BundleError, match="added was added"):
        deploy.open_bundle(folder)


def test_the_zip_is_the_folder_and_is_checked_as_well(bundle, tmp_path) -> None:
    archive = bundle.folder.with_name("mine.zip")
    zipped = deploy.open_bundle(archive)
    assert zipped.about == bundle.about
    content, rng = archive.read_bytes(), np.random.default_rng(0)
    broken, refused = tmp_path / "broken.zip", 0
    for at in rng.integers(0, len(content), 60):
        broken.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = deploy.open_bundle(broken)
        except BundleError:
            refused += 1
        else:  # a byte that means nothing, such as a date: every file is as it was
            assert found.about == bundle.about
    assert refused > 40
    broken.write_bytes(b"PK")
    with pytest.raises(BundleError, match=r"no readable .zip"):
        deploy.open_bundle(broken)
    with zipfile.ZipFile(broken, "w") as empty:
        empty.writestr("../escaped", "x")
    with pytest.raises(BundleError, match=r"holds no MANIFEST.json"):
        deploy.open_bundle(broken)
    assert not (tmp_path / "escaped").exists()


def test_what_is_no_bundle_or_runtime_is_said(bundle, tmp_path) -> None:
    with pytest.raises(BundleError, match=r"must be a folder or .zip"):
        deploy.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="must be one of iree, jax"):
        deploy.load(bundle.folder, "onnx")


# ---- decisions


def test_a_decision_is_the_policys_plan(bundle, decider) -> None:
    for i in range(6):
        answer = decider.decide(instance(bundle, i))
        assert answer.source == "policy"
        assert answer.notes == ()
        wanted = bundle.vectors[i]["answers"]["greedy"]
        np.testing.assert_array_equal(answer.plan.assignment, wanted["assignment"])
        np.testing.assert_array_equal(answer.plan.integer_split, wanted["integer_split"])
        assert parse_plan(answer.to_json()["plan"]).status == "feasible"


def test_samples_never_make_a_plan_worse_and_depend_on_the_seed_alone(bundle, decider) -> None:
    records = [parse_instances(instance(bundle, i))[0] for i in range(6)]
    plain = decider.decide_many(records)
    asks = [deploy.Ask(samples=3, seed=i) for i in range(6)]
    sampled = decider.decide_many(records, asks)
    for i, (one, more) in enumerate(zip(plain, sampled, strict=True)):
        assert more.plan.objective >= one.plan.objective
        alone = decider.decide(records[i], samples=3, seed=i)
        assert alone.plan.objective == more.plan.objective


@pytest.mark.fast
def test_draws_are_those_of_each_seed() -> None:
    one, other, same = draws([1, 2, 1], users=4, samples=3)
    np.testing.assert_array_equal(one, same)
    assert not np.any(one == other)


def test_a_batch_of_many_is_each_alone(bundle) -> None:
    decider = deploy.load(bundle.folder, "jax", warm=False)
    records = [parse_instances(instance(bundle, i))[0] for i in range(5)]
    together = decider.decide_many(records)
    for i, answer in enumerate(together):
        wanted = bundle.vectors[i]["answers"]["greedy"]
        np.testing.assert_array_equal(answer.plan.assignment, wanted["assignment"])


def test_outside_of_the_trained_ranges_greedy_decides(bundle, decider) -> None:
    strange = instance(bundle)
    strange["bandwidth"] = 1.0
    answer = decider.decide(strange)
    assert answer.source == "fallback"
    assert "bandwidth 1..1 lies outside the trained range" in answer.notes[0]
    few = instance(bundle)
    few["users"] = few["users"][:2]
    assert "users 2..2 lies outside the trained range" in decider.decide(few).notes[0]


class Wrong:
    """A runtime whose programs went bad: everybody in batch 1 with no step on the device."""

    name, threads = "wrong", 1

    def __init__(self, inner, entries) -> None:
        self.inner, self.entries = inner, entries
        self.batches = inner.batches

    def call(self, entry, users, arrays):
        outputs = self.inner.call(entry, users, arrays)
        if entry not in self.entries:
            return outputs
        bad = {"assignment": 1, "integer_split": 0}
        return [
            np.full_like(x, bad[port.name]) if port.name in bad else x
            for port, x in zip(OUTPUTS, outputs, strict=True)
        ]


def test_a_plan_that_breaks_a_constraint_never_leaves(bundle, decider) -> None:
    bad = deploy.Decider(bundle, Wrong(decider.runtime, {"greedy"}))
    answer = bad.decide(instance(bundle))
    assert (answer.source, answer.plan.status) == ("fallback", "feasible")
    assert "policy's plan: broken: split[0] is 0" in answer.notes[0]
    worse = deploy.Decider(bundle, Wrong(decider.runtime, set(deploy.ENTRIES)))
    answer = worse.decide(instance(bundle))
    assert (answer.source, answer.plan.status) == ("deny", "feasible")
    assert not answer.plan.assignment.any()
    sampled = deploy.Decider(bundle, Wrong(decider.runtime, {"best"}))
    assert sampled.decide(instance(bundle), samples=3).source == "policy"


def test_a_deadline_gets_the_best_plan_so_far(bundle, decider) -> None:
    (record,) = parse_instances(instance(bundle))
    past = deploy.Ask(deadline=time.monotonic() - 1)
    (answer,) = decider.decide_many([record], [past])
    assert (answer.source, answer.notes) == ("deny", ("the deadline has passed",))
    decider.decide(record, samples=3)  # from now on it is known how long that takes
    decider._last_s["best"] = 100.0
    hurried = decider.decide(record, samples=3, deadline_s=10.0)
    assert hurried.notes == ("no time for samples before the deadline",)
    assert hurried.source == "policy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth": float("nan")}, r"request.bandwidth: is NaN; must be a finite number > 0"),
        ({"servers": 3 * [{"budget": 1}]}, r"request.servers: has length 3; must be 2"),
        ({"users": []}, r"request.users: has length 0"),
        ({"wifi": 3}, "has the unknown key"),
    ],
)
def test_a_bad_request_is_refused_by_its_field(bundle, decider, change, message) -> None:
    with pytest.raises(SchemaError, match=message):
        decider.decide(instance(bundle) | change)


def test_more_users_than_the_bundle_takes_are_refused(bundle, decider) -> None:
    many = instance(bundle)
    many["users"] = many["users"] * 2
    with pytest.raises(SchemaError, match=r"users: has length \d+; must be at most 6"):
        decider.decide(many)


ALONE = """
    import sys
    class Without:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {banned}:
                raise ModuleNotFoundError(name, name=name)
    sys.meta_path.insert(0, Without())
    from offload_jax import deploy
    decider = deploy.load({folder!r}, {runtime!r})
    answer = decider.decide(decider.bundle.vectors[0]["instance"])
    wanted = decider.bundle.vectors[0]["answers"]["greedy"]["assignment"]
    assert answer.plan.assignment.tolist() == wanted, answer
"""
TRAINING = ("flax", "optax", "chex", "cvxpy", "cvxpylayers", "diffcp", "orbax", "wandb", "pydantic",
            "scipy", "matplotlib", "jaxtyping", "tyro", "rich", "yaml")  # fmt: skip


@pytest.mark.parametrize(("runtime", "more"), [("iree", ("jax", "jaxlib")), ("jax", ("iree",))])
def test_deciding_needs_numpy_and_one_runtime_alone(bundle, runtime, more) -> None:
    """`scipy` is JAX's own dependency, so only IREE has to do without."""
    banned = {*TRAINING, *more} - ({"scipy"} if runtime == "jax" else set())
    code = ALONE.format(banned=banned, folder=str(bundle.folder), runtime=runtime)
    words = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(words, check=True, timeout=120)


PAGE_ALONE = """
    import json, re, sys
    import numpy as np
    import iree.runtime as iree
    page, module = sys.argv[1:]
    lines = [json.loads(x) for x in open(page) if x.startswith('{"name"')]
    arrays = [np.array(x["values"], x["dtype"]) for x in lines]
    names = [x["name"] for x in lines]
    first = names.index("assignment")
    config = iree.Config("local-sync")
    content = open(module, "rb").read()
    vm = iree.VmModule.copy_buffer(config.vm_instance, content)
    outputs = iree.load_vm_module(vm, config).main(*arrays[:first])
    assert len(outputs) == len(arrays) - first
    for name, found, wanted in zip(names[first:], outputs, arrays[first:]):
        np.testing.assert_allclose(found.to_host(), wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    assert "jax" not in sys.modules and "offload_jax" not in sys.modules
    del outputs, vm, found
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_worked_instance_of_the_docs(tmp_path) -> None:
    """As a C++ engineer would: the page's numbers, the module, and nothing of this package."""
    out = tmp_path / "paper"
    words = ["export", "--policy", "paper", "--sizes", "8", "20", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "offload_jax", *words], check=True)
    page = ROOT / "docs" / "reference" / "bundle.md"
    script = [sys.executable, "-c", textwrap.dedent(PAGE_ALONE), str(page)]
    subprocess.run([*script, str(out / "greedy-1x8.vmfb")], check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_without_dependencies_decides(bundle, tmp_path) -> None:
    """In an environment with numpy and a runtime alone, of another Python where there is one."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("offload_jax-*.whl")
    for name, packages in (("iree", ["iree-base-runtime"]), ("jax", ["jax"])):
        home = tmp_path / name
        subprocess.run([other_python(), "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, "numpy", "flatbuffers", *packages], check=True)
        subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
        code = ALONE.format(banned={*()}, folder=str(bundle.folder), runtime=name)
        python = str(home / "bin" / "python")
        # Flags for this JAX are not flags of the newest, which ends at one that it does not know.
        plain = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        words = [python, "-c", textwrap.dedent(code)]
        subprocess.run(words, check=True, cwd=tmp_path, env=plain)


def other_python() -> str:
    """An interpreter of another supported version, or this one."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    homes = sorted(Path.home().glob(".pyenv/versions/3.1[1-4].*/bin/python"))
    for path in [*homes, *(Path(x) for v in (12, 13, 11) if (x := shutil.which(f"python3.{v}")))]:
        if not path.parts[-3].startswith(mine) and not path.name.endswith(mine):
            return str(path)
    return sys.executable


def test_spoilt_requests_are_refused_by_their_field_or_decided_soundly(bundle, decider) -> None:
    """The short version of `python -m benchmarks.systems.serving fuzz`."""
    rng, ends = random.Random(1), Counter()
    for i in range(400):
        broken = instance(bundle, i % 30)
        spoil(broken, rng)
        try:
            (record,) = decider.parse(json.dumps(broken))
        except SchemaError as error:
            ends["refused" if error.path.startswith("request") else "no field named"] += 1
            continue
        answer = decider.decide_many([record])[0]
        assert effect(record, answer.plan.assignment, answer.plan.integer_split).flaws == ()
        assert json.dumps(answer.to_json(), allow_nan=False)
        ends[answer.source] += 1
    assert ends["no field named"] == 0
    assert ends["refused"] > 200
    assert ends["fallback"] > 5
