"""Which denoising step runs, and whether it is dense: learnt from the pipeline's scheduler, or set by the user.

Calls of the transformer do not tell: guidance makes several for one step. The scheduler does: `set_timesteps` begins a
run, `step` ends a step. Nothing is read from a device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from sparsemoc.adapters.diffusers.layer import State
from sparsemoc.spec import checks
from sparsemoc.spec.errors import SpecError, describe

DenseSteps = int | Collection[int] | Callable[[int], bool]
#: The attribute of a watched scheduler that holds those who watch.
_WATCHERS = "_sparsemoc_watchers"


class Steps:
    """The denoising step of a run, 0 for the first one that runs; it sets `dense` of the state."""

    def __init__(self, state: State, dense_steps: DenseSteps | None, pipe: Any = None) -> None:
        self._state = state
        self._is_dense = _rule(dense_steps)
        #: None where nobody asks for the step, or there is no scheduler to tell it.
        self._pipe = pipe if dense_steps is not None and hasattr(pipe, "scheduler") else None
        self._scheduler: Any = None
        self._base: int | None = None
        self.step: int | None = None
        self._state.dense = None if self._is_dense else False
        if self._pipe is not None:
            self._watch(self._pipe.scheduler)

    def set(self, step: int) -> None:
        """Say which step runs next."""
        self.step = checks.whole(step, "handle.step", least=0, hint="It counts the denoising steps that run.")
        if self._is_dense:
            self._state.dense = bool(self._is_dense(self.step))

    def began(self) -> None:
        """A run begins."""
        self._base = None
        self.set(0)

    def ended(self, index: int | None) -> None:
        """A step ended; `index` is the scheduler's own number of the next one, where it has one.

        Some pipelines call the scheduler twice for a step and set its number back in between.
        """
        if index is None:
            self.set((self.step or 0) + 1)
            return
        if self._base is None:
            self._base = index - 1  # a run may begin in the middle of the schedule
        self.set(index - self._base)

    def follow(self) -> None:
        """Watch the scheduler that the pipeline has now: users replace it."""
        if self._pipe is None or self._pipe.scheduler is self._scheduler:
            return
        self.stop()
        self._watch(self._pipe.scheduler)
        self.began()

    def stop(self) -> None:
        """Watch no longer."""
        if self._scheduler is not None:
            unwatch(self._scheduler, self)
            self._scheduler = None

    def _watch(self, scheduler: Any) -> None:
        watch(scheduler, self)
        self._scheduler = scheduler

    def __deepcopy__(self, memo: dict[int, Any]) -> Steps:
        """A copied scheduler drives a loop of its own: nobody watches it."""
        return Steps(State(), None)


def watch(scheduler: Any, steps: Steps) -> None:
    """Tell `steps` of every run and step of a scheduler.

    The scheduler's class becomes a subclass of the same name: its copies, its config and its signatures stay as they
    were.
    """
    if _WATCHERS not in vars(scheduler):
        cls: Any = type(scheduler)
        scheduler.__class__ = _watched(cls)
        setattr(scheduler, _WATCHERS, [])
    getattr(scheduler, _WATCHERS).append(steps)


def unwatch(scheduler: Any, steps: Steps) -> None:
    """Tell `steps` no more; the last to go gives the scheduler its own class back."""
    watchers = getattr(scheduler, _WATCHERS)
    watchers.remove(steps)
    if not watchers:
        delattr(scheduler, _WATCHERS)
        scheduler.__class__ = type(scheduler).__mro__[1]


@functools.lru_cache
def _watched(cls: Any) -> Any:
    """Return a subclass that tells its watchers."""

    @functools.wraps(cls.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = cls.set_timesteps(self, *args, **kwargs)
        for watcher in getattr(self, _WATCHERS):
            watcher.began()
        return found

    @functools.wraps(cls.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = cls.step(self, *args, **kwargs)
        for watcher in getattr(self, _WATCHERS):
            watcher.ended(getattr(self, "step_index", None))
        return found

    body = {"set_timesteps": set_timesteps, "step": step, "__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), body)


def _rule(dense_steps: DenseSteps | None) -> Callable[[int], bool] | None:
    """Return what says of a step whether it is dense, or None where none is."""
    if dense_steps is None or callable(dense_steps):
        return dense_steps
    hint = "Hint: 3 for the first three, (0, 1, 49), or a function of the step."
    if isinstance(dense_steps, Collection) and not isinstance(dense_steps, (str, bytes)):
        chosen = {checks.whole(step, "enable: dense_steps", least=0, hint=hint) for step in dense_steps}
        return chosen.__contains__
    try:
        count = checks.whole(dense_steps, "enable: dense_steps", least=0, hint=hint)
    except SpecError:
        raise SpecError(
            "enable: dense_steps must be a number of steps, a collection of them, a function or None, "
            f"got {describe(dense_steps)}. {hint}"
        ) from None
    return lambda step: step < count
