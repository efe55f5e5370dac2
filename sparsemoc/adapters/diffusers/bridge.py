"""The one file that touches private names of diffusers: an attention backend of our own, and the versions it fits.

diffusers looks an attention function up by a member of a closed enum. A member that the enum does not list serves as
well: it has the right type, and only the look-up tables need to know it. So nothing of ours shows up among the
backends that diffusers lists, and taking the entry out of the tables again leaves no trace.

The function is told no layer. What a processor holds as `_parallel_config` does reach it, so that is where the layer
travels. With one member for each layer instead, a compiler would make one graph for each layer: members are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
from diffusers.models import attention_dispatch

from sparsemoc.spec.errors import UnsupportedError

#: First release that is known to fit, and the first that is not known to.
OLDEST, NEXT = (0, 40), (0, 43)
#: Models that route now; the entry stays in the tables as long as there is one.
_models = 0


def check_version(version: str = diffusers.__version__) -> None:
    """Raise UnsupportedError unless diffusers is of a version whose private tables are known."""
    found = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST <= found < NEXT:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEXT))
        raise UnsupportedError(
            f"enable: diffusers must be at least {low} and below {high}, got {version}. "
            f"Hint: pip install 'diffusers>={low},<{high}'."
        )


def _new_member() -> Any:
    names = attention_dispatch.AttentionBackendName
    member = str.__new__(names, "sparsemoc")
    member._name_ = "SPARSEMOC"
    member._value_ = "sparsemoc"
    # The Enum of early releases of Python 3.11 would look a copy up by its name, which the class does not list.
    member.__deepcopy__ = lambda memo: member
    return member


#: The value of a processor's `_attention_backend`.
MEMBER = _new_member()


def install(attention: Callable[..., Any]) -> None:
    """Register the attention function for one more model.

    Args:
        attention: takes query, key and value (batch, tokens, heads, head_dim) and the keywords attn_mask, dropout_p,
            is_causal, scale, enable_gqa and _parallel_config: diffusers drops without a word what is not named.
    """
    global _models  # noqa: PLW0603  # the tables of diffusers are as global
    if not _models:
        attention_dispatch._AttentionBackendRegistry.register(MEMBER)(attention)
    _models += 1


def uninstall() -> None:
    """Say that one model is done; the last takes the entry out of the tables of diffusers."""
    global _models  # noqa: PLW0603
    _models -= 1
    if not _models:
        registry = attention_dispatch._AttentionBackendRegistry
        for table in (registry._backends, registry._constraints, registry._supported_arg_names):
            table.pop(MEMBER, None)


def is_installed() -> bool:
    """Say whether diffusers knows the member."""
    return MEMBER in attention_dispatch._AttentionBackendRegistry._backends


def dense(query: Any, key: Any, value: Any, *, backend: Any, **options: Any) -> Any:
    """Attend as diffusers itself would, with the backend that the processor had, or the active one for None."""
    return attention_dispatch.dispatch_attention_fn(query, key, value, backend=backend, **options)
