"""Records for the tests of the report. Every figure is made up: round numbers that no machine gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]

MACHINE = {"device": "Fake CPU", "architecture": "fake", "cores": 2, "threads": 2, "driver": ""}
SIZES = {
    "tiny/short": (4096, 12, 12, 128, 64),
    "middle/long": (32760, 12, 12, 128, 1560),
    "large/hd": (75600, 4, 40, 128, 3600),
    "large/cut": (180000, 2, 24, 128, 1280),
}
#: contender: (kind, computes, its time in units of a forward of ours)
CONTENDERS = {
    "numba": ("backend", "moc", 1.0),
    "torch sdpa flash": ("peer", "dense", 4.0),
    "torch flex": ("peer", "moc", 2.0),
    "moba var-len": ("peer", "moc", 1.5),
}


def record(problem: str = "middle/long", contender: str = "numba", mode: str = "forward", **changed: Any) -> Record:
    tokens, heads, problem_heads, head_dim, chunk = SIZES.get(problem, (8192, 2, 2, 64, 128))
    kind, computes, factor = CONTENDERS[contender]
    tokens = changed.get("tokens", tokens)
    chunks = tokens // chunk
    pairs = heads * tokens * min(tokens, 4 * chunk)
    flops = (4 if mode == "forward" else 14) * pairs * head_dim
    seconds = flops / 1e11 * factor
    compared = {
        "contender": "torch sdpa flash",
        "speedup": {"median": 4 / factor, "p20": 3.8 / factor, "p80": 4.2 / factor},
    }
    made = {
        "schema": 2, "command": "python -m bench.run --problem all", "time": "2031-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef", "quick": False, "problem": problem, "about": "made up", "mode": mode,
        "tokens": tokens, "queries": tokens, "heads": heads, "problem_heads": problem_heads, "kv_heads": heads,
        "head_dim": head_dim, "v_head_dim": head_dim, "dtype": "float32", "batch": 1, "spec": {}, "spec_hash": "0" * 12,
        "chunk": chunk, "chunks": chunks, "top_k": 3, "pairs": pairs, "density": pairs / heads / tokens**2,
        "pair_ratio": heads * tokens**2 / pairs, "contender": contender, "kind": kind, "computes": computes,
        "requested": contender, "used": contender, "config": None,
        "config_source": {"forward": "cache"} if kind == "backend" else None,
        "seconds": {"median": seconds, "p20": 0.9 * seconds, "p80": 1.2 * seconds}, "rounds": 5,
        "routing": {"seconds": 0.04 * seconds, "share": 0.04} if kind == "backend" and mode == "forward" else None,
        "useful_flops": flops, "useful_bytes": 1, "tflops": flops / seconds / 1e12,
        "roofline": {"share": 0.5, "bound": "compute", "flops_per_s": 2e11, "bytes_per_s": 1e10, "how": "made up"},
        "dense": None if computes == "dense" else compared | {"share": 4 / factor / (tokens**2 * heads / pairs)},
        "memory": {"peak_extra_bytes": int(tokens * heads * 500 * factor), "how": "made up"},
        "refcheck": {"rows": 64, "routes": "equal", "out": {"error": 1e-6, "budget": 1e-4}},
        "machine": MACHINE, "versions": {"python": "3.11.0", "torch": "9.9"}, "reason": None,
    }  # fmt: skip
    return made | changed


def without_time(reason: str, **changed: Any) -> Record:
    nothing = dict.fromkeys(("seconds", "routing", "tflops", "roofline", "dense", "memory", "refcheck"))
    return record(**changed) | nothing | {"reason": reason}


def grid() -> Iterator[Record]:
    for tokens in (2048, 8192, 32768, 131072):
        for top_k in (1, 4, 16):
            for name in ("numba", "torch sdpa flash") if top_k == 1 else ("numba",):
                density = min(1.0, (top_k + 1) * 256 / tokens + 0.02)
                speedup = {"median": 0.7 / density**0.8, "p20": 0.6 / density**0.8, "p80": 0.8 / density**0.8}
                made = record(f"crossover/{tokens}/{top_k}", name, tokens=tokens, top_k=top_k, density=density,
                              pairs=2 * tokens**2 * density, pair_ratio=1 / density)  # fmt: skip
                base = 2e-9 * tokens**2
                base = base if name != "numba" else base / speedup["median"]
                made["seconds"] = {"median": base, "p20": 0.9 * base, "p80": 1.2 * base}
                if made["dense"]:
                    made["dense"] |= {"speedup": speedup}
                yield made


def growth() -> Iterator[Record]:
    for tokens in (4096, 16384, 65536):
        seconds = tokens * 1e-5
        dense = {"seconds": tokens**2 * 1e-8, "extrapolated_from": 16384 if tokens > 16384 else None}
        checks = [{"what": "growth", "value": 1.25, "required": 1.3, "met": True}]
        yield cpu("long", "growth", tokens, {"ours": times(seconds)}, checks) | {"dense": dense}


def times(seconds: float) -> dict[str, float]:
    return {"median": seconds, "p20": 0.9 * seconds, "p80": 1.1 * seconds}


def cpu(case: str, mode: str, tokens: int, seconds: Record, checks: list[Record]) -> Record:
    segments = [{"kind": "text", "tokens": 64}, {"kind": "video", "tokens": 2016}]
    return {
        "case": case, "mode": mode, "tokens": tokens, "heads": 2, "head_dim": 64, "dtype": "float32",
        "pairs": 99 * tokens,
        "spec": {"stream": {"segments": segments}, "chunks": {"size": 256}, "top_k": 2}, "pair_ratio": tokens / 99,
        "backend": "numba", "seconds": seconds, "cpu": "Fake CPU", "threads": 2, "versions": {"python": "3.11.0"},
        "time": "2031-01-02T03:04:05+00:00", "quick": False, "commit": None, "checks": checks,
    }  # fmt: skip


def everything() -> list[Record]:
    found = [
        record(problem, name, mode)
        for problem in SIZES
        for name in CONTENDERS
        for mode in ("forward", "forward+backward")
        if problem != "large/cut"
    ]
    found += [
        record("large/cut", "numba", dense=None),
        without_time("skipped: takes 9 h", problem="large/cut", contender="torch flex"),
    ]
    return [*found, *grid(), *growth()]
