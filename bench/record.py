"""Records of named problems and of the crossover grid: JSON lines of schema 2, one for each contender of a setting.

A setting is a problem, a dtype and a mode. What the fields hold:

- `schema`, `command`, `time`, `commit`, `quick`: where the record comes from; quick ones are of tiny sizes.
- `problem`, `about`, `mode`, `tokens` (keys), `queries`, `heads` (measured), `problem_heads` (of the model),
  `kv_heads`, `head_dim`, `v_head_dim`, `dtype`, `batch`, `spec`, `spec_hash` (see there).
- `chunk` (mean keys of a chunk), `chunks`, `top_k` (the largest), `pairs` (kept, of all measured heads; of a problem
  that was skipped whole, expected), `dense_pairs` (those of dense attention: all, or those with key <= query where the
  problem is token-causal), `density` (pairs over all pairs), `pair_ratio` (dense_pairs / pairs).
- `contender`, `kind` ("backend" or "peer"), `computes` ("moc": the kept pairs; "dense": the dense ones), `requested`,
  `used`, `config` and `config_source` by operation, `note`.
- `seconds` (median, p20, p80 of a call), `rounds`, `routing` (median seconds of pooling and routing, which the forward
  contains, and their share of it).
- `useful_flops`, `useful_bytes`, `tflops`, `roofline`: see `useful_flops`, `useful_bytes` and `bench.roofline`. Those
  of a dense contender count the dense pairs, and no routes.
- `dense`: the fastest dense contender of the same setting, dense seconds over ours of each round, and that over
  `pair_ratio`: 1 means that a kept pair costs what a dense pair costs it.
- `memory`, `refcheck`, `machine`, `versions`, and `reason`: why there is no time ("skipped: ...", "refused: ...",
  "failed: ...", "wrong: ...").
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.inputs import Mode
from sparsemoc.spec.plan import Plan
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.tuning.problems import NamedProblem

Record = dict[str, Any]

SCHEMA = 2
#: Bytes of a number.
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """What contenders are compared on.

    Attributes:
        problem: with the heads that are measured.
        problem_heads: of the model.
        plan: of the problem.
        dtype, mode: see `bench.inputs`.
        pairs: kept, of all measured heads.
        density: pairs over all pairs.
    """

    problem: NamedProblem
    problem_heads: int
    plan: Plan
    dtype: str
    mode: Mode
    pairs: int
    density: float

    @property
    def dense_pairs(self) -> int:
        """Pairs of dense attention of all measured heads."""
        return dense_pairs(self.problem)

    @property
    def pair_ratio(self) -> float:
        """How much faster than dense attention the kept pairs alone would make it."""
        return self.dense_pairs / self.pairs

    def flops(self, computes: str) -> int:
        """Return the useful operations of one call of a contender."""
        return useful_flops(self.problem, self.plan, self.mode, self.pairs if computes == "moc" else self.dense_pairs)

    def bytes(self, computes: str) -> int:
        """Return the useful bytes of one call of a contender."""
        return useful_bytes(self.problem, self.plan, self.mode, self.dtype, routed=computes == "moc")

    def fields(self) -> Record:
        """Return the fields that all contenders share."""
        one, top_k = self.problem, self.problem.spec.top_k
        return {
            "problem": one.name,
            "about": one.about,
            "mode": self.mode,
            "tokens": one.tokens,
            "queries": one.queries,
            "heads": one.heads,
            "problem_heads": self.problem_heads,
            "kv_heads": one.kv_heads,
            "head_dim": one.head_dim,
            "v_head_dim": one.v_head_dim,
            "dtype": self.dtype,
            "batch": 1,
            "spec": json.loads(one.spec.to_json()),
            "spec_hash": spec_hash(one.spec),
            "chunk": one.tokens / self.plan.chunks,
            "chunks": self.plan.chunks,
            "top_k": top_k if isinstance(top_k, int) else max(top_k),
            "pairs": self.pairs,
            "dense_pairs": self.dense_pairs,
            "density": self.density,
            "pair_ratio": self.pair_ratio,
        }


def spec_hash(spec: RoutingSpec) -> str:
    """Return a name for a spec, 12 hexadecimal digits: equal for equal specs, whatever the machine."""
    text = json.dumps(json.loads(spec.to_json()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def dense_pairs(problem: NamedProblem) -> int:
    """Return the pairs of dense attention of all heads: all, or those with key <= query where it is token-causal."""
    queries, tokens = problem.queries, problem.tokens
    beyond = queries * (queries - 1) // 2 if problem.token_causal else 0
    return problem.heads * (queries * tokens - beyond)


def useful_flops(problem: NamedProblem, plan: Plan, mode: Mode, pairs: int) -> int:
    """Return the operations that a call cannot do without.

    Forward and attend: 2 pairs (head_dim + v_head_dim), the two products of `Layout.flops`. With the backward 3.5 times
    as many: five more products, of which the scores are one anew. Route alone: an addition for each number of k, and
    2 head_dim for the score of each query with each chunk. Routing counts in no other mode.
    """
    if mode == "route":
        scores = 2 * problem.heads * problem.queries * plan.chunks * problem.head_dim
        return scores + problem.tokens * problem.kv_heads * problem.head_dim
    forward = 2 * pairs * (problem.head_dim + problem.v_head_dim)
    return forward * 7 // 2 if mode == "forward+backward" else forward


def useful_bytes(problem: NamedProblem, plan: Plan, mode: Mode, dtype: str, *, routed: bool) -> int:
    """Return the bytes that a call must at least move, each array once.

    Route: q, k and the routes, 4 bytes each. Forward and attend: q, k, v, out, and the routes. With the backward: q, k,
    v, out and the routes twice, d_out, dq, dk, dv, and lse, 4 bytes each, twice.
    """
    size = SIZES[dtype]
    q, k = (n * problem.head_dim * size for n in (problem.queries * problem.heads, problem.tokens * problem.kv_heads))
    out, v = (
        n * problem.v_head_dim * size for n in (problem.queries * problem.heads, problem.tokens * problem.kv_heads)
    )
    rows = problem.heads * problem.queries
    routes = 4 * rows * plan.slots if routed else 0
    if mode == "route":
        return q + k + routes
    forward = q + k + v + out + routes
    return 2 * forward + (out + q + k + v) + 2 * 4 * rows if mode == "forward+backward" else forward


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all records of a run share.

    Attributes:
        command: as it was called.
        commit: of the checkout.
        quick: whether sizes are tiny.
        machine: device, architecture, cores, threads, driver.
        versions: by library.
    """

    command: str
    commit: str | None
    quick: bool
    machine: Record
    versions: Record

    def fields(self) -> Record:
        """Return the fields, with the present time."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self.commit,
            "quick": self.quick,
            "machine": self.machine,
            "versions": self.versions,
        }


def default_out(folder: str, name: str) -> Path:
    """Return bench/results/<machine>/<folder>/<date>.jsonl, where `name` is the machine's."""
    return machine.ROOT / "bench" / "results" / name / folder / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"


def append(path: Path, record: Record) -> None:
    """Write a record as a line at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")
