"""GPTQ against its definition: explicit optimal brain quantization in float64, with a new inverse for every input."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import sites
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.numerics import two_level
from jaxquant.transforms import error_feedback
from jaxquant.transforms import gptq
from tests import calibrating
from tests import networks

_INPUTS, _OUTPUTS, _DAMPING = 24, 12, 0.01
_DEAD = (3, 17)
_SITES = (sites.Site('attention/input', None, ('attention/q', 'attention/k', 'attention/v')),
          sites.Site('attention/o/input', None, ('attention/o',)))


def _grid(name='int4', axis=-2, group_size=None, two_level=False):
  return quantizers.WeightQuantizer(formats.parse(name), axis, group_size, two_level)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def _kernel():
  return _random(_INPUTS, _OUTPUTS, seed=1)


@functools.cache
def _activation(dead=()):
  """[2, 60, _INPUTS], channels correlated and of unequal size; those in `dead` are zero."""
  x = _random(2, 60, _INPUTS) @ (_random(_INPUTS, _INPUTS, seed=2) * np.linspace(0.2, 2, _INPUTS, dtype=np.float32))
  x[..., list(dead)] = 0
  return x


def _moment(dead=()):
  x = _activation(dead).reshape(-1, _INPUTS)
  return x.T @ x / len(x)


def _affine(values, axis, fmt):
  """(scale, zero point) of min-max ranges, which hold zero unless the format is without."""
  if not fmt.with_zero:
    low, high = (f(values, axis=axis, keepdims=True) for f in (np.min, np.max))
    return (high - low) / fmt.maximum, -low / ((high - low) / fmt.maximum)
  low, high = (f(values, axis=axis, initial=0.0, keepdims=True) for f in (np.min, np.max))
  width = np.maximum(-low, high) if fmt.symmetric else high - low
  scale = np.where(width == 0, 1.0, width / fmt.maximum)
  return scale, 0 if fmt.symmetric else np.round(-low / scale)


def _nearest(values, scale, zero, fmt):
  """(codes, the values that they stand for) of float64 values, by the formula of each format's paper."""
  codes = np.round(values / scale) + zero if fmt.with_zero else np.round(values / scale + zero)
  codes = np.clip(codes, fmt.minimum, fmt.maximum)
  decoded = (codes - zero) * scale
  if isinstance(fmt, formats.DIntFormat):
    steps, special = values / scale, fmt.special
    for code, sign in ((fmt.plus, 1), (fmt.minus, -1)):
      small = (special / 2 < sign * steps) & (sign * steps <= (special + 1) / 2)
      codes, decoded = np.where(small, code, codes), np.where(small, sign * special * scale, decoded)
  return codes, decoded


def _definition(kernel, moment, grid, *, order=None, static=False):
  """The method as it is defined: codes [in, out] and scales shaped as in a QTensor, float64.

  Input j's error, divided by the first diagonal entry of the inverse of H[j:, j:], moves the others along that
  inverse's first column.
  """
  fmt, size = grid.format, grid.group_size
  kernel, moment = kernel.astype(np.float64), moment.astype(np.float64)
  dead = np.diag(moment) == 0
  kernel[dead] = 0
  moment = moment + np.diag(_DAMPING * np.diag(moment)[~dead].mean() + dead)
  order = np.arange(len(kernel)) if order is None else order
  original, rest = kernel.copy(), kernel[order]
  moment = moment[np.ix_(order, order)]
  codes, scales = np.zeros(kernel.shape), {}
  for i, j in enumerate(order):
    if grid.axis == -1:
      row = rest[i].reshape(-1, size or kernel.shape[1])
      scale, zero = _affine(row, -1, fmt)
      scales[j] = scale[:, 0]
      scale, zero = (np.broadcast_to(a, row.shape).reshape(-1) for a in (scale, zero))
    else:
      group = j // (size or len(kernel))
      members = slice(group * (size or len(kernel)), (group + 1) * (size or len(kernel)))
      if group not in scales:
        scales[group] = _affine((original if static else rest)[members], 0, fmt)
      scale, zero = (np.squeeze(a) for a in scales[group])
    codes[j], decoded = _nearest(rest[i], scale, zero, fmt)
    inverse = np.linalg.inv(moment[i:, i:])
    rest[i:] -= np.outer(inverse[:, 0] / inverse[0, 0], rest[i] - decoded)
  by_index = [scales[i] if grid.axis == -1 else scales[i][0][0] for i in sorted(scales)]
  return codes, np.stack(by_index)


@functools.cache
def _factorizer(act_order=False):
  return networks.quick_jit(functools.partial(error_feedback.factorize, damping=_DAMPING, act_order=act_order))


def _solve(kernels, moment, grid, *, static=False, block_size=128, act_order=False):
  """Returns the kernels rounded; `moment` is that of their input."""
  solve = functools.partial(error_feedback.solve, weight=grid, static_groups=static, block_size=block_size)
  return networks.quick_jit(solve)(kernels, _factorizer(act_order)(moment))


def _error(kernel, rounded, moment):
  difference = np.asarray(quantize.dequantize(rounded), np.float64) - kernel
  return np.trace(difference.T @ moment @ difference) / np.trace(kernel.T.astype(np.float64) @ moment @ kernel)


class ErrorFeedbackTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('output_channels', _grid()),
      ('groups', _grid(group_size=8)),
      ('static_groups', _grid(group_size=8), {'static': True}),
      ('act_order', _grid(), {'act_order': True}),
      ('act_order_static_groups', _grid('int3', group_size=6), {'act_order': True, 'static': True}),
      ('asymmetric', _grid('uint4')),
      ('asymmetric_groups', _grid('uint3', group_size=4)),
      ('without_zero_in_range', _grid('offset_uint4', group_size=8)),
      ('without_zero_in_range_static_groups', _grid('offset_uint3', group_size=6), {'act_order': True, 'static': True}),
      ('without_zero_in_range_input_channels', _grid('offset_uint4', -1, 4)),
      ('dint', _grid('dint4')),
      ('dint_groups', _grid('dint3', group_size=8)),
      ('dint_quarter_act_order', _grid('dint4/4'), {'act_order': True}),
      ('dint_input_channels', _grid('dint4', -1, 4)),
      ('input_channels', _grid(axis=-1)),
      ('input_channels_asymmetric_groups', _grid('uint4', -1, 4)),
      ('input_channels_act_order', _grid('int3', -1, 6), {'act_order': True}),
      ('dead_inputs', _grid('uint4', group_size=8), {'dead': _DEAD}),
      ('dead_inputs_act_order', _grid('int4', -1), {'dead': _DEAD, 'act_order': True}))
  def test_codes_and_scales_are_those_of_the_definition(self, grid, options=None):
    options = options or {}
    moment, order = _moment(options.pop('dead', ())), None
    if options.get('act_order'):
      order = np.argsort(-np.diag(moment), kind='stable')
    codes, scale = _definition(_kernel(), moment, grid, order=order, static=options.get('static', False))
    rounded, = _solve([_kernel()], moment, grid, block_size=5, **options)
    np.testing.assert_array_equal(rounded.unpacked(), codes)
    np.testing.assert_allclose(rounded.scale, scale, rtol=1e-4)
    self.assertEqual((rounded.shape, rounded.axis, rounded.format), (_kernel().shape, grid.axis, grid.format))

  @parameterized.parameters(_grid('uint3', group_size=12), _grid('int3', -1, 6))
  def test_any_block_size_gives_the_same_codes(self, grid):
    """Shorter and longer than a group, dividing it or not, and longer than the kernel."""
    want, _ = _definition(_kernel(), _moment(), grid)
    for block_size in (1, 9, 128):
      rounded, = _solve([_kernel()], _moment(), grid, block_size=block_size)
      np.testing.assert_array_equal(rounded.unpacked(), want)

  @parameterized.parameters(_grid(), _grid('uint4', group_size=8), _grid('int3', axis=-1), _grid('uint3', -1, 4))
  def test_uncorrelated_inputs_are_rounded_to_nearest(self, grid):
    rounded, = _solve([_kernel()], np.eye(_INPUTS, dtype=np.float32), grid)
    jax.tree.map(np.testing.assert_array_equal, rounded, networks.quick_jit(grid.quantized)(_kernel()))

  @parameterized.parameters(_grid('int3'), _grid('uint3', group_size=8), _grid('int3', axis=-1))
  def test_output_error_is_well_below_that_of_rounding_to_nearest(self, grid):
    moment = _moment()
    nearest = _error(_kernel(), networks.quick_jit(grid.quantized)(_kernel()), moment)
    self.assertLess(_error(_kernel(), _solve([_kernel()], moment, grid)[0], moment), 0.9 * nearest)

  @parameterized.parameters(_grid(), _grid('uint3', group_size=6), _grid('int4', -1, 2))
  def test_kernels_side_by_side_are_rounded_as_each_alone(self, grid):
    kernels = [_kernel(), _kernel()[:, :4] * 3, _kernel()[:, :6] + 1]
    for kernel, rounded in zip(kernels, _solve(kernels, _moment(), grid), strict=True):
      codes, scale = _definition(kernel, _moment(), grid)
      np.testing.assert_array_equal(rounded.unpacked(), codes)
      np.testing.assert_allclose(rounded.scale, scale, rtol=1e-4)

  @parameterized.parameters(False, True)
  def test_two_level_scales_are_those_of_the_kernel_before_any_rounding(self, act_order):
    grid, moment = _grid('int3', group_size=6, two_level=True), _moment()
    rounded, = _solve([_kernel()], moment, grid, static=True, act_order=act_order)
    nearest = networks.quick_jit(grid.quantized)(_kernel())
    np.testing.assert_array_equal(rounded.scale, nearest.scale)
    self.assertIsNotNone(two_level.levels(rounded.scale))
    self.assertLess(_error(_kernel(), rounded, moment), 0.9 * _error(_kernel(), nearest, moment))
    with self.assertRaisesRegex(ValueError, 'have to be static'):
      _solve([_kernel()], moment, grid)

  def test_factor_is_the_upper_one_of_the_inverse(self):
    factor, moment = _factorizer()(_moment()), _moment().astype(np.float64)
    inverse = np.linalg.inv(moment / np.diag(moment).mean() + _DAMPING * np.eye(_INPUTS))
    upper = np.asarray(factor.upper, np.float64)
    np.testing.assert_allclose(upper.T @ upper, inverse, atol=1e-4 * np.abs(inverse).max())
    np.testing.assert_array_equal(upper, np.triu(upper))

  def test_the_unit_of_activations_does_not_count(self):
    moment = _moment(_DEAD)
    want = _factorizer()(moment)
    for power in (-60, 60):
      jax.tree.map(np.testing.assert_array_equal, _factorizer()(moment * np.float32(2.0**power)), want)

  def test_an_indefinite_moment_is_damped_until_it_is_not(self):
    basis = np.linalg.qr(_random(_INPUTS, _INPUTS))[0]
    values = np.ones(_INPUTS, np.float32)
    for lowest, increases in ((0.5, 0), (-0.05, 1), (-0.5, 2), (-5, 3)):
      values[0] = lowest
      moment = (basis * values) @ basis.T
      moment *= _INPUTS / np.trace(moment)  # mean diagonal 1, so that the damping is 0.01, 0.1, 1, 10
      factor = _factorizer()(moment)
      self.assertEqual(factor.increases, increases)
      self.assertTrue(np.isfinite(factor.upper).all())
    hopeless = np.full((_INPUTS, _INPUTS), np.nan, np.float32)
    self.assertEqual(_factorizer()(hopeless).increases, error_feedback.MOST_INCREASES + 1)


def _params(**linears):
  """A block with the given kernels below `attention`."""
  return {'attention': {name: {'kernel': jnp.asarray(kernel)} for name, kernel in linears.items()}}


def _batches(x=None, o=None):
  x = _activation() if x is None else x
  o = x if o is None else o
  return [calibrating.batch({'attention/input': x[i : i + 1], 'attention/o/input': o[i : i + 1]}, i)
          for i in range(len(x))]


def _apply(params, *names, weight=_grid(), batches=None, **options):
  claim = calibrating.claim(*(f'attention/{name}' for name in names), sites=_SITES)
  params, record = calibrating.apply(
      functools.partial(gptq.gptq, weight=weight, **options), claim, params, batches or _batches())
  return params['attention'], record


class GptqTest(parameterized.TestCase):

  def test_linears_of_a_site_share_its_moment_and_others_have_their_own(self):
    grid, other = _grid('int3', group_size=8), _activation()[..., ::-1] * np.linspace(3, 1, _INPUTS, dtype=np.float32)
    kernels = {'q': _kernel(), 'k': _kernel()[:, :5], 'o': _kernel() + 1}
    params, record = _apply(_params(**kernels), *kernels, weight=grid, batches=_batches(o=other))
    flat = other.reshape(-1, _INPUTS)
    for name, kernel in kernels.items():
      moment = flat.T @ flat / len(flat) if name == 'o' else _moment()
      np.testing.assert_array_equal(params[name]['kernel'].unpacked(), _definition(kernel, moment, grid)[0])
      entry = record[f'attention/{name}']
      np.testing.assert_allclose(entry['error'], _error(kernel, params[name]['kernel'], moment), rtol=1e-3)
      np.testing.assert_allclose(
          entry['error_rtn'], _error(kernel, jax.jit(grid.quantized)(kernel), moment), rtol=1e-3)
      self.assertEqual((entry['damping_increases'], entry['dead']), (0, 0))

  def test_reads_what_the_product_sees(self):
    """Behind the input specification of the site, or that of the linear itself where it has one."""
    batch, path = _batches()[0], 'attention/k/input'
    kernels = {'q': _kernel(), 'k': _kernel()}
    scaled = {'attention/quantized_input': batch.activations['attention/input'][..., ::-1],
              'attention/k/quantized_input': batch.activations['attention/input'] * jnp.arange(1.0, _INPUTS + 1)}
    batch = batch._replace(activations={**batch.activations, **scaled})
    params = trees.put(_params(**kernels), path, {'scale': 1 / jnp.arange(1.0, _INPUTS + 1)})
    rounded, _ = _apply(params, 'q', 'k', batches=[batch])
    for name, point in (('q', 'attention/quantized_input'), ('k', 'attention/k/quantized_input')):
      x = np.asarray(batch.activations[point])[0]
      want = _definition(_kernel(), x.T @ x / len(x), _grid())[0]
      np.testing.assert_array_equal(rounded[name]['kernel'].unpacked(), want)
    unobserved = {point: x for point, x in batch.activations.items() if '/k/' not in point}
    with self.assertRaisesRegex(errors.UserError, '^attention/k/quantized_input is not observed'):
      _apply(params, 'q', 'k', batches=[batch._replace(activations=unobserved)])

  def test_takes_grids_from_the_tree_each_its_own(self):
    params = _params(q=_kernel(), k=_kernel(), v=_kernel())
    grids = {'q': _grid('int3'), 'k': _grid('uint4', -1), 'v': _grid('uint4', -1)}
    for name, grid in grids.items():
      params['attention'][name]['kernel_quantizer'] = grid
    rounded, _ = _apply(params, *grids, weight=None)
    for name, grid in grids.items():
      self.assertEqual(set(rounded[name]), {'kernel'})
      np.testing.assert_array_equal(rounded[name]['kernel'].unpacked(), _definition(_kernel(), _moment(), grid)[0])

  def test_dead_inputs_are_counted_and_their_weights_become_zero(self):
    params, record = _apply(_params(q=_kernel()), 'q', batches=_batches(_activation(_DEAD)))
    values = quantize.dequantize(params['q']['kernel'])
    np.testing.assert_array_equal(values[np.array(_DEAD)], 0)
    self.assertEqual((record['attention/q']['dead'], record['attention/q']['damping_increases']), (len(_DEAD), 0))
    self.assertLess(record['attention/q']['error'], record['attention/q']['error_rtn'])

  def test_where_nothing_is_ever_active_all_weights_become_zero(self):
    params, record = _apply(_params(q=_kernel()), 'q', batches=_batches(np.zeros_like(_activation())))
    np.testing.assert_array_equal(quantize.dequantize(params['q']['kernel']), 0)
    self.assertEqual(record['attention/q'], {
        'error': 0, 'error_rtn': 0, 'damping_increases': 0, 'dead': _INPUTS, 'tokens': 120})

  @parameterized.parameters((4, True), (11, True), (12, False))
  def test_fewer_tokens_than_inputs_still_have_a_factor_but_a_warning(self, length, warned):
    params, record = _apply(_params(q=_kernel()), 'q', batches=_batches(_activation()[:, :length]))
    self.assertLess(record['attention/q']['error'], 0.8 * record['attention/q']['error_rtn'])
    self.assertEqual((record['attention/q']['damping_increases'], record['attention/q']['tokens']), (0, 2 * length))
    transform = gptq.gptq(calibrating.claim('attention/q', sites=_SITES), _grid())
    warnings = transform.warn({'attention': params}, record)
    self.assertEqual(list(warnings), ['attention/q'] if warned else [])
    for text in warnings.values():
      self.assertStartsWith(text, f'its 24 inputs were observed in {2 * length} tokens only')

  def test_a_moment_without_factor_is_an_error_by_path(self):
    transform = gptq.gptq(calibrating.claim('attention/q', 'attention/o', sites=_SITES), _grid())
    record = {f'attention/{name}': {'damping_increases': n} for name, n in (('q', 6), ('o', 7))}
    with self.assertRaisesRegex(errors.NonFiniteError, '^attention/o: no damping .* not even 6 times tenfold$'):
      transform.rewrite({}, record, {})
    params = _params(q=_kernel())
    self.assertIs(transform.rewrite(params, {'attention/q': record['attention/q']}, {}), params)

  def test_refuses_by_path_what_it_cannot_do(self):
    params = _params(q=_kernel(), k=_kernel()[:8])
    for pattern, names, options in (
        ('^attention/q: act_order scatters the turns of a group of 8 inputs', 'q',
         {'weight': _grid(group_size=8), 'act_order': True}),
        ('^attention/q: two-level scales .* ask for static_groups too', 'q',
         {'weight': _grid(group_size=8, two_level=True)}),
        ('^attention/q: group size 7 does not divide 24 elements', 'q', {'weight': _grid(group_size=7)}),
        (r'^attention/k: attention/quantized_input has 24 features, but the kernel of shape \(8, 12\)', 'k', {}),
        ('^attention/q: no grid to round to', 'q', {'weight': None}),
        ('positive damping and block size, not 0 and 128', 'q', {'damping': 0}),
        ('positive damping and block size, not 0.01 and 0', 'q', {'block_size': 0}),
        ('^attention/lost reads no site', ('lost',), {})):
      with self.assertRaisesRegex(errors.UserError, pattern):
        _apply(params, *names, **options)


if __name__ == '__main__':
  absltest.main()
