"""The number of devices changes no decision and no code of a calibration.

Run with an argument, this file is the program on eight devices that its test starts, and that is the file it writes.
"""

import functools
import pathlib
import pickle
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import channels
from jaxquant.calibration import driver
from jaxquant.calibration import samples
from jaxquant.calibration import sites
from jaxquant.calibration import statistics
from jaxquant.calibration import transform as transforms
from jaxquant.layers import sharding
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import round_to_nearest
from tests import compiling
from tests import networks
from tests import source

_FORMAT = formats.IntFormat(3)
_SHARES = tuple(1 - i / 25 for i in range(11))
_ROWS = (16, 8, 5)  # the last cannot be split over eight devices


def _clipped(claim):
  """A transform that rounds each kernel with the share of its range whose outputs are nearest, judged by X^T X."""

  def init(params, batch):
    return {site: channels.SecondMoment.empty(batch.activations[site].shape[-1]) for site in claim.by_site()}

  def observe(state, batch):
    return {site: moment.observed(batch.activations[site]) for site, moment in state.items()}

  def rounded(kernel, share):
    low, high = quantize.group_range(kernel, axis=-2)
    scale, zero_point = quantize.affine(share * low, share * high, _FORMAT)
    return quantize.from_scales(kernel, scale, zero_point, _FORMAT)

  def search(params, state):
    record, decisions = {}, {}
    for site, linears in claim.by_site().items():
      for path in linears:
        kernel = trees.get(params, path)['kernel']
        differences = jnp.stack([quantize.dequantize(rounded(kernel, share)) - kernel for share in _SHARES])
        outputs = channels.output_error(state[site].mean(), differences)
        record[path] = {'error': outputs, 'moment': state[site].matrix}
        decisions[path] = {'share': jnp.argmin(outputs)}
    return params, record, decisions

  def rewrite(params, record, decisions):
    del record
    for path in claim.names:
      kernel = rounded(trees.get(params, path)['kernel'], _SHARES[decisions[path]['share']])
      params = trees.put(params, f'{path}/kernel', kernel)
    return params

  return transforms.Transform(init, observe, search, rewrite)


def _sampled(claim):
  """A transform that records the extrema of the channels of each site and a sample of sequences."""

  def init(params, batch):
    del params
    x = {site: batch.activations[site] for site in claim.names}
    return {site: (channels.ChannelExtrema.empty(a.shape[-1]), samples.SequenceSample.empty(6, a.shape[1:], a.dtype))
            for site, a in x.items()}

  def observe(state, batch):
    x = batch.activations
    return {site: (extrema.observed(x[site]), sample.observed(x[site], batch.ids))
            for site, (extrema, sample) in state.items()}

  def search(params, state):
    return params, {site: {'channel_low': extrema.low, 'hashes': sample.hashes, 'sample': sample.activations}
                    for site, (extrema, sample) in state.items()}, {}

  return transforms.Transform(init, observe, search)


_round = functools.partial(round_to_nearest.round_to_nearest, weight=quantizers.WeightQuantizer(_FORMAT))
_ranges = functools.partial(activation_ranges.activation_ranges, bits=8)


def _results(params, model, steps, batches) -> dict[str, np.ndarray]:
  """Arrays, records and decisions of a calibration, by path."""
  result = driver.run(params, model, steps, batches)
  found = {f'{name}: {key}': value for name, entries in result.decisions.items() for entry in entries.values()
           for key, value in entry.items()}
  return {path: np.asarray(value) for path, value in {**trees.arrays(result.params), **found}.items()}


def _decoder(place) -> dict[str, np.ndarray]:
  """A decoder, of whose two streams the quantized one is observed."""
  batches = [place(np.asarray(networks.tokens(rows, seed=rows))) for rows in _ROWS]
  steps = [driver.Step('linears', [('layers/0/attention/.*', _clipped), ('layers/0/mlp/.*', _round), ('.*', None)]),
           driver.Step('sites', [('.*', _ranges)], stream='quantized')]
  return _results(networks.params('llama'), staging.staged(networks.config('llama')), steps, batches)


def _whole_numbers(place) -> dict[str, np.ndarray]:
  """A model whose activations are whole numbers, so that float32 is exact in whatever order it adds them."""
  rng = np.random.default_rng(0)
  draw = lambda size, shape: jnp.asarray(np.rint(size * rng.standard_t(3, shape)), jnp.float32)
  params = {'table': draw(2, (32, 24)), **{name: {'linear': {'kernel': draw(1, (24, 24))}} for name in 'abc'}}
  block = sites.Block(
      (sites.Site('input', None, ('linear',)),),
      lambda params, x: jnp.clip(x @ params['linear']['kernel'], -8, 8),
      lambda params, x: (None, {'input': x, 'quantized_input': x}))
  model = sites.StagedModel(lambda params, ids: params['table'][ids], tuple((name, block) for name in 'abc'))
  steps = [driver.Step('sites', [('.*', _sampled)]), driver.Step('linears', [('[ab]/.*', _clipped), ('.*', _round)]),
           driver.Step('sites', [('.*', _ranges)])]
  return _results(params, model, steps, [place(rng.integers(0, 32, (rows, 7))) for rows in _ROWS])


def _statistics(place) -> dict[str, np.ndarray]:
  """Statistics of every kind of the same activations, by kind and field."""
  x = place(np.random.default_rng(0).standard_t(3, size=(24, 5, 6)).astype(np.float32))
  kinds = {name: kind() for name, kind in statistics.KINDS.items()}
  kinds |= {kind.__name__: kind.empty(6) for kind in (
      channels.ChannelExtrema, channels.ChannelMagnitude, channels.SecondMoment)}
  made = jax.jit(lambda kinds, x: {name: kind.observed(x) for name, kind in kinds.items()})(kinds, x)
  empty = samples.SequenceSample.empty(7, (5, 6), x.dtype)
  made['SequenceSample'] = jax.jit(lambda sample, x, ids: sample.observed(x, ids))(empty, x, jnp.arange(24))
  return {path: np.asarray(value) for path, value in trees.arrays(made).items()}


_COMPUTED = {'decoder': _decoder, 'whole numbers': _whole_numbers, 'statistics': _statistics}


def _write(file: str) -> None:
  mesh = sharding.data_mesh()
  place = functools.partial(sharding.place_whole, mesh)
  assert len(place(np.zeros((16, 8))).addressable_shards) == mesh.devices.size == 8
  assert place(np.zeros((16, 8))).addressable_shards[0].data.shape == (2, 8)
  with jax.set_mesh(mesh):
    made = {name: compute(place) for name, compute in _COMPUTED.items()}
  with open(file, 'wb') as opened:
    pickle.dump(made, opened)


class DevicesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    file = pathlib.Path(absltest.get_default_test_tmpdir()) / 'eight.pickle'
    environment = source.environment(XLA_FLAGS=compiling.on_devices(8))
    result = subprocess.run([sys.executable, __file__, file], env=environment, capture_output=True, text=True)
    if result.returncode:
      raise AssertionError(result.stderr)
    cls.eight = pickle.loads(file.read_bytes())

  @parameterized.parameters(*_COMPUTED)
  def test_eight_devices_make_what_one_makes(self, name):
    one, eight = _COMPUTED[name](jnp.asarray), self.eight[name]
    self.assertEqual(one.keys(), eight.keys())
    exact = {
        # Programs for other shapes add the products of a float model in another order.
        'decoder': lambda path: path.endswith(('/codes', '/scale', ': share')),
        # Errors of roundings are no whole numbers.
        'whole numbers': lambda path: not path.endswith('error'),
        'statistics': lambda path: not path.startswith(('average/', 'ChannelMagnitude/total', 'SecondMoment/matrix'))}
    for path, value in one.items():
      if exact[name](path):
        np.testing.assert_array_equal(eight[path], value, err_msg=path)
      else:
        np.testing.assert_allclose(eight[path], value, rtol=1e-6, atol=1e-6 * np.max(np.abs(value)), err_msg=path)

  def test_decisions_are_not_all_alike(self):
    """Nothing would be shown by a search that always ends with the same share."""
    for name in ('decoder', 'whole numbers'):
      shares = {int(value) for path, value in self.eight[name].items() if path.endswith(': share')}
      self.assertGreater(len(shares), 1, name)


if __name__ == '__main__':
  if len(sys.argv) == 2 and sys.argv[1].endswith('.pickle'):
    _write(sys.argv[1])
  else:
    absltest.main()
