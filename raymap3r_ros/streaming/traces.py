"""A frame as one TorchScript graph: a CPU runs small networks without Python's cost for each operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raymap3r_ros.network import Network
from raymap3r_ros.streaming.tensors import copy_of, tensors_of, with_tensors

_SIZES = {Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.__len__}


def trace(network: Network, frame: Callable, inputs: tuple, state: Any) -> Callable[[tuple, Any], tuple[Any, Any]]:
    """A function that does the same as `frame`, for inputs and a state of the same shapes.

    `frame` is called as `frame(inputs, state)`, runs `network`, and returns nested tuples or dataclasses of tensors.
    It must not read a tensor's values.
    """
    example = tuple(tensors_of(copy_of((inputs, state))))
    module = FrameModule(network, frame, (inputs, state)).eval()
    with warnings.catch_warnings():
        # Sizes become constants, as intended; TorchScript is kept, but no longer developed.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))
        # The executor would profile the first runs, to fuse operations, which it cannot do on a CPU.
        before = torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])
        try:
            graph(*example)
        finally:
            torch.jit.set_fusion_strategy(before)
    results = copy_of(module.results)

    def run(inputs: tuple, state: Any) -> tuple[Any, Any]:
        given = list(tensors_of((inputs, state)))
        return with_tensors(results, module.all_results(given, graph(*given)))

    return run


class FrameModule(nn.Module):
    """Makes a frame a module, as tensors that require gradients can be traced only as parameters of one."""

    def __init__(
        self, network: Network, frame: Callable, arguments: Any, replaced: Mapping[Callable, Callable] | None = None
    ) -> None:
        """`arguments` are those of `frame`, as an example; `replaced` as in `FixedSizes`."""
        super().__init__()
        self.network = network
        self.frame = frame
        self.arguments = arguments
        self.replaced = replaced
        self.results: Any = None
        self.kept: list[int | None] = []  # for each result, the index of the argument that it is

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The results that are not arguments."""
        places = {id(tensor): index for index, tensor in enumerate(tensors)}
        with FixedSizes(self.replaced):
            self.results = self.frame(*with_tensors(self.arguments, iter(tensors)))
            results = list(tensors_of(self.results))
            self.kept = [places.get(id(result)) for result in results]
            return tuple(result for result in results if id(result) not in places)

    def all_results(self, tensors: Sequence[Tensor], computed: Iterable[Tensor]) -> Iterator[Tensor]:
        """The tensors of the results in order, from those that `forward` got and those that it returned."""
        computed = iter(computed)
        return (next(computed) if index is None else tensors[index] for index in self.kept)


class FixedSizes(TorchFunctionMode):
    """Sizes of tensors are integers, where the tracer would compute with them.

    Functions of PyTorch that are keys of `replaced` call its values instead.
    """

    def __init__(self, replaced: Mapping[Callable, Callable] | None = None) -> None:
        super().__init__()
        self._replaced = replaced or {}

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in self._replaced:
            with FixedSizes():
                return self._replaced[function](*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if function not in _SIZES:
            return result
        return torch.Size(int(size) for size in result) if isinstance(result, tuple) else int(result)
