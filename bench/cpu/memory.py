"""The peak memory of one call, in a fresh process: this module, run with a case on its standard input.

The peak is VmHWM of /proc/self/status. ru_maxrss of getrusage would be wrong: Linux hands a child the peak of the
process that started it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import sparsemoc as moc
from bench.cpu.cases import Case, Required, normal
from bench.machine import ROOT, status

#: Stream of the call before the baseline: it imports the backend and loads its kernels.
FIRST_TOKENS = 256


def in_fresh_process(case: Case, backend: str) -> dict[str, int]:
    """Return bytes: "arrays" (q, k, v, out), "baseline" before them, "peak" of the process, "above_baseline"."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.cpu.memory", backend],
        input=json.dumps(dataclasses.asdict(dataclasses.replace(case, sizes=()))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _measured(case: Case, backend: str) -> dict[str, int]:
    small = case.shrunk(FIRST_TOKENS, case.heads)
    q, k, v = normal(small, 3)
    moc.attention(q, k, v, small.spec(), backend=backend)
    baseline = status("VmRSS")
    q, k, v = normal(case, 3)
    out = moc.attention(q, k, v, case.spec(), backend=backend)
    peak = status("VmHWM")
    arrays = q.nbytes + k.nbytes + v.nbytes + out.nbytes
    return {"arrays": arrays, "baseline": baseline, "peak": peak, "above_baseline": peak - baseline}


if __name__ == "__main__":
    fields = json.load(sys.stdin)
    print(json.dumps(_measured(Case(**fields | {"sizes": (), "required": Required()}), sys.argv[1])))
