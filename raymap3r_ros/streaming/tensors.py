"""Nested tuples and dataclasses of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def map_tensors(function: Callable[..., Tensor], *items: Any) -> Any:
    """Nested tuples or dataclasses of one structure -> one of them, with `function` of the corresponding tensors.

    Values that are not tensors are those of the first item.
    """
    first = items[0]
    if isinstance(first, Tensor):
        return function(*items)
    if isinstance(first, tuple):
        return tuple(map_tensors(function, *parts) for parts in zip(*items, strict=True))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        changed = {name: map_tensors(function, *(getattr(item, name) for item in items)) for name in names}
        return dataclasses.replace(first, **changed)
    return first


def copy_of(item: Any) -> Any:
    """A tuple or dataclass with copies of all tensors."""
    return map_tensors(torch.clone, item)


def tensors_of(item: Any) -> Iterator[Tensor]:
    """All tensors of a tuple or dataclass, in order."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from tensors_of(getattr(item, field.name))


def with_tensors(item: Any, tensors: Iterator[Tensor]) -> Any:
    """A tuple or dataclass with all tensors replaced by the next ones, in the order of `tensors_of`."""
    return map_tensors(lambda _: next(tensors), item)
