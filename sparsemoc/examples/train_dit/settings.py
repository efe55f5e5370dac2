"""What a run is: sizes of clips, model and training. Two runs of equal settings see the same batches and noises."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemoc.spec.chunks import Chunks
from sparsemoc.spec.routing import RouteDropout, RoutingSpec
from sparsemoc.training import Schedule, Stage


@dataclass(frozen=True)
class Settings:
    """Sizes of a run.

    Args:
        seed: of weights, batches, noises and route dropout.
        steps: training steps of each model.
        batch: clips to a step.
        frames: latent frames to a shot; a clip has four shots.
        height, width: pixels of a frame, multiples of 8.
        layers, heads: of the model; a head has 32 channels.
        learning_rate: its highest; it rises over a twentieth of the steps and falls along a cosine.
        chunk_sizes: chunk size of each third of the training, or of as many equal parts as there are.
        top_k: routes per query.
        validate_every: steps between validations, monitor readings and checkpoints.
        sample_steps: Euler steps from noise to a sample.
    """

    seed: int = 0
    steps: int = 500
    batch: int = 1
    frames: int = 8
    height: int = 48
    width: int = 64
    layers: int = 3
    heads: int = 4
    learning_rate: float = 2e-3
    chunk_sizes: tuple[int, ...] = (192, 96, 48)
    top_k: int = 2
    validate_every: int = 25
    sample_steps: int = 24

    def schedule(self) -> Schedule:
        """Return the routing over the steps: own shot as anchor, chunks that shrink, routes to earlier chunks alone."""
        base = RoutingSpec(
            chunks=Chunks(self.chunk_sizes[-1], align="frame"),
            top_k=self.top_k,
            anchors=("shot",),
            causal="chunk",
            dropout=RouteDropout(off=0.5, into=0.5, into_max=2),
        )
        parts = len(self.chunk_sizes)
        stages = tuple(Stage(self.steps * part // parts, chunk_size=size) for part, size in enumerate(self.chunk_sizes))
        return Schedule(base, stages)

    @classmethod
    def quick(cls, seed: int = 0) -> Settings:
        """Return a run of a minute instead of several: a look at what the example does."""
        return cls(seed=seed, steps=60, frames=4, chunk_sizes=(96, 48), validate_every=10)
