"""Columns of the benchmark of kernels that PyTorch multiplies, where it is installed; timed in CUDA graphs."""

from collections.abc import Callable
import dataclasses
import importlib
import statistics
from typing import Any

from launch.benchmarks import kernel_timing

# A graph has at least so many products, so that its own launch does not count.
_CALLS = 20


@dataclasses.dataclass(frozen=True)
class TorchColumn:
  """A product of PyTorch.

  Attributes:
    make: (torch, problem) -> (multiply, weights): a function of weights, and one that makes weights.
    bits: of a weight.
  """

  make: Callable[..., Any]
  bits: int

  def seconds(self, problem, repetitions: int) -> float:
    """The median time of a product; raises `ImportError` without PyTorch, `RuntimeError` without a GPU for it."""
    torch = importlib.import_module('torch')
    torch.manual_seed(0)
    multiply, weights = self.make(torch, problem)
    size = problem.inputs * problem.outputs * self.bits // 8
    copies = [weights() for _ in range(kernel_timing.copies(size) if problem.tokens <= 256 else 1)]
    calls = copies * -(-_CALLS // len(copies)) if problem.tokens <= 256 else copies
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
      for _ in range(3):
        multiply(copies[0])
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
      for w in calls:
        multiply(w)
    times = []
    for _ in range(repetitions + 1):
      start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
      start.record()
      graph.replay()
      end.record()
      end.synchronize()
      times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times[1:])


def _fp8(torch, problem):
  """cuBLAS on fp8, both scales for the whole tensor."""
  make = lambda *shape: torch.randn(*shape, device='cuda', dtype=torch.bfloat16).to(torch.float8_e4m3fn)
  x, one = make(problem.tokens, problem.inputs), torch.ones((), device='cuda')
  multiply = lambda w: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
  return multiply, lambda: make(problem.outputs, problem.inputs)


def _int8(torch, problem):
  """cuBLAS on int8 with bare sums; it takes more than 16 tokens."""
  make = lambda *shape: torch.randint(-8, 8, shape, device='cuda', dtype=torch.int8)
  x = make(max(32, problem.tokens), problem.inputs)
  return lambda w: torch._int_mm(x, w.t()), lambda: make(problem.outputs, problem.inputs)


def _tinygemm(torch, problem):
  """4-bit weights in groups of 128 by bfloat16."""
  x = torch.randn(problem.tokens, problem.inputs, device='cuda', dtype=torch.bfloat16)
  scales = torch.rand(problem.inputs // 128, problem.outputs, 2, device='cuda', dtype=torch.bfloat16)

  def weights():
    codes = torch.randint(0, 256, (problem.outputs, problem.inputs // 2), device='cuda', dtype=torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(codes, 8)

  return lambda w: torch.ops.aten._weight_int4pack_mm(x, w, 128, scales), weights


COLUMNS = {
    'torch fp8': TorchColumn(_fp8, 8),
    'torch int8': TorchColumn(_int8, 8),
    'torch w4a16': TorchColumn(_tinygemm, 4),
}
