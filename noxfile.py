"""Sessions: `nox` runs lint, types, tests, kernels, nvrtc and build; `nox -s <name> -- <arguments>` runs one."""

import tempfile
import zipfile
from pathlib import Path

import nox
from nox.project import dependency_groups, load_toml, python_versions

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "types", "tests", "kernels", "nvrtc", "build"]

ROOT = Path(__file__).parent
PYPROJECT = load_toml(ROOT / "pyproject.toml")
PYTHONS = python_versions(PYPROJECT)
#: The oldest Triton that is supported, and the newest.
OLDEST_TRITON, NEWEST_TRITON = "3.6.0", "3.9.0"
#: What works together on JAX arrays on a GPU, and the oldest Python that has it.
JAX_PYTHON, JAX, JAX_TRITON = "3.12", "0.11.2", "0.4.1"


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and the direction of imports."""
    session.install(*dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    session.install("-e", ".[testing]", *dependency_groups(PYPROJECT, "types"))
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the interpreter that runs nox; arguments go to pytest, `-n 0` for one process."""
    session.install(
        "-e", ".[demo,testing]",
        *dependency_groups(PYPROJECT, "test", "test-torch", "test-triton", "test-cupy", "test-adapters"),
    )  # fmt: skip
    # Two processes: most of the time goes to the kernels of GPUs, which take one core on the CPU.
    session.run("pytest", "-n", "2", "--dist", "worksteal", *session.posargs)


@nox.session(python=PYTHONS, default=False)
def tests_all(session: nox.Session) -> None:
    """Run the tests on every supported Python, without torch; an absent interpreter is skipped, and nox says so."""
    session.install("-e", ".[demo,testing]", *dependency_groups(PYPROJECT, "test"))
    session.run("pytest", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist, the wheel from the sdist, and try the wheel in a clean environment, away from the checkout."""
    session.install("build")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        session.run("python", "-m", "build", "--outdir", str(folder / "dist"))
        (wheel,) = (folder / "dist").glob("*.whl")
        if missing := _missing_packages(wheel):
            session.error(f"{wheel.name} lacks {', '.join(missing)}")
        session.run("python", "-m", "venv", str(folder / "clean"))
        scripts = folder / "clean" / "bin"
        session.run(str(scripts / "pip"), "install", "--quiet", str(wheel), external=True)
        session.chdir(folder)
        session.run(str(scripts / "python"), str(ROOT / "tests" / "smoke.py"), external=True)
        session.run(str(scripts / "sparsemoc"), "--version", external=True)
        session.run(str(scripts / "sparsemoc"), "doctor", external=True)


@nox.session
def kernels(session: nox.Session) -> None:
    """Compile the Triton kernels for every architecture, without a GPU; arguments go to `python -m bench.kernels`."""
    session.install("-e", ".", *dependency_groups(PYPROJECT, "test-torch"))
    # What the oldest lacks it lacks everywhere: one variant of each kernel, on one architecture, shows it.
    for version, few in ((OLDEST_TRITON, ["--few", "--arch", "90"]), (NEWEST_TRITON, [])):
        session.install(f"triton=={version}")
        session.run("python", "-m", "bench.kernels", *few, *session.posargs)


@nox.session
def nvrtc(session: nox.Session) -> None:
    """Compile the CUDA kernels for every architecture, without a GPU; arguments go to `python -m bench.nvrtc`."""
    session.install("-e", ".", *dependency_groups(PYPROJECT, "test-cupy"))
    session.run("python", "-m", "bench.nvrtc", *session.posargs)


@nox.session(python=JAX_PYTHON, default=False)
def jax_gpu(session: nox.Session) -> None:
    """Lower calls on JAX arrays through jax-triton, without a GPU; arguments go to `python -m bench.jax_lowering`."""
    session.install("-e", ".", f"triton=={NEWEST_TRITON}", f"jax=={JAX}", f"jax-triton=={JAX_TRITON}")
    # Without what it depends on, the CUDA libraries: kernels are lowered here, not run.
    session.install("--no-deps", f"jax-cuda13-plugin=={JAX}")
    session.run("python", "-m", "bench.jax_lowering", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Tune, measure and report; arguments go to `python -m bench.run`, and `--quick` ends within three minutes."""
    session.install("-e", ".[bench]")
    if "--quick" not in session.posargs:
        session.run("python", "-m", "bench.run", *session.posargs)
        session.run("python", "-m", "bench.report")
        return
    # Records of a trial do not mix with those of the machine.
    folder = ROOT / "sparsemoc-bench"
    records = folder / "records.jsonl"
    records.unlink(missing_ok=True)
    session.run("python", "-m", "bench.run", "--out", str(records), *session.posargs)
    session.run("python", "-m", "bench.crossover", "--quick", "--out", str(records))
    session.run("python", "-m", "bench.report", "--quick", "--out", str(folder), str(records))


@nox.session(default=False)
def micro(session: nox.Session) -> None:
    """Time each step by itself; arguments go to pytest: `--benchmark-compare` holds a run against the last saved."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "pytest", "bench/micro", *session.posargs)


@nox.session(default=False, venv_params=["--system-site-packages"])
def gpu(session: nox.Session) -> None:
    """Check and measure the GPU backend with the torch and Triton of the platform; arguments go to `bench.gpu`."""
    session.install("-e", ".[testing]")
    session.run("python", "-m", "bench.gpu", *session.posargs)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Route a real video clip; arguments go to `sparsemoc demo`."""
    session.install("-e", ".[demo]")
    session.run("sparsemoc", "demo", *(session.posargs or ("--out", "sparsemoc-demo")))


def _missing_packages(wheel: Path) -> list[str]:
    """Return the packages of pyproject.toml that the wheel holds no file of."""
    with zipfile.ZipFile(wheel) as archive:
        folders = {str(Path(entry).parent).replace("/", ".") for entry in archive.namelist()}
    return sorted(set(PYPROJECT["tool"]["setuptools"]["packages"]) - folders)
