"""Layouts as torch's trees: functions that map, batch and compile see their tensors; the plan is the structure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree

from sparsemoc.spec.layout import Layout
from sparsemoc.spec.plan import Plan, plan_of_line


def _flatten(layout: Layout) -> tuple[list[Any], str]:
    if layout.key_lengths is None:
        return [layout.selected], layout.plan.line
    return [layout.selected, layout.key_lengths], layout.plan.line


def plan_of(line: str) -> Plan:
    """Return the plan of a line; a function of its own, which torch's compiler takes for a constant."""
    return plan_of_line(line)


def _unflatten(leaves: Iterable[Any], line: str) -> Layout:
    """Return a layout with these leaves, unchecked: a tree may hold what is no array yet."""
    selected, *lengths = leaves
    return Layout.tree_unflatten(plan_of(line), (selected, lengths[0] if lengths else None))


pytree.register_pytree_node(Layout, _flatten, _unflatten, serialized_type_name="sparsemoc.Layout")
