"""What compilers say of kernels is read, and what they cannot do is said in one line; nothing here needs CUDA."""

import json
import os
import pathlib
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental import topologies

from jaxquant import errors
import kernels
from kernels import problems
from kernels import rule
from kernels import tuning
from kernels.mosaic import configs
from launch import benchmark
from launch.benchmarks import compilation
from launch.benchmarks import kernel_cases
from launch.benchmarks import kernel_compilation

_MOSAIC = 'Resources(smem_scratch_bytes=183296, tmem_scratch_cols=0, barrier_counts=Counter())\n'
_WARNING = """ptxas warning : Registers are spilled to local memory in function 'kernel', 8 bytes spill stores, \
16 bytes spill loads
"""
_PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    8 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 8 bytes cumulative stack size, 1 bytes smem
"""
_USAGE = kernel_compilation.Usage(registers=168, spill_stores=8, spill_loads=16, shared_memory=183_296)
_PROBLEM = problems.Problem(16, 4096, 4096, kernels.Layout.INT4)


def _says(*, text=_MOSAIC + _PTXAS, error=None):
  """A case whose compilation writes a text past Python, or raises."""
  def call(operands):
    del operands
    tuning.choose(_PROBLEM, 'cpu')
    if error is not None:
      raise error
    if 'MOSAIC_GPU_DUMP_PTXAS' in os.environ:
      os.write(1, text.encode())
    return ()

  return kernel_cases.Case('case', call, {})


class UsageTest(parameterized.TestCase):

  @parameterized.parameters((_MOSAIC + _PTXAS,), (_MOSAIC + _WARNING + _PTXAS,), (_PTXAS + _MOSAIC,))
  def test_what_is_printed_of_a_kernel(self, text):
    self.assertEqual(kernel_compilation.parse(text), _USAGE)

  @parameterized.parameters(('',), (_PTXAS,), (_MOSAIC,), (_MOSAIC + _WARNING,), (2 * (_MOSAIC + _PTXAS),))
  def test_what_is_not_of_one_kernel_is_refused(self, text):
    with self.assertRaisesRegex(errors.UserError, f'jax {jax.__version__} does not say of one kernel'):
      kernel_compilation.parse(text)

  def test_what_is_printed_while_a_case_is_compiled_and_the_configuration_of_the_rule(self):
    sharding, before = jax.sharding.SingleDeviceSharding(jax.devices()[0]), dict(os.environ)
    config, usage = kernel_compilation.compiled(_says(), sharding)
    self.assertEqual((config, usage), (rule.configuration(_PROBLEM), _USAGE))
    measured = configs.Decode(16, 512, 2, 1)
    self.assertEqual(kernel_compilation.compiled(_says(), sharding, measured), (measured, _USAGE))
    self.assertEqual(dict(os.environ), before)

  @parameterized.parameters(
      ('UNAVAILABLE: No PTX compilation provider is available.', errors.UserError, r'ptxas, .* extra \[cuda13\]'),
      ('INTERNAL: ptxas exited with 255', jax.errors.JaxRuntimeError, 'exited with 255'))
  def test_a_missing_ptxas_is_a_mistake_and_one_that_fails_is_not(self, text, kind, message):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with self.assertRaisesRegex(kind, message) as caught:
      kernel_compilation.compiled(_says(error=jax.errors.JaxRuntimeError(text)), sharding)
    self.assertIs(type(caught.exception), kind)

  def test_a_missing_plugin_is_a_mistake(self):
    missing = NotImplementedError('topology not implemented for cuda')
    with (mock.patch.object(topologies, 'get_topology_desc', side_effect=missing),
          self.assertRaisesRegex(errors.UserError, r'CUDA plugin of JAX, .* \[cuda13\], and set JAX_PLATFORMS=cpu')):
      kernel_compilation.target()


class BenchmarkTest(parameterized.TestCase):

  @parameterized.parameters(
      ([_USAGE, _USAGE._replace(spill_stores=0, spill_loads=0)], '1 of 2 kernels spill, 0 cannot be compiled'),
      ([NotImplementedError('too large'), _USAGE._replace(spill_stores=0)], '1 of 2 kernels spill, 1 cannot'),
      ([_USAGE._replace(spill_stores=0, spill_loads=0)], None))
  def test_it_fails_where_a_kernel_spills_or_is_not_compiled(self, outcomes, message):
    outcomes = [x if isinstance(x, Exception) else (rule.configuration(_PROBLEM), x) for x in outcomes]
    file = pathlib.Path(self.create_tempdir().full_path) / 'result.json'
    self.enter_context(mock.patch.object(kernel_compilation, 'target'))
    self.enter_context(mock.patch.object(kernel_compilation, 'compiled', side_effect=outcomes))
    measured = {_PROBLEM: rule.configuration(_PROBLEM)}
    self.enter_context(mock.patch.object(tuning, 'measured', lambda device: measured))
    self.enter_context(mock.patch.object(kernel_cases, 'every', lambda: [_says()] * (len(outcomes) - 1)))
    self.enter_context(mock.patch.object(benchmark, '_OUTPUT', types.SimpleNamespace(value=str(file))))
    self.addCleanup(jax.config.update, 'jax_enable_compilation_cache', jax.config.jax_enable_compilation_cache)
    if message is None:
      benchmark.main('compilation', compilation)
    else:
      with self.assertRaises(SystemExit) as caught:
        benchmark.main('compilation', compilation)
      self.assertStartsWith(str(caught.exception), message)
    rows = json.loads(file.read_text())['kernels']
    self.assertLen(rows, len(outcomes))
    self.assertEqual(rows[-1]['config']['kernel'], 'decode')
    self.assertEqual([row['name'] for row in rows],
                     ['case'] * (len(rows) - 1) + ['W4A8 4096 x 4096, tokens: 16, as measured'])


if __name__ == '__main__':
  absltest.main()
