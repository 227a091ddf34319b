"""The laws that every transform obeys, in one matrix over transforms, architectures and compute dtypes.

A new method is one more entry of `_CASES`. Its own oracles belong into a test file of its own.

  1  observe and search are jitted and compiled once
  2  init and search work on shapes alone
  3  what comes back has the structure and dtypes that a quantized tree has
  4  what the transform does not claim comes back identical, to the bit
  5  statistics of halves merge to those of the whole; where order matters, a saved state continues the run
  6  all of this in float32 and in bfloat16
  7  (folding leaves the float function unchanged: for equivalence transforms, of which there are none yet)
  8  the block's output on the calibration data is no further from the float block's than that of a plainer method
  9  simulated, integer and reloaded trees evaluate to the same bits
"""

import functools
import itertools
import json
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import driver
from jaxquant.calibration import plan
from jaxquant.calibration import statistics
from jaxquant.calibration import transform as transforms
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import clip_search
from jaxquant.transforms import gptq
from jaxquant.transforms import round_to_nearest
from tests import networks


class Case(NamedTuple):
  """A transform under the laws.

  Attributes:
    owns: `linears` or `sites`.
    make: factory, Claim -> Transform.
    record: what it records, or decides, for each name.
    plainer: factory of the method that law 8 compares with: round-to-nearest of the same format, or, for
      that itself and for ranges, which have no such rival, the simplest of the kind with a bit less.
    weight_only: its kernels cannot meet integer activations.
    ordered: its statistics depend on the order of batches.
  """

  owns: str
  make: plan.Factory
  record: frozenset[str]
  plainer: plan.Factory
  weight_only: bool = False
  ordered: bool = False


def _grid(name, **options):
  return quantizers.WeightQuantizer(formats.parse(name), **options)


def _round(name, **options):
  return functools.partial(round_to_nearest.round_to_nearest, weight=_grid(name, **options))


def _gptq(grid, **options):
  return functools.partial(gptq.gptq, weight=grid, **options)


def _clip_and_round(grid):
  """The clip search leaves floats; to the laws, it is part of the transform that rounds what it clamped."""

  def make(claim):
    clip, rounding = clip_search.clip_search(claim, grid), round_to_nearest.round_to_nearest(claim, grid)

    def search(params, state):
      params, clipped, _ = clip.search(params, state)
      params, rounded, decisions = rounding.search(params, {})
      return params, driver.merged(clipped, rounded), decisions

    return clip._replace(search=search)

  return make


def _ranges(bits=4, **options):
  return functools.partial(activation_ranges.activation_ranges, bits=bits, **options)


_RELATIVE_ERROR, _ENDS = frozenset({'relative_error'}), frozenset({'low', 'high'})
_GPTQ = frozenset({'error', 'error_rtn', 'damping_increases', 'dead'})
_CLIP = frozenset({'clipped', 'error_clipped', 'error_unclipped', *_RELATIVE_ERROR})
_CASES = {
    'round_to_nearest': Case('linears', _round('int4'), _RELATIVE_ERROR, _round('int3')),
    'round_to_nearest, groups': Case('linears', _round('int4', group_size=8), _RELATIVE_ERROR, _round('int4')),
    'round_to_nearest, input channels': Case(
        'linears', _round('int4', axis=-1), _RELATIVE_ERROR, _round('int3'), weight_only=True),
    'round_to_nearest, asymmetric': Case('linears', _round('uint4'), _RELATIVE_ERROR, _round('uint3')),
    'round_to_nearest, dINT': Case('linears', _round('dint4'), _RELATIVE_ERROR, _round('uint3')),
    'round_to_nearest, dINT of 3 bits in groups': Case(
        'linears', _round('dint3', group_size=8), _RELATIVE_ERROR, _round('dint3')),
    'round_to_nearest, dINT of 8 bits': Case('linears', _round('dint8'), _RELATIVE_ERROR, _round('uint6')),
    'gptq, dINT': Case('linears', _gptq(_grid('dint4')), _GPTQ, _round('dint4')),
    'gptq': Case('linears', _gptq(_grid('uint3', group_size=8)), _GPTQ, _round('uint3', group_size=8)),
    'gptq, act order': Case(
        'linears', _gptq(_grid('int3', group_size=4), act_order=True, static_groups=True), _GPTQ,
        _round('int3', group_size=4)),
    'gptq, input channels': Case(
        'linears', _gptq(_grid('int3', axis=-1)), _GPTQ, _round('int3', axis=-1), weight_only=True),
    'clip_search': Case('linears', _clip_and_round(_grid('int3', group_size=8)), _CLIP, _round('int3', group_size=8)),
    'ranges, minmax': Case('sites', _ranges(), _ENDS, _ranges(3)),
    'ranges, average': Case('sites', _ranges(method='average'), _ENDS, _ranges(3)),
    'ranges, percentile': Case('sites', _ranges(method='percentile', percentile=99.0), _ENDS, _ranges(3)),
    'ranges, moving_average': Case('sites', _ranges(method='moving_average'), _ENDS, _ranges(3), ordered=True),
}
_DTYPES = ['float32', 'bfloat16']
_every_case = parameterized.product(case=list(_CASES), style=list(networks.STYLES), dtype=_DTYPES)
_PATH = 'layers/0'
_quantize = networks.quick_jit(lambda kernel: quantize.quantize(kernel, formats.IntFormat(8)))
_dequantize = networks.quick_jit(quantize.dequantize)


def _claim(case: str, style: str) -> transforms.Claim:
  """What `case` claims in a block of `style`: all but the last of what it might."""
  block = staging.staged(networks.config(style)).blocks[0][1]
  names = [site.name for site in block.sites] if _CASES[case].owns == 'sites' else trees.linears(_params(style))
  return transforms.Claim(tuple(names[:-1]), block)


def _params(style: str) -> dict:
  return trees.get(networks.params(style), _PATH)


class _Counted:
  """A jitted function that counts how often it was traced."""

  def __init__(self, function):
    self.traces = 0

    def count(*args):
      self.traces += 1
      return function(*args)

    self._jitted = networks.quick_jit(count)

  def __call__(self, *args):
    return self._jitted(*args)


@functools.cache
def _transform(make, claim, style) -> transforms.Transform:
  """The transform with `observe` and `search` jitted, once for the dtypes of a style."""
  del style
  made = make(claim)
  return made._replace(observe=_Counted(made.observe), search=_Counted(made.search))


@functools.cache
def _calibration(style: str, dtype: str):
  """(inputs of the block, its observations as batches of four sequences, jitted forward)."""
  model = staging.staged(networks.config(style, dtype))
  block = model.blocks[0][1]
  inputs = networks.quick_jit(model.embed)(networks.params(style), networks.tokens(16))
  activations = networks.quick_jit(block.taps)(_params(style), inputs)[1]
  batches = [
      transforms.Batch(jnp.arange(i, i + 4), {point: x[i : i + 4] for point, x in activations.items()})
      for i in range(0, 16, 4)]
  return inputs, batches, networks.quick_jit(block.forward)


def _shapes(tree):
  return jax.eval_shape(lambda x: x, tree)


def _observed(transform, params, batches, state=None):
  state = transform.init(params, _shapes(batches[0])) if state is None else state
  for batch in batches:
    state = transform.observe(state, batch)
  return state


@functools.cache
def _applied(make, claim, style, dtype):
  """(params, record with decisions) of the block after the transform."""
  transform, params = _transform(make, claim, style), _params(style)
  params, record, decisions = transform.search(params, _observed(transform, params, _calibration(style, dtype)[1]))
  params = transform.rewrite(params, record, jax.tree.map(lambda x: x.item(), decisions))
  return params, {name: {**record.get(name, {}), **decisions.get(name, {})} for name in {**record, **decisions}}


def _avals(tree):
  return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


class LawsTest(parameterized.TestCase):

  @_every_case
  def test_1_compiled_once(self, case, style, dtype):
    transform, batches = _transform(_CASES[case].make, _claim(case, style), style), _calibration(style, dtype)[1]
    trees_made = []
    for part, factor in ((batches[:2], 1.0), (batches[2:], 1.5)):
      params = jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), _params(style))
      params, record, decisions = transform.search(params, _observed(transform, params, part))
      trees_made.append(transform.rewrite(params, record, jax.tree.map(lambda x: x.item(), decisions)))
    # Dtypes share a transform: `search` sees the weights alone, `observe` also activations.
    self.assertEqual(transform.search.traces, 1)
    self.assertLessEqual(transform.observe.traces, len(_DTYPES))
    if not decisions:
      self.assertEqual(_avals(trees_made[0]), _avals(trees_made[1]))

  @_every_case
  def test_2_and_3_shapes_alone_tell_the_declared_structure(self, case, style, dtype):
    claim, params = _claim(case, style), _params(style)
    names, transform = claim.names, _CASES[case].make(claim)
    shapes, batch = _shapes(params), _shapes(_calibration(style, dtype)[1][0])
    state = jax.eval_shape(lambda params: transform.init(params, batch), shapes)
    self.assertEqual(_avals(jax.eval_shape(transform.observe, state, batch)), _avals(state))
    abstract = jax.eval_shape(transform.search, shapes, state)
    after, record = _applied(_CASES[case].make, claim, style, dtype)
    if not abstract[2]:
      self.assertEqual(_avals(abstract[0]), _avals(after))

    self.assertCountEqual(record, names)
    self.assertEqual({frozenset(entry) for entry in record.values()}, {_CASES[case].record})
    validate.validate(trees.put(networks.params(style), _PATH, after), networks.config(style, dtype))
    for name in names:
      if _CASES[case].owns == 'sites':
        quantizer = trees.get(after, name)['quantizer']
        self.assertIsInstance(quantizer, quantizers.INPUT_QUANTIZERS)
        self.assertTrue(all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(quantizer)))
      else:
        kernel = trees.get(after, name)['kernel']
        self.assertIsInstance(kernel, qtensor.QTensor)
        self.assertEqual(kernel.shape, trees.get(params, name)['kernel'].shape)
        self.assertEqual((kernel.codes.dtype, kernel.scale.dtype), (jnp.uint8, jnp.float32))
        self.assertEqual(kernel.zero_point is None, kernel.format.symmetric)

  @_every_case
  def test_4_what_is_not_claimed_comes_back_identical(self, case, style, dtype):
    claim = _claim(case, style)
    names, before = claim.names, trees.arrays(_params(style))
    after = trees.arrays(_applied(_CASES[case].make, claim, style, dtype)[0])
    kind = {'linears': 'kernel', 'sites': 'quantizer'}[_CASES[case].owns]
    owned = {path for path in {*before, *after} if path.startswith(tuple(f'{name}/{kind}' for name in names))}
    for path in {*before, *after} - owned:
      np.testing.assert_array_equal(after[path], before[path])
      self.assertEqual(after[path].dtype, before[path].dtype)
    for name in names:
      self.assertNotEmpty([path for path in set(after) - set(before) if path.startswith(f'{name}/')])

  @_every_case
  def test_5_merged_halves_equal_the_whole(self, case, style, dtype):
    transform, params = _transform(_CASES[case].make, _claim(case, style), style), _params(style)
    batches = _calibration(style, dtype)[1]
    whole = _observed(transform, params, batches)
    if _CASES[case].ordered:
      saved = jax.device_get(_observed(transform, params, batches[:2]))
      resumed = _observed(transform, params, batches[2:], jax.tree.map(jnp.asarray, saved))
      jax.tree.map(np.testing.assert_array_equal, resumed, whole)
      return
    first, second = (_observed(transform, params, part) for part in (batches[:1], batches[1:]))
    want = transform.search(params, whole)
    for state in (statistics.merge(first, second), statistics.merge(second, first), _observed(transform, params, batches[::-1])):
      self.assertEqual(_avals(state), _avals(whole))
      jax.tree.map(
          functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), transform.search(params, state), want)

  @_every_case
  def test_8_no_worse_than_a_plainer_method(self, case, style, dtype):
    inputs, _, forward = _calibration(style, dtype)
    exact = np.asarray(forward(_params(style), inputs), np.float32)

    def error(make):
      tree = _applied(make, _claim(case, style), style, dtype)[0]
      # Codes that meet floats are dequantized; doing so here saves a compilation for each format.
      tree = trees.map_nodes(lambda path, x: _dequantize(x) if isinstance(x, qtensor.QTensor) else x, tree)
      return np.mean((np.asarray(forward(tree, inputs), np.float32) - exact) ** 2)

    self.assertLessEqual(error(_CASES[case].make), error(_CASES[case].plainer))

  # Both architectures and both dtypes, but not their product: this law compiles whole networks.
  @parameterized.product(case=list(_CASES), model=list(zip(networks.STYLES, itertools.cycle(_DTYPES))))
  def test_9_simulated_integer_and_reloaded_trees_agree(self, case, model):
    style, dtype = model
    after = _applied(_CASES[case].make, _claim(case, style), style, dtype)[0]
    config = networks.config(style, dtype)
    if _CASES[case].owns == 'sites':
      for path in trees.linears(after):
        kernel = trees.get(after, path)['kernel']
        after = trees.put(after, f'{path}/kernel', _quantize(kernel))
    elif not _CASES[case].weight_only:
      for site in staging.staged(config).blocks[0][1].sites:
        quantizer = quantizers.ClipQuantizer(jnp.float32(-3), jnp.float32(4), 8)
        after = trees.put(after, f'{site.name}/quantizer', quantizer)
    params, ids = trees.put(networks.params(style), _PATH, after), networks.tokens(3, seed=1)
    evaluate = lambda tree, name: networks.evaluator(config, name, networks.quick_jit)(tree, ids)
    simulated = evaluate(params, 'simulated')
    self.assertTrue(jnp.isfinite(simulated).all())
    if not _CASES[case].weight_only:
      np.testing.assert_array_equal(evaluate(params, 'xla'), simulated)
    saved = trees.arrays(params)
    reloaded = nodes.decode(json.loads(json.dumps(nodes.encode(params))), lambda path, _: np.asarray(saved[path]))
    np.testing.assert_array_equal(evaluate(reloaded, 'simulated'), simulated)


if __name__ == '__main__':
  absltest.main()
