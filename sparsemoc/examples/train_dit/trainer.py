"""Training of one model, dense or Mixture of Contexts: a step, a validation, and the state between two steps."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from sparsemoc.diffusers import enable
from sparsemoc.examples.train_dit import flow
from sparsemoc.examples.train_dit.footage import SHOTS, VALIDATION_SEED, Footage
from sparsemoc.examples.train_dit.settings import Settings
from sparsemoc.training import Monitor

#: What a log line holds: numbers by name.
Record = dict[str, Any]
#: Far apart, so that the batches of two seeds have nothing in common.
_SEED_STRIDE = 1_000_003


class Trainer:
    """One model in training.

    Weights, batches, noises and times depend on the settings and the step alone: dense and routed models see the same.
    Route dropout draws from torch's own generator, whose state goes into the checkpoint.

    Args:
        mode: "dense" or "moc".
        settings: of the run.
        footage: the clips.
        device: torch device.
    """

    def __init__(self, mode: str, settings: Settings, footage: Footage, device: Any) -> None:
        self.mode = mode
        self.settings = settings
        self.device = torch.device(device)
        self.schedule = settings.schedule()
        self.step = 0
        self.records: list[Record] = []
        self._footage = footage
        self.model = flow.make_model(settings).to(self.device).train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
        self._monitor = Monitor(every=settings.validate_every)
        self._handle: Any = None
        if mode == "moc":
            shots = tuple(range(0, SHOTS * settings.frames, settings.frames))
            self._handle = enable(self.model, self.schedule.spec(0), shots=shots)
        self.held_out = footage.validation().to(self.device)
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.noise = torch.randn(self.held_out.latents.shape, generator=generator).to(self.device)

    @property
    def done(self) -> bool:
        """Whether all steps are."""
        return self.step >= self.settings.steps

    @property
    def chunk_size(self) -> int | None:
        """Chunk size of the next step; None for the dense model."""
        return None if self._handle is None else self._handle.spec.chunks.size

    def train_step(self) -> Record:
        """Run one step, and return its record: loss, seconds, and every few steps validation and monitor."""
        settings, step = self.settings, self.step
        last = step == settings.steps - 1
        if step == 0:
            torch.manual_seed(settings.seed)  # route dropout is the same whatever was trained before
        clips, noise, t = self._batch(step)
        self._begin(step, last)
        start = self._clock()
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * _warm_cosine(step, settings.steps)
        self._optimizer.zero_grad()
        loss = flow.loss(self.model, clips, noise, t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        record: Record = {"step": step, "loss": loss.item(), "seconds": self._clock() - start}
        if self._handle is not None:
            record["chunk_size"] = self.chunk_size
            if self._handle.monitor is not None:
                record["monitor"] = self._monitor.summary().to_dict()
                self._monitor.reset()
                self._handle.monitor = None
        if self._monitor.due(step + 1) or step == 0 or last:
            record["validation"] = self.validate()
        self.step += 1
        self.records.append(record)
        return record

    def validate(self) -> float:
        """Return the loss on held-out clips with fixed noise: without route dropout, so twice the same."""
        found: float = flow.validation_loss(self.model, self.held_out, self.noise)
        return found

    def sample(self) -> Any:
        """Return the latents of samples whose scenes are those of the held-out clips."""
        return flow.sample(self.model, self.noise, self.held_out.condition, self.settings.sample_steps)

    def routing(self) -> Monitor:
        """Return a monitor that saw the held-out clips at the fixed times, without dropout."""
        monitor = Monitor()
        self._handle.monitor = monitor
        self.validate()
        self._handle.monitor = None
        return monitor

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        cuda = self.device.type == "cuda"
        return {
            "mode": self.mode,
            "step": self.step,
            "records": self.records,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step, self.records = state["step"], state["records"]
        if self._handle is not None:
            self._handle.set_spec(self.schedule.spec(max(0, self.step - 1)))

    def _batch(self, step: int) -> tuple[Any, Any, Any]:
        """Return the clips, noise and times of a step."""
        generator = torch.Generator().manual_seed(self.settings.seed * _SEED_STRIDE + step)
        clips = self._footage.training(generator)
        noise = torch.randn(clips.latents.shape, generator=generator)
        t = flow.shifted(torch.rand(len(noise), generator=generator))
        return clips.to(self.device), noise.to(self.device), t.to(self.device)

    def _begin(self, step: int, last: bool) -> None:
        """Take the routing of a step; the monitor reads every few steps, the first step of a stage and the last one."""
        if self._handle is None:
            return
        spec = self.schedule.spec(step)
        if spec is not self._handle.spec:
            self._handle.set_spec(spec)
        reading = self._monitor.due(step) or step == self.schedule.stage(step).step or last
        self._handle.monitor = self._monitor if reading else None

    def _clock(self) -> float:
        """Return the time, with the device's work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _warm_cosine(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: up over a twentieth of the steps, then down along a cosine."""
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
