"""The one file that touches private names of diffusers: attention backends of our own, and the version they fit.

diffusers looks an attention function up by a member of a closed enum. A member that the enum does not list serves as
well: it has the right type, and only the look-up tables need to know it. So nothing of ours shows up among the
backends that diffusers lists, and taking the entries out of the tables again leaves no trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
from diffusers.models import attention_dispatch

from sparsemoc.spec.errors import UnsupportedError

#: First release that is known to fit, and the first that is not known to.
OLDEST, NEXT = (0, 40), (0, 44)
_numbers = itertools.count()


def check_version(version: str = diffusers.__version__) -> None:
    """Raise UnsupportedError unless diffusers is of a version whose private tables are known."""
    found = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST <= found < NEXT:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEXT))
        raise UnsupportedError(
            f"enable: diffusers must be at least {low} and below {high}, got {version}. "
            f"Hint: pip install 'diffusers>={low},<{high}'."
        )


def install(name: str, attention: Callable[..., Any]) -> Any:
    """Register an attention function, and return the value for a processor's `_attention_backend`.

    Args:
        name: for messages and logs; need not be unique.
        attention: takes query, key and value (batch, tokens, heads, head_dim) and the keywords attn_mask, dropout_p,
            is_causal, scale, enable_gqa and _parallel_config: diffusers drops without a word what is not named.
    """
    names, registry = attention_dispatch.AttentionBackendName, attention_dispatch._AttentionBackendRegistry
    value = f"sparsemoc:{next(_numbers)}:{name}"
    member = str.__new__(names, value)
    member._name_ = value.upper()
    member._value_ = value
    registry.register(member)(attention)
    return member


def uninstall(members: Iterable[Any]) -> None:
    """Take members out of the tables of diffusers; those that are out already are left alone."""
    registry = attention_dispatch._AttentionBackendRegistry
    for member in members:
        for table in (registry._backends, registry._constraints, registry._supported_arg_names):
            table.pop(member, None)


def installed() -> list[Any]:
    """Return the members that are registered now."""
    registry = attention_dispatch._AttentionBackendRegistry
    return [member for member in registry._backends if member.value.startswith("sparsemoc:")]


def dense(query: Any, key: Any, value: Any, *, backend: Any, parallel_config: Any, **options: Any) -> Any:
    """Attend as diffusers itself would, with the backend that the processor had, or the active one for None."""
    return attention_dispatch.dispatch_attention_fn(
        query, key, value, backend=backend, parallel_config=parallel_config, **options
    )
