"""The faults that the tests have to notice: 70 and more, none of them without effect.

Old texts are short, so that they outlive other changes of a function; see `mutation`.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.quality.mutation import Mutant


class Group(NamedTuple):
    """Mutants of a room that the same tests should notice: (function, old, new) by name."""

    room: str
    first: str
    faults: dict[str, tuple[str, str, str]]


EQUATIONS = Group(
    "problem",
    "tests/problem/test_equations.py",
    {
        "step-time-axis": ("step_time", "axis=1", "axis=0"),
        "step-time-intercept": ("step_time", "intercept + jnp", "jnp"),
        "transfer-alone": ("transfer_time", "payload * num_granted", "payload"),
        "accuracy-mirrored": ("problem.accuracy_loss", "(centre - split)", "(split - centre)"),
        "place-padded": ("place", " & instance.mask", ""),
        "place-denied": ("place", "assignment - 1, -1)", "assignment - 1, 0)"),
        "place-rate": ("place", "pick(batch, own) * instance.demand", "pick(batch, own)"),
        "denied-wait": ("user_latency", "instance.wait + instance.steps", "instance.steps"),
        "accuracy-padded": ("user_accuracy", "jnp.where(instance.mask, kept, 0)", "kept"),
        "amplitude-top": ("problem.amplitude", " / top", ""),
        "gain-transfer": ("user_gain", " - transfer", ""),
    },
)

GAPS = Group(
    "problem",
    "tests/evaluation/test_compare.py",
    {"gap-sign": ("gap", "(best_gain - gain)", "(gain - best_gain)")},
)

SPLITS = Group(
    "splits",
    "tests/splits/test_splits.py",
    {
        "use-of-own-steps-in-problem": ("splits.server_use", "problem.steps - split", "split"),
        "residual-negative-price": (
            "kkt_residual",
            "jnp.maximum(jnp.maximum(excess, slack), -price)",
            "jnp.maximum(excess, slack)",
        ),
        "valid-rate": ("is_valid", "(problem.rate >= 0) & ", ""),
        "valid-centre": ("is_valid", "(problem.centre <= problem.lower) & ", ""),
        "invalid-split": (
            "with_status",
            "split=jnp.where(valid, split, jnp.nan)",
            "split=split",
        ),
        "logit-square": ("_logit", " ** 2 /", " /"),
        "neutral-bound": ("neutral", "fill(problem.lower, problem.steps)", "problem.lower"),
        "reply-price": ("_best_reply", "rows.share - price", "rows.share + price"),
    },
)

DERIVATIVES = Group(
    "splits",
    "tests/splits/test_split_gradients.py",
    {
        "tangent-weight": ("_implicit_tangent", "d.weight * p.rate + weight", "weight"),
        "tangent-price": ("_implicit_tangent", "dsplit = base + soft", "dsplit = base - soft"),
        "tangent-bounds": ("_implicit_tangent", "d.lower, d.steps)", "d.steps, d.lower)"),
        "push-curve": ("_push", "(1 - 2 * sig)", "(1 + 2 * sig)"),
        "push-centre": ("_push", "- p.slope * d.centre", "+ p.slope * d.centre"),
    },
)

RULES = Group(
    "splits",
    "tests/splits/test_rules.py",
    {
        "infeasible": ("_judged", "(answer.solved, status", "(valid, status"),
        "rule-reversed": ("sides", "return right, left", "return left, right"),
        "rule-padded": ("Rules.violations", "jnp.where(facts[MASK], missed, 0)", "missed"),
        "rule-boolean": (
            "_Checker.visit_Constant",
            "type(node.value) not in (int, float)",
            "not isinstance(node.value, int | float)",
        ),
    },
)

CONIC = Group(
    "splits",
    "tests/splits/test_sqp.py",
    {"program-bound": ("program_at", "(p.steps - at) / unit", "p.steps / unit")},
)

GAINS = Group(
    "plans",
    "tests/plans/test_gains.py",
    {
        "reduced-room": ("reduced_gains", "placed.load + instance.demand[:, None]", "placed.load"),
        "congestion-own": (
            "move_gains",
            "jnp.sum(weighed, axis=0) - weighed",
            "jnp.sum(weighed, 0)",
        ),
        "reply-newcomer": ("reply_gains", "num_granted + 1", "num_granted"),
        "reply-unpaid": ("reply_gains", "saving - batch_price * rate", "saving"),
        "reply-own-load": ("reply_gains", "- step_time - rate", "- step_time"),
        "pair-lower": ("pair_problem", "instance.split_min[:, None]", "0"),
        "exact-padded": ("exact_gains", "instance.mask & ~placed", "~placed"),
    },
)

OUTCOMES = Group(
    "plans",
    "tests/problem/test_equations.py",
    {
        "problem-lower": ("split_rows", "jnp.maximum(split_min, curve.centre)", "curve.centre"),
        "room-slack": ("room", "instance.capacity + slack", "instance.capacity - slack"),
        "feasible-somewhere": ("plans.evaluate", "jnp.all(fits(", "jnp.any(fits("),
        "assignment-of-floats": ("plans._checked", "jnp.integer)", "jnp.number)"),
        "assignment-one-more": ("plans._checked", "high > instance", "high - 1 > instance"),
    },
)

ROUNDING = Group(
    "plans",
    "tests/plans/test_rounding.py",
    {
        "round-below": ("round_splits", "(n - 1 >= problem.lower)", "(n >= problem.lower)"),
        "round-budget": ("round_splits", " & fits(n)", ""),
        "round-down": ("round_splits", "jnp.ceil(split - SNAP)", "jnp.floor(split - SNAP)"),
        "round-merit": ("round_splits", "rise / jnp.maximum(", "rise * jnp.maximum("),
        "round-bound": ("round_splits", "jnp.maximum(up, jnp.ceil(problem.lower))", "up"),
        "round-value": ("_row_value", "problem.saving * split", "problem.saving"),
    },
)

RULED = Group(
    "plans",
    "tests/splits/test_rules.py",
    {
        "terms-of-denied": ("plans.gain", " - _worth_denied(instance, rules)", ""),
        "mend-budget": ("mend", " & (around.over(n) <= ALLOWED)", ""),
    },
)

ENV = Group(
    "env",
    "tests/env/test_step.py",
    {
        "pairs-demand": ("open_pairs", " + instance.demand[:, None]", ""),
        "pairs-stopped": ("open_pairs", " & ~state.stopped", ""),
        "current-padded": ("is_current", " & instance.mask", ""),
        "reward-early": ("env.reward", "== instance.num_users", "== instance.num_users - 1"),
        "release-padded": ("release", "released & instance.mask", "released"),
        "turns-reversed": ("_turns", "-worth, jnp.inf)", "worth, jnp.inf)"),
        "choice-batch": ("_adaptive_choice", "action % batches + 1", "action % batches"),
    },
)

SIGHT = Group(
    "env",
    "tests/env/test_observation.py",
    {
        "unit-padded": (
            "local_time",
            "jnp.where(instance.mask, instance.local_step, 0)",
            "instance.local_step",
        ),
        "best-other-self": ("_best_other", "jnp.where(largest, -jnp.inf, x)", "x"),
    },
)

ALGORITHMS = Group(
    "learning",
    "tests/learning/test_algorithms.py",
    {
        "leave-one-out-scale": ("leave_one_out", "(samples - 1)", "samples"),
        "gae-shift": ("generalized_advantage", "values[1:]", "values[:-1]"),
        "forced-reward": ("forced_values", "reward + following", "following"),
        "clip-wider": ("clipped_surrogate", "1 + clip", "1 + 2 * clip"),
        "preference-reversed": (
            "preference",
            "log_probs[best] - log_probs",
            "log_probs - log_probs[best]",
        ),
        "preference-itself": ("preference", "returns[best] - same", "returns[best] + same"),
        "entropy-gradient": (
            "entropy",
            "jnp.where(legal, jax.nn.log_softmax(logits), 0)",
            "jax.nn.log_softmax(logits)",
        ),
    },
)

LAYER = Group(
    "learning",
    "tests/learning/test_layer_loss.py",
    {
        "stop-taught": (
            "soft_assignment",
            "jax.lax.stop_gradient(first[..., -1:, None])",
            "first[..., -1:, None]",
        ),
    },
)

SOFT = Group(
    "learning",
    "tests/learning/test_soft_value.py",
    {
        "soft-others": (
            "_others",
            "jnp.sum(granted, axis=0) - granted",
            "jnp.sum(granted, axis=0)",
        ),
        "soft-own": ("_saving", " + times + own", " + times"),
    },
)

DISK = Group(
    "files",
    "tests/files/test_disk.py",
    {
        "check-content": (
            "files.check",
            "_digest(folder / name, sync=False) != files[name]",
            "not files[name]",
        ),
        "check-added": ("files.check", "files.keys() | set(_names(folder))", "files.keys()"),
        "check-format": ("files.check", "version != FORMAT", "version < FORMAT"),
        "check-manifest": ("files.check", ".encode() == content", ".encode() != b''"),
        "replace-link": ("replace_file", "os.path.realpath(path)", "os.fspath(path)"),
        "staged-left": ("staged", "shutil.rmtree(new, ignore_errors=True)", "pass"),
    },
)

CHECKPOINTS = Group(
    "runs",
    "tests/runs/test_checkpoint.py",
    {
        "best-of-equal": (
            "runs.best",
            "min(reversed(judged or good[-1:])",
            "min((judged or good[-1:])",
        ),
        "arrays-of-any-shape": (
            "_refuse_other_arrays",
            "theirs.get(name) != mine.get(name)",
            "name not in theirs",
        ),
        "order-of-steps": ("examine", "int(path.name))", "path.name)"),
        "saved-twice": ("Checkpoints.save", ".step >= step", ".step > step"),
        "about-shared": ("Checkpoints.save", "copy.deepcopy(about)", "about"),
        "best-removed": ("Checkpoints._retire", ", best(self.good)]", "]"),
    },
)

PHYSICS = Group(
    "deploy",
    "tests/deploy/test_physics.py",
    {
        "assignment-negative": ("deploy.effect", "(assignment < 0) | ", ""),
        "air-of-denied": ("deploy.effect", "granted * air", "air"),
        "split-above": ("_flaws", " | (split > record.steps)", ""),
        "over-capacity": ("_flaws", "record.capacity * (1 + 1e-6)", "record.capacity + 1"),
        "over-budget": ("_flaws", "SLACK * np.maximum", "np.maximum"),
    },
)

DEPLOY = Group(
    "deploy",
    "tests/deploy/test_bundle.py",
    {
        "strange-high": ("Decider._strange", " or high > most", ""),
        "users-off-by-one": (
            "Decider._check_sizes",
            "> self.bundle.sizes[-1]",
            ">= self.bundle.sizes[-1]",
        ),
        "samples-worse": ("Decider._by_policy", "max(answers[i], answer, key=_worth)", "answer"),
        "bundle-unchecked": ("deploy._checked", "disk.check(folder)", "folder.stat()"),
        "draws-unseeded": ("draws", "default_rng(seed)", "default_rng(0)"),
    },
)

GROUPS = (
    *(EQUATIONS, GAPS, SPLITS, DERIVATIVES, RULES, CONIC, GAINS, OUTCOMES, ROUNDING, RULED),
    *(ENV, SIGHT, ALGORITHMS, LAYER, SOFT, DISK, CHECKPOINTS, PHYSICS, DEPLOY),
)
MUTANTS = tuple(
    Mutant(name, *fault, group.room, group.first)
    for group in GROUPS
    for name, fault in group.faults.items()
)
