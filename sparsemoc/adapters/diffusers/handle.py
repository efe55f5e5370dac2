"""`enable` puts Mixture of Contexts into a model of diffusers; the handle it returns changes it and takes it out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sparsemoc.adapters.diffusers import bridge
from sparsemoc.adapters.diffusers.choice import Choice
from sparsemoc.adapters.diffusers.family import Family
from sparsemoc.adapters.diffusers.layer import State
from sparsemoc.adapters.diffusers.routed import Routed
from sparsemoc.adapters.diffusers.steps import DenseSteps, Steps
from sparsemoc.adapters.diffusers.streams import Shots
from sparsemoc.adapters.diffusers.target import transformers_of
from sparsemoc.backends import Backend, Options
from sparsemoc.call import checked_options
from sparsemoc.spec.errors import SpecError, describe
from sparsemoc.spec.routing import RoutingSpec
from sparsemoc.spec.stream import Stream


def enable(
    target: Any,
    spec: RoutingSpec,
    *,
    dense_steps: DenseSteps | None = None,
    dense_layers: int | Collection[int | str] | None = None,
    per_layer: Mapping[int | str, RoutingSpec | None] | None = None,
    shots: Sequence[int] | None = None,
    captions: Sequence[int] | None = None,
    family: Family | None = None,
    monitor: Any = None,
    backend: str | Backend = "auto",
    options: Options | None = None,
) -> Handle:
    """Put Mixture of Contexts into the self-attention or joint attention of a video diffusion transformer.

    The stream is built at every pass from the model's own latent grid and text length: Wan, LTX-Video and Cosmos hold
    video alone; HunyuanVideo (also 1.5) and Mochi video, then text; CogVideoX text, then video. Text padding becomes
    `key_lengths`. Cross-attention and token refiners stay as they are. Training, gradient checkpointing, adapters and
    torch.compile work as without it; route dropout is applied while the model trains, and draws from torch's generator.
    A transformer that takes the place of another in the pipeline is dense: enable it anew.
    A model of video alone may be split over devices before, with ContextParallelConfig(ulysses_degree=...).

    Args:
        target: a pipeline, whose transformers are all routed, or a transformer.
        spec: the routing, without a stream.
        dense_steps: denoising steps that stay dense: the first n, a collection of numbers, or a function of the
            number. A pipeline's scheduler tells the step, guidance or not; in a loop of your own set `handle.step`.
        dense_layers: layers that stay dense: the first n, or a collection of numbers or module names; where a
            pipeline has two transformers, of each.
        per_layer: number or name of a layer to the spec of its own, or to None for dense; of each transformer alike.
        shots: first latent frame of each shot, from 0, after patching in time. None: one video segment.
        captions: with shots, the text tokens of the prompt and of each shot's caption; text beyond is global.
        family: how the model is built, where its class is not known.
        monitor: has `record(layer_name, layout)`, which each routed layer calls.
        backend: as for `attention`.
        options: as for `attention`; with Options(checked=True) text masks are read and must be prefixes.

    Returns:
        The handle. `handle.remove()`, or leaving `with enable(...)`, restores the dense model bit for bit.

    Raises:
        SpecError: an argument breaks a rule.
        UnsupportedError: a model class that is not known, a model that is enabled already, or split over
            devices in a way that routes cannot follow.
        ShapeError: at a pass, where grid, text and tokens do not fit together.

    Example:
        >>> handle = enable(pipe, RoutingSpec(top_k=5), dense_steps=4, dense_layers=1)
        >>> frames = pipe("a cat").frames
        >>> handle.remove()
    """
    bridge.check_version()
    choice = Choice(dense_layers, per_layer)
    choice.checked(spec, "spec")
    state = State(
        shots=Shots(shots, captions),
        monitor=checked_monitor(monitor),
        backend=backend,
        options=checked_options("enable", options),
    )
    models = transformers_of(target, family)
    pipe = target if hasattr(target, "components") else None
    routed: list[Routed] = []
    try:
        for name, (model, its_family) in models.items():
            routed.append(Routed(model, its_family, state, prefix=f"{name}." if len(models) > 1 else ""))
        handle = Handle(routed, choice, state, Steps(state, dense_steps, pipe))
        handle.set_spec(spec)
    except Exception:
        for one in routed:
            one.remove()
        raise
    return handle


class Handle:
    """A model, or the transformers of a pipeline, with Mixture of Contexts in it. Made by `enable`."""

    def __init__(self, routed: Sequence[Routed], choice: Choice, state: State, steps: Steps) -> None:
        self._routed = tuple(routed)
        self._choice = choice
        self._state = state
        self._steps = steps
        self._spec: RoutingSpec | None = None
        for one in self._routed:
            one.follow = steps.follow

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the routed layers, dense ones too, in the order of the model."""
        return tuple(layer.name for one in self._routed for layer in one.layers)

    @property
    def spec(self) -> RoutingSpec | None:
        """The common spec."""
        return self._spec

    def set_spec(self, spec: RoutingSpec) -> None:
        """Take another common spec from the next pass on; dense layers and those with a spec of their own keep it.

        Raises:
            SpecError: no RoutingSpec, one with a stream, or layers that the model does not have.
        """
        for one in self._routed:
            specs = self._choice.specs([layer.module_name for layer in one.layers], spec)
            for layer, chosen in zip(one.layers, specs, strict=True):
                layer.spec = chosen
        self._spec = spec

    def specs(self) -> dict[str, RoutingSpec | None]:
        """Return the spec of each layer by name, None for dense."""
        return {layer.name: layer.spec for one in self._routed for layer in one.layers}

    @property
    def stream(self) -> Stream | None:
        """The stream of the last pass, or None before the first."""
        return self._state.stream

    @property
    def step(self) -> int | None:
        """The denoising step of the next pass, 0 for the first that runs; None before it is known.

        A pipeline's scheduler sets it. Set it in a loop of your own.
        """
        return self._steps.step

    @step.setter
    def step(self, step: int) -> None:
        self._steps.set(step)

    @property
    def shots(self) -> Sequence[int] | None:
        """First latent frame of each shot; captions go when it is set."""
        return self._state.shots.starts

    @shots.setter
    def shots(self, starts: Sequence[int] | None) -> None:
        self._state.shots = Shots(starts)

    def set_shots(self, shots: Sequence[int] | None, captions: Sequence[int] | None = None) -> None:
        """Say where shots begin and how the text is divided among them, from the next pass on; see `enable`."""
        self._state.shots = Shots(shots, captions)

    @property
    def monitor(self) -> Any:
        """What records the layouts: it has `record(layer_name, layout)`. None records nothing.

        It is called from Python: a model compiled with fullgraph=True needs `torch.compiler.set_stance("force_eager")`
        around the passes that are recorded.
        """
        return self._state.monitor

    @monitor.setter
    def monitor(self, monitor: Any) -> None:
        self._state.monitor = checked_monitor(monitor)

    def remove(self) -> None:
        """Restore the dense model bit for bit, and take every hook out. Once more does nothing."""
        self._steps.stop()
        for one in self._routed:
            one.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def checked_monitor(monitor: Any) -> Any:
    """Return a monitor, or None."""
    if monitor is not None and not callable(getattr(monitor, "record", None)):
        raise SpecError(
            f"enable: monitor must have record(layer_name, layout), got {describe(monitor)}. "
            "Hint: sparsemoc.training.Monitor()."
        )
    return monitor
