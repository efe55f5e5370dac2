"""The outer router: which past shots a new shot gets to see at all, chosen once, before any attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemoc.spec import checks
from sparsemoc.spec.errors import ShapeError, SpecError, describe, did_you_mean
from sparsemoc.training.tensors import torch_of

_WORDS = ("first", "previous")


@dataclass(frozen=True)
class OuterRouter:
    """Keeps the past shots that match a new shot best: s_j = <x, f_j>, x its mean feature and f_j that of shot j.

    Shots that are always kept come on top of the `top_m`, as anchors come on top of the routes of a query. Ties go to
    the lower shot; a NaN score ranks first: a NaN is never hidden.

    Args:
        top_m: shots to choose by score.
        always: shots that are kept whatever their score: "first", "previous", or shot numbers. One that is not yet
            past is not kept.
        score: "dot", or "cosine", which divides by the lengths of both features; a feature of length 0 scores 0.

    Raises:
        SpecError: a negative top_m, another word.

    Source: arXiv 2508.21058, appendix I.
    """

    top_m: int
    always: tuple[str | int, ...] = ()
    score: str = "dot"

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_m", checks.whole(self.top_m, "OuterRouter: top_m", least=0))
        if not checks.is_items(self.always):
            raise SpecError(
                f"OuterRouter: always must be a tuple, got {describe(self.always)}. "
                'Hint: always=("previous",), or () for none.'
            )
        object.__setattr__(self, "always", tuple(_always(item) for item in self.always))
        checks.word(self.score, "OuterRouter: score", ("dot", "cosine"))

    def choose(self, features: Any, query: Any, *, shot: int | None = None) -> Any:
        """Return the shots that a new shot keeps.

        Args:
            features: (batch, shots, dim) or (shots, dim), NumPy or torch, any float dtype: the mean feature of each
                shot, as `shot_features` gives it.
            query: (batch, dim) or (dim,): that of the new shot, such as its caption's or its first frame's.
            shot: number of the new shot; only shots before it are kept. By default all of `features` are past.

        Returns:
            Their numbers, int64 (batch, kept) or (kept,), ascending, in the library and on the device of `features`;
            kept = always-kept ones + min(top_m, the other past ones).

        Raises:
            ShapeError: other ranks or shapes, or arrays of two libraries.
            SpecError: a `shot` beyond the shots there are.
        """
        torch = torch_of(features)
        if torch_of(query) is not torch:
            raise ShapeError(
                "OuterRouter.choose: features and query must be of one library, got "
                f"{type(features).__name__} and {type(query).__name__}."
            )
        _check_shapes(features, query)
        total = int(features.shape[-2])
        past = total if shot is None else checks.whole(shot, "OuterRouter.choose: shot", least=0, most=total)
        always = sorted({n for n in map(self._number(past), self.always) if 0 <= n < past})
        others = [n for n in range(past) if n not in always]
        scores = (_torch_scores if torch else _numpy_scores)(features, query, self.score == "cosine")
        return (_torch_choice if torch else _numpy_choice)(scores, always, others, self.top_m)

    def _number(self, past: int) -> Any:
        words = {"first": 0, "previous": past - 1}
        return lambda item: words[item] if isinstance(item, str) else item


def _always(item: object) -> str | int:
    if isinstance(item, str):
        if item in _WORDS:
            return item
        raise SpecError(
            f'OuterRouter: always must hold "first", "previous" or shot numbers, got {describe(item)}.'
            f"{did_you_mean(item, _WORDS)}"
        )
    return checks.whole(item, "OuterRouter: always", least=0, hint='Or the words "first" and "previous".')


def _check_shapes(features: Any, query: Any) -> None:
    shape, wanted = tuple(getattr(features, "shape", ())), tuple(getattr(query, "shape", ()))
    if len(shape) not in (2, 3):
        raise ShapeError(
            f"OuterRouter.choose: features must have shape (batch, shots, dim) or (shots, dim), got {shape}."
        )
    if wanted != (*shape[:-2], shape[-1]):
        raise ShapeError(
            f"OuterRouter.choose: query must have shape {(*shape[:-2], shape[-1])}, that of features without shots, "
            f"got {wanted}. Hint: mean over the tokens of the new shot."
        )


def _numpy_scores(features: Any, query: Any, cosine: bool) -> Any:
    features, query = features.astype(np.float32), query.astype(np.float32)[..., None, :]
    scores = (features * query).sum(-1)
    if cosine:
        lengths = np.sqrt((features**2).sum(-1)) * np.sqrt((query**2).sum(-1))
        scores = scores / np.where(lengths == 0, np.float32(1), lengths)
    return scores


def _torch_scores(features: Any, query: Any, cosine: bool) -> Any:
    features, query = features.float(), query.float()[..., None, :]
    scores = (features * query).sum(-1)  # not a matrix product, which a GPU may round to fewer digits
    if cosine:
        lengths = features.norm(dim=-1) * query.norm(dim=-1)
        scores = scores / lengths.masked_fill(lengths == 0, 1)
    return scores


def _numpy_choice(scores: Any, always: list[int], others: list[int], top_m: int) -> Any:
    candidates, lead = np.array(others, np.int64), scores.shape[:-1]
    # Stable, reversed twice: highest first, lower shot first among equals, NaN before all.
    order = np.argsort(scores[..., candidates][..., ::-1], axis=-1, kind="stable")[..., ::-1]
    chosen = candidates[len(others) - 1 - order[..., :top_m]]
    kept = np.concatenate([np.broadcast_to(np.array(always, np.int64), (*lead, len(always))), chosen], axis=-1)
    return np.sort(kept, axis=-1)


def _torch_choice(scores: Any, always: list[int], others: list[int], top_m: int) -> Any:
    torch, lead = torch_of(scores), scores.shape[:-1]
    candidates = torch.tensor(others, dtype=torch.int64, device=scores.device)
    order = scores[..., candidates].sort(dim=-1, descending=True, stable=True).indices  # NaN first, as it happens
    chosen = candidates[order[..., :top_m]]
    fixed = torch.tensor(always, dtype=torch.int64, device=scores.device).expand(*lead, len(always))
    return torch.cat([fixed, chosen], -1).sort(dim=-1).values
