"""The table of backends, and the choice of one for a problem."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from sparsemoc.backends.protocol import Backend, Problem
from sparsemoc.spec.errors import UnsupportedError, describe, did_you_mean, one_of

#: Our own backends, best first: name -> module that holds BACKEND. Third parties add theirs by entry point.
BUILT_IN = {
    "numba": "sparsemoc.backends.numba",
    "triton": "sparsemoc.backends.triton.entry",
    "cupy": "sparsemoc.backends.cupy.entry",
    "reference": "sparsemoc.backends.reference",
}
#: Entry-point group; each entry is a name and "module:BACKEND".
GROUP = "sparsemoc.backends"


@cache
def _load(name: str) -> Backend | str:
    """Return a backend, or why it is absent."""
    try:
        if name in BUILT_IN:
            backend: Backend = import_module(BUILT_IN[name]).BACKEND
        else:
            (entry,) = entry_points(group=GROUP, name=name)
            backend = entry.load()
    except Exception as error:  # noqa: BLE001  a broken plug-in must not break the others: its reason is shown instead
        return f"{type(error).__name__}: {error}"
    if isinstance(backend, type) or not isinstance(backend, Backend):
        return f"its entry point gives {describe(backend)}, which is no Backend"
    return backend


@cache
def backend_names() -> tuple[str, ...]:
    """Return the names of all backends, ours first. Entry points are read once: it takes a millisecond."""
    return (*BUILT_IN, *sorted({entry.name for entry in entry_points(group=GROUP)} - set(BUILT_IN)))


def available_backends() -> dict[str, str | None]:
    """Return for each backend None if it can be used here, else why it is absent."""
    loaded = {name: _load(name) for name in backend_names()}
    return {name: backend if isinstance(backend, str) else None for name, backend in loaded.items()}


def get_backend(name: str, function: str = "get_backend") -> Backend:
    """Return a backend by name.

    Raises:
        UnsupportedError: no such backend, or it is absent here; the text says why, and starts with `function`.
    """
    names = backend_names()
    if name not in names:
        raise UnsupportedError(
            f'{function}: backend must be "auto", {one_of(names)}, got {describe(name)}.{did_you_mean(name, names)}'
        )
    backend = _load(name)
    if isinstance(backend, str):
        raise UnsupportedError(
            f'{function}: backend "{name}" is absent: {backend}. Hint: `sparsemoc doctor` shows all backends.'
        )
    return backend


def choose(problem: Problem, name: str | Backend, function: str = "choose") -> Backend:
    """Return the backend for a problem. A name is obeyed or refused; only "auto" chooses.

    Each backend is asked about `problem.shown_to(backend.capabilities)`, and is to be given just that. "auto" takes the
    first in the table that can, but one for which the arrays must be shown in a library other than their own and
    NumPy, which may have to be loaded first, only where no other can.

    Raises:
        UnsupportedError: the named backend, or with "auto" every backend, refuses; the text lists each reason, and
            starts with `function`.
    """
    if isinstance(name, Backend):
        return _obeyed(problem, name, function)
    if name != "auto":
        return _obeyed(problem, get_backend(name, function), function)
    reasons, by_another = {}, None
    for candidate in backend_names():
        backend = _load(candidate)
        reason = backend if isinstance(backend, str) else _refusal(problem, backend)
        if reason is not None:
            reasons[candidate] = reason
            continue
        assert not isinstance(backend, str)
        if problem.shown_to(backend.capabilities).framework in (problem.framework, "numpy"):
            return backend
        by_another = by_another or backend
    if by_another is not None:
        return by_another
    listed = "\n".join(f"  {candidate}: {reason}" for candidate, reason in reasons.items())
    raise UnsupportedError(f"{function}: no backend can run this problem ({problem}).\n{listed}")


def _refusal(problem: Problem, backend: Backend) -> str | None:
    return backend.refuses(problem.shown_to(backend.capabilities))


def _obeyed(problem: Problem, backend: Backend, function: str) -> Backend:
    reason = _refusal(problem, backend)
    if reason is not None:
        raise UnsupportedError(
            f'{function}: backend "{backend.name}" {reason} ({problem}). '
            'Hint: backend="auto" chooses one that can, if there is one.'
        )
    return backend
