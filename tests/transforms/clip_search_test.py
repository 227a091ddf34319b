"""The clip search against an exhaustive one in float64, and what rounding makes of the kernels it leaves."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.transforms import clip_search
from jaxquant.transforms import gptq
from tests import calibrating

_INPUTS, _OUTPUTS = 24, 10
_RATIOS = 1 - np.arange(10) / 20
_SITES = (sites.Site('mlp/input', None, ('mlp/up', 'mlp/gate')),)


def _grid(name='int3', axis=-2, group_size=None, two_level=False):
  return quantizers.WeightQuantizer(formats.parse(name), axis, group_size, two_level)


@functools.cache
def _kernel():
  """Heavy tails, so that clipping pays; one group without a negative weight, one of zeros."""
  kernel = np.random.default_rng(0).standard_t(3, size=(_INPUTS, _OUTPUTS)).astype(np.float32)
  kernel[:8, 0], kernel[8:16, 1] = np.abs(kernel[:8, 0]), 0
  return kernel


@functools.cache
def _activation():
  rng = np.random.default_rng(1)
  return (rng.normal(size=(2, 50, _INPUTS)) @ rng.normal(size=(_INPUTS, _INPUTS))).astype(np.float32)


def _rounded(values, fmt):
  """float64 `values` [size, out] on the min-max grid of every column."""
  low, high = values.min(0, initial=0), values.max(0, initial=0)
  width = np.maximum(-low, high) if fmt.symmetric else high - low
  scale = np.where(width == 0, 1, width / fmt.maximum)
  zero = 0 if fmt.symmetric else np.round(-low / scale)
  return (np.clip(np.round(values / scale) + zero, fmt.minimum, fmt.maximum) - zero) * scale


def _shares(start, difference):
  """Mean square over tokens of a group's x_g difference, [out], from the activations of the inputs from `start` on."""
  x = _activation().reshape(-1, _INPUTS)[:, start : start + len(difference)].astype(np.float64)
  return ((x @ difference) ** 2).mean(0)


def _relative_error(kernel, grid, exact):
  """What rounding `kernel` to `grid` leaves of an error in the shares of the groups of `exact`, over these."""
  difference = np.asarray(quantize.dequantize(grid.quantized(kernel)), np.float64) - exact
  size = grid.group_size
  lost, total = (sum(_shares(start, d[start : start + size]).sum() for start in range(0, _INPUTS, size))
                 for d in (difference, exact))
  return lost / total


def _ends(values, axis, grid, ends):
  """What a ratio of 1 clamps `values` to: (low, high) with `axis` of one element."""
  low, high = (f(values, axis=axis, initial=0, keepdims=True) for f in (np.min, np.max))
  if ends == 'range' and not grid.format.symmetric:
    return low, high
  high = np.maximum(-low, high)
  return -high, high


def _exhaustive(grid, ends):
  """(ratios [groups, out], errors [ratios, groups, out]) of trying everything."""
  size, found = grid.group_size or _INPUTS, []
  for ratio in _RATIOS:
    found.append([])
    for start in range(0, _INPUTS, size):
      group = _kernel()[start : start + size].astype(np.float64)
      low, high = _ends(group, 0, grid, ends)
      rounded = _rounded(np.clip(group, ratio * low, ratio * high), grid.format)
      found[-1].append(_shares(start, rounded - group))
  found = np.array(found)
  return _RATIOS[found.argmin(0)], found


def _clipped(*names, weight=_grid(), params=None, x=None, **options):
  """(linears, record) of a block with two kernels after the search on `x`, or else on `_activation()`."""
  params = params or {'mlp': {'up': {'kernel': _kernel()}, 'gate': {'kernel': jnp.asarray(_kernel()[:, ::-1])}}}
  factory = functools.partial(clip_search.clip_search, weight=weight, **options)
  claim = calibrating.claim(*(f'mlp/{name}' for name in names), sites=_SITES)
  sequences = _activation() if x is None else x
  batches = [calibrating.batch({'mlp/input': sequence[None]}, i) for i, sequence in enumerate(sequences)]
  params, record = calibrating.apply(factory, claim, params, batches)
  return params['mlp'], record


class ClipSearchTest(parameterized.TestCase):

  @parameterized.parameters(
      (_grid(), 'magnitude'), (_grid(group_size=8), 'magnitude'), (_grid(group_size=8), 'range'),
      (_grid('uint3'), 'range'), (_grid('uint4', group_size=8), 'magnitude'), (_grid('uint3', group_size=8), 'range'))
  def test_takes_the_best_clamp_of_every_output_and_group(self, grid, ends):
    ratios, found = _exhaustive(grid, ends)
    linears, record = _clipped('up', weight=grid, ends=ends)
    size = grid.group_size or _INPUTS
    grouped = _kernel().reshape(-1, size, _OUTPUTS)
    low, high = _ends(grouped, 1, grid, ends)
    want = np.clip(grouped, ratios[:, None] * low, ratios[:, None] * high).reshape(_kernel().shape)
    np.testing.assert_allclose(linears['up']['kernel'], want, rtol=1e-6)
    self.assertEqual(linears['up']['kernel'].dtype, jnp.float32)
    total = sum(_shares(start, _kernel()[start : start + size]).sum() for start in range(0, _INPUTS, size))
    want = {'clipped': ratios.mean(), 'error_clipped': found.min(0).sum() / total,
            'error_unclipped': found[0].sum() / total, 'tokens': 100}
    self.assertEqual(set(record['mlp/up']), set(want))
    for key, value in want.items():
      np.testing.assert_allclose(record['mlp/up'][key], value, rtol=1e-4)
    self.assertLess(want['error_clipped'], 0.98 * want['error_unclipped'])  # there was something to find

  def test_no_group_is_worse_when_the_clamped_kernel_is_rounded(self):
    grid = _grid('uint3', group_size=8)
    linears, _ = _clipped('up', weight=grid)
    rounded = np.asarray(quantize.dequantize(grid.quantized(linears['up']['kernel'])), np.float64)
    _, found = _exhaustive(grid, 'magnitude')
    for group, start in enumerate(range(0, _INPUTS, 8)):
      part = slice(start, start + 8)
      shares = _shares(start, rounded[part] - _kernel()[part])
      np.testing.assert_allclose(shares, found[:, group].min(0), rtol=1e-3, atol=1e-9)
      self.assertTrue((shares <= found[0, group] * 1.0001 + 1e-9).all())

  def test_kernels_of_16_bits_are_judged_as_they_will_be_rounded(self):
    """Where both signs are clamped alike, a last bit of the clamps decides between two zero points."""
    grid, kernel = _grid('uint3', group_size=8), jnp.asarray(_kernel(), jnp.bfloat16)
    linears, record = _clipped('up', weight=grid, params={'mlp': {'up': {'kernel': kernel}}})
    self.assertEqual(linears['up']['kernel'].dtype, jnp.bfloat16)
    error = _relative_error(linears['up']['kernel'], grid, np.asarray(kernel, np.float64))
    np.testing.assert_allclose(record['mlp/up']['error_clipped'], error, rtol=1e-4)

  def test_two_level_scales_of_the_clamped_kernel_are_better_though_groups_share_a_base(self):
    grid = _grid(group_size=8, two_level=True)
    linears, record = _clipped('up', weight=grid)
    clipped, unclipped = (_relative_error(kernel, grid, _kernel()) for kernel in (linears['up']['kernel'], _kernel()))
    np.testing.assert_allclose(record['mlp/up']['error_unclipped'], unclipped, rtol=1e-4)
    self.assertLess(clipped, 0.98 * unclipped)

  @parameterized.parameters(
      ({'steps': 4}, [1, 0.75]), ({'steps': 10, 'least': 0.7}, [1, 0.9, 0.8]), ({'steps': 1}, [1]),
      ({'steps': 20, 'least': 0.9}, [1, 0.95]), ({'steps': 4, 'least': 0.0}, [1, 0.75, 0.5, 0.25]))
  def test_ratios_are_those_above_the_least(self, options, ratios):
    linears, record = _clipped('up', weight=_grid('int2'), **options)
    magnitude = np.abs(linears['up']['kernel']).max(0) / np.abs(_kernel()).max(0)
    self.assertEmpty(set(magnitude.round(5)) - set(np.array(ratios, np.float32).round(5)))
    np.testing.assert_allclose(record['mlp/up']['clipped'], magnitude.mean(), rtol=1e-5)

  def test_kernels_stay_in_place_with_the_grid_that_the_next_step_needs(self):
    grid = _grid('uint3', group_size=8)
    up = {'kernel': _kernel(), 'kernel_quantizer': grid, 'bias': np.ones(_OUTPUTS)}
    params = {'mlp': {'up': up, 'gate': {'kernel': _kernel()}}}
    linears, record = _clipped('up', weight=None, params=params)
    self.assertEqual(set(record), {'mlp/up'})
    self.assertEqual(linears['up'].keys(), up.keys())
    self.assertEqual(linears['up']['kernel_quantizer'], grid)
    np.testing.assert_array_equal(linears['gate']['kernel'], _kernel())
    np.testing.assert_array_equal(linears['up']['kernel'], _clipped('up', weight=grid)[0]['up']['kernel'])

  def test_weights_on_the_grid_are_not_clipped(self):
    kernel = np.random.default_rng(2).integers(-3, 4, (_INPUTS, _OUTPUTS)).astype(np.float32)
    kernel[0] = 3
    params = {'mlp': {'up': {'kernel': kernel}}}
    linears, record = _clipped('up', params=params)
    np.testing.assert_array_equal(linears['up']['kernel'], kernel)
    self.assertEqual(record['mlp/up'], {'clipped': 1, 'error_clipped': 0, 'error_unclipped': 0, 'tokens': 100})

  @parameterized.parameters(
      (None, 11, 'its 24 inputs were observed in 22 tokens only; '), (None, 12, None),
      (8, 3, 'its groups of 8 inputs were observed in 6 tokens only; '), (8, 4, None))
  def test_fewer_tokens_than_are_judged_together_are_warned_of(self, group_size, length, text):
    """All inputs of a linear, in the words of GPTQ, so that of both nothing is said twice; or those of a group."""
    grid = _grid(group_size=group_size)
    linears, record = _clipped('up', weight=grid, x=_activation()[:, :length])
    claim = calibrating.claim('mlp/up', sites=_SITES)
    found, gptq_found = (
        method(claim, grid).warn({'mlp': linears}, record) for method in (clip_search.clip_search, gptq.gptq))
    self.assertEqual(list(found), ['mlp/up'] if text else [])
    if text:
      self.assertStartsWith(found['mlp/up'], text)
      self.assertEqual(found == gptq_found, group_size is None)

  @parameterized.product(name=['int3', 'uint3'], ends=clip_search.ENDS, group_size=[None, 5])
  def test_groups_of_outputs_are_clamped_like_those_of_inputs_of_the_transpose(self, name, ends, group_size):
    """Where inputs do not correlate; a factor of an input counts for all its groups alike, and changes no choice."""
    kernel = jnp.asarray(_kernel())
    search = lambda kernel, moment, axis: clip_search.search(
        kernel, moment, _grid(name, axis, group_size), _RATIOS, ends)
    want, record = search(kernel.T, jnp.eye(_OUTPUTS), -2)
    got, same = search(kernel, jnp.eye(_INPUTS), -1)
    np.testing.assert_array_equal(got, want.T)
    for field, value in record.items():
      np.testing.assert_allclose(same[field], value, rtol=1e-5)
    weighted, found = search(kernel, jnp.diag(jnp.arange(1.0, _INPUTS + 1)), -1)
    np.testing.assert_array_equal(weighted, got)
    self.assertLess(found['error_clipped'], found['error_unclipped'])

  def test_the_share_of_groups_of_outputs_is_that_of_the_activation(self):
    grid = _grid(axis=-1, group_size=5)
    linears, record = _clipped('up', weight=grid)
    difference = np.asarray(quantize.dequantize(grid.quantized(linears['up']['kernel'])), np.float64) - _kernel()
    share = lambda of: sum(_shares(j, of[j : j + 1]).sum() for j in range(_INPUTS))
    want = share(difference) / share(np.float64(_kernel()))
    np.testing.assert_allclose(record['mlp/up']['error_clipped'], want, rtol=1e-3)

  def test_refuses_by_name_what_it_cannot_do(self):
    for pattern, names, options in (
        ('^mlp/gate: group size 5 does not divide 24 elements', ('gate',), {'weight': _grid(group_size=5)}),
        ('^mlp/lost reads no site', ('lost',), {}),
        ("^unknown ends 'low' of a clip search; there are magnitude and range", ('up',), {'ends': 'low'}),
        ('positive number of steps and least in .0, 1., not 0, 0.5', ('up',), {'steps': 0}),
        ('positive number of steps and least in .0, 1., not 20, 1', ('up',), {'least': 1})):
      with self.assertRaisesRegex(errors.UserError, pattern):
        _clipped(*names, **options)


if __name__ == '__main__':
  absltest.main()
