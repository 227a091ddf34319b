"""The laws that every transform obeys, in one matrix over transforms, architectures and compute dtypes.

A new method is one more entry of `_CASES`. Its own oracles belong into a test file of its own.

  1  observe and search are jitted and compiled once
  2  init and search work on shapes alone
  3  what comes back has the structure and dtypes that such a transform leaves
  4  what the transform does not claim comes back identical, to the bit
  5  statistics of halves merge to those of the whole; where order matters, a saved state continues the run
  6  all of this in float32 and in bfloat16
  7  folding leaves the full-precision function of the block unchanged, the residual branch of post-norm blocks included
  8  the block's output on the calibration data is no further from the float block's than that of a plainer method, and of
     two errors that a search records the one of its choice is not the larger
  9  simulated, integer and reloaded trees evaluate to the same bits

Every case meets every architecture in float32 and one in bfloat16: activations are all that a dtype changes, and the
architecture has no part in how it does. What differs from another case in options alone meets one of these, in turn; so
does every case under law 9, which compiles whole networks (tests/transforms/exactness_test.py has all of them).
"""

import collections
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import driver
from jaxquant.calibration import plan
from jaxquant.calibration import sites
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
from jaxquant.transforms import adadim
from jaxquant.transforms import aqas
from jaxquant.transforms import awq
from jaxquant.transforms import clip_search
from jaxquant.transforms import gptq
from jaxquant.transforms import norm_fusion
from jaxquant.transforms import outlier_suppression
from jaxquant.transforms import round_to_nearest
from jaxquant.transforms import smooth_quant
from tests import networks


class Outcome(NamedTuple):
  """What a kind of transform makes of each name that it claims.

  Attributes:
    owned: (block, name) -> paths of the entries that it may change or add.
    check: (test, block, name, tree before, tree after): what must stand there afterwards.
  """

  owned: Callable[[sites.Block, str], Iterable[str]]
  check: Callable[[parameterized.TestCase, sites.Block, str, dict, dict], None]


def _check_codes(test, block, name, before, after):
  del block
  kernel = trees.get(after, name)['kernel']
  test.assertIsInstance(kernel, qtensor.QTensor)
  test.assertEqual(kernel.shape, trees.get(before, name)['kernel'].shape)
  test.assertEqual((kernel.codes.dtype, kernel.scale.dtype), (jnp.uint8, jnp.float32))
  test.assertEqual(kernel.zero_point is None, kernel.format.symmetric)


def _check_grid(test, block, name, before, after):
  del block, before
  test.assertIsInstance(trees.get(after, name)['kernel_quantizer'], quantizers.WeightQuantizer)


def _check_range(test, block, name, before, after):
  del block, before
  quantizer = trees.get(after, name)['quantizer']
  test.assertIsInstance(quantizer, quantizers.INPUT_QUANTIZERS)
  test.assertTrue(all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(quantizer)))


def _folded(block, name):
  """What a fold of the site called `name` may change."""
  site = block.site(name)
  layers = [f'{path}/{key}' for path in (site.producer, *site.consumers) for key in ('kernel', 'scale', 'bias')]
  return layers + [f'{site.residual}/{key}' for key in ('scale', 'shift') if site.residual]


def _check_fold(test, block, name, before, after):
  site = block.site(name)
  for path in (site.producer, *site.consumers):
    old, new = trees.get(before, path), trees.get(after, path)
    test.assertContainsSubset(_avals(old).items(), _avals(new).items())
    test.assertContainsSubset(new, {*old, 'bias'})  # The bias that a shift needs.
  if site.residual is not None:
    features = trees.get(before, site.producer)['scale'].shape
    test.assertEqual(_avals(trees.get(after, site.residual)), dict.fromkeys(('scale', 'shift'), (features, jnp.float32)))


_CODES = Outcome(lambda block, name: [f'{name}/kernel'], _check_codes)
_GRID = Outcome(lambda block, name: [f'{name}/kernel_quantizer'], _check_grid)
_RANGE = Outcome(lambda block, name: [f'{name}/quantizer'], _check_range)
_FOLD = Outcome(_folded, _check_fold)


class Case(NamedTuple):
  """A transform under the laws.

  Attributes:
    owns: `linears` or `sites`.
    outcome: what it makes of them.
    make: factory, Claim -> Transform.
    record: what it records, or decides, for each name.
    plainer: factory of the method that law 8 compares with: round-to-nearest of the same format, or, for
      that itself and for ranges, which have no such rival, the simplest of the kind with a bit less.
    errors: (no more than, this) pairs of what it records, for law 8. Where neither this nor `plainer` is given, law 8 has
      nothing to say.
    claimable: sites that it can claim at all.
    weight_only: its kernels cannot meet integer activations.
    ordered: its statistics depend on the order of batches.
    variant: it differs from another case in options alone.
  """

  owns: str
  outcome: Outcome
  make: plan.Factory
  record: frozenset[str]
  plainer: plan.Factory | None = None
  errors: tuple[tuple[str, str], ...] = ()
  claimable: Callable[[sites.Site], bool] = lambda site: True
  weight_only: bool = False
  ordered: bool = False
  variant: bool = False


@functools.cache
def _grid(name, **options):
  return quantizers.WeightQuantizer(formats.parse(name), **options)


@functools.cache  # Equal methods are one object, hence one compilation.
def _round(name, **options):
  return functools.partial(round_to_nearest.round_to_nearest, weight=_grid(name, **options))


def _gptq(name, act_order=False, static_groups=False, **options):
  return functools.partial(gptq.gptq, weight=_grid(name, **options), act_order=act_order, static_groups=static_groups)


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


@functools.cache
def _ranges(bits=4, **options):
  return functools.partial(activation_ranges.activation_ranges, bits=bits, **options)


def _rounding(method, plainer, record=frozenset({'relative_error'}), **fields):
  """A case that leaves codes."""
  return Case('linears', _CODES, method, record, plainer, **fields)


def _calibrating(method, **fields):
  """A case that leaves static ranges."""
  return Case('sites', _RANGE, method, frozenset({'low', 'high'}), _ranges(3), **fields)


def _folding(method, record, *, claimable=lambda site: site.producer is not None, **fields):
  """A case that leaves an equivalent block."""
  return Case('sites', _FOLD, method, frozenset(record), claimable=claimable, **fields)


def _searched_fold(method, record, variant=False, **options):
  """A fold that is searched: it is judged with `options` at work and records that it is no worse than none."""
  return _folding(functools.partial(method, sequences=8, **options), {*record, 'error', 'error_before'},
                  errors=(('error', 'error_before'),), variant=variant)


_SCALE = frozenset({'exponent', 'weight_exponent', 'largest'})
_SHIFT_AND_SCALE = frozenset({'threshold', 'scaled', 'shift', 'error_shifted'})
_GPTQ = frozenset({'error', 'error_rtn', 'damping_increases', 'dead'})
_CLIP = frozenset({'clipped', 'error_clipped', 'error_unclipped', 'relative_error'})
_AXES = frozenset({'error_output_channels', 'error_input_channels', 'axis'})
_PER_TOKEN = quantizers.DynamicQuantizer(formats.parse('uint4'))
_PER_TENSOR = quantizers.DynamicQuantizer(formats.parse('uint4'), per_tensor=True)
_CASES = {
    'round_to_nearest': _rounding(_round('int4'), _round('int3')),
    'round_to_nearest, groups': _rounding(_round('int4', group_size=8), _round('int4'), variant=True),
    'round_to_nearest, input channels': _rounding(
        _round('int4', axis=-1), _round('int3'), weight_only=True, variant=True),
    'round_to_nearest, asymmetric': _rounding(_round('uint4'), _round('uint3'), variant=True),
    'round_to_nearest, dINT': _rounding(_round('dint4'), _round('uint3')),
    'round_to_nearest, dINT of 3 bits in groups': _rounding(
        _round('dint3', group_size=8), _round('dint3'), variant=True),
    'round_to_nearest, dINT of 8 bits': _rounding(_round('dint8'), _round('uint6'), variant=True),
    'gptq, dINT': _rounding(_gptq('dint4'), _round('dint4'), _GPTQ, variant=True),
    'gptq': _rounding(_gptq('uint3', group_size=8), _round('uint3', group_size=8), _GPTQ),
    'gptq, act order': _rounding(
        _gptq('int3', group_size=4, act_order=True, static_groups=True), _round('int3', group_size=4), _GPTQ,
        variant=True),
    'gptq, input channels': _rounding(
        _gptq('int3', axis=-1), _round('int3', axis=-1), _GPTQ, weight_only=True, variant=True),
    'clip_search': _rounding(
        _clip_and_round(_grid('int3', group_size=8)), _round('int3', group_size=8), _CLIP,
        errors=(('error_clipped', 'error_unclipped'),)),
    'adadim': Case(
        'linears', _GRID, functools.partial(adadim.adadim, weight=_grid('int3', group_size=8)), _AXES,
        _round('int3', group_size=8), weight_only=True),
    'ranges, minmax': _calibrating(_ranges()),
    'ranges, average': _calibrating(_ranges(method='average')),
    'ranges, percentile': _calibrating(_ranges(method='percentile', percentile=99.0)),
    'ranges, moving_average': _calibrating(_ranges(method='moving_average'), ordered=True),
    # Law 8 exempts scales by formula, which promise nothing, and norm fusion, which serves methods behind it.
    'smooth_quant': _folding(smooth_quant.smooth_quant, _SCALE),
    'norm_fusion': _folding(norm_fusion.norm_fusion, {'largest'}, claimable=lambda site: site.reads_residual),
    'smooth_quant, searched': _searched_fold(
        smooth_quant.smooth_quant, _SCALE, exponent=None, weight=_grid('int4'), activation=_PER_TOKEN, candidates=6),
    'awq': _searched_fold(awq.awq, _SCALE, weight=_grid('uint3', group_size=8), candidates=5),
    'awq, two exponents': _searched_fold(
        awq.awq, _SCALE, weight=_grid('uint3', group_size=8), candidates=4, two_exponents=True,
        variant=True),
    'aqas': _searched_fold(aqas.aqas, _SCALE, weight=_grid('uint4'), activation=_PER_TOKEN, candidates=6),
    'outlier_suppression': _searched_fold(
        outlier_suppression.outlier_suppression, _SHIFT_AND_SCALE, weight=_grid('int4'), activation=_PER_TENSOR,
        candidates=10),
    'outlier_suppression, per token': _searched_fold(
        outlier_suppression.outlier_suppression, _SHIFT_AND_SCALE, weight=_grid('int4'), activation=_PER_TOKEN,
        candidates=10, variant=True),
}
_MODELS = [*((style, 'float32') for style in networks.STYLES), ('llama', 'bfloat16')]
_IN_TURN = dict(zip(_CASES, itertools.cycle(_MODELS)))


def _over(names: Iterable[str]):
  """Decorator: a test that is run for every case of `names` on the models that it meets."""
  models = lambda name: [_IN_TURN[name]] if _CASES[name].variant else _MODELS
  return parameterized.parameters(*((name, model) for name in names for model in models(name)))


_every_case = _over(_CASES)
_PATH = 'layers/0'
_quantize = networks.quick_jit(lambda kernel: quantize.quantize(kernel, formats.IntFormat(8)))
_dequantize = networks.quick_jit(quantize.dequantize)


def _claim(case: str, style: str) -> transforms.Claim:
  """What `case` claims in a block of `style`: all but the last of what it might."""
  block = staging.staged(networks.config(style)).blocks[0][1]
  if _CASES[case].owns == 'linears':
    return transforms.Claim(trees.linears(_params(style))[:-1], block)
  return transforms.Claim(tuple(site.name for site in block.sites[:-1] if _CASES[case].claimable(site)), block)


def _params(style: str) -> dict:
  return trees.get(networks.params(style), _PATH)


class _Counted:
  """A jitted function that counts how often it was traced for arguments of the same structure, shapes and dtypes."""

  def __init__(self, function):
    self.traces = collections.Counter()

    def count(*args):
      self.traces[jax.tree.structure(args), tuple(map(_aval, jax.tree.leaves(args)))] += 1
      return function(*args)

    self._jitted = networks.quick_jit(count)

  def __call__(self, *args):
    return self._jitted(*args)

  def shapes(self, *args):
    """What it returns for `args`, arrays or their shapes, as shapes."""
    return self._jitted.eval_shape(*args)


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

  @networks.quick_jit
  def forward(params, x):
    with jax.default_matmul_precision('highest'):
      return block.forward(params, x)

  return inputs, batches, forward


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


def _aval(x):
  return jnp.shape(x), jnp.result_type(x)


def _avals(tree):
  return jax.tree.map(_aval, tree)


def _same(first, second) -> bool:
  """Whether two entries of a tree, arrays or nodes, are equal to the bit, in structure and in dtypes."""
  return jax.tree.structure(first) == jax.tree.structure(second) and all(
      _aval(a) == _aval(b) and np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))


class LawsTest(parameterized.TestCase):

  @_every_case
  def test_1_compiled_once(self, case, model):
    style, dtype = model
    transform, batches = _transform(_CASES[case].make, _claim(case, style), style), _calibration(style, dtype)[1]
    trees_made = []
    for part, factor in ((batches[:2], 1.0), (batches[2:], 1.5)):
      params = jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), _params(style))
      params, record, decisions = transform.search(params, _observed(transform, params, part))
      trees_made.append(transform.rewrite(params, record, jax.tree.map(lambda x: x.item(), decisions)))
    for function in (transform.search, *([transform.observe] if transform.needs_data else [])):
      self.assertEqual(set(function.traces.values()), {1})
      self.assertLessEqual(len(function.traces), sum(other == style for other, _ in _MODELS))
    if not decisions:
      self.assertEqual(_avals(trees_made[0]), _avals(trees_made[1]))

  @_every_case
  def test_2_and_3_shapes_alone_tell_the_declared_structure(self, case, model):
    style, dtype = model
    claim, params = _claim(case, style), _params(style)
    transform = _transform(_CASES[case].make, claim, style)
    shapes, batch = _shapes(params), _shapes(_calibration(style, dtype)[1][0])
    state = jax.eval_shape(lambda params: transform.init(params, batch), shapes)
    self.assertEqual(_avals(transform.observe.shapes(state, batch)), _avals(state))
    abstract = transform.search.shapes(shapes, state)
    after, record = _applied(_CASES[case].make, claim, style, dtype)
    if not abstract[2]:
      self.assertEqual(_avals(abstract[0]), _avals(after))

    self.assertCountEqual(record, claim.names)
    self.assertEqual({frozenset(entry) for entry in record.values()}, {_CASES[case].record})
    validate.validate(trees.put(networks.params(style), _PATH, after), networks.config(style, dtype))
    for name in claim.names:
      _CASES[case].outcome.check(self, claim.block, name, params, after)

  @_every_case
  def test_4_what_is_not_claimed_comes_back_identical(self, case, model):
    style, dtype = model
    claim = _claim(case, style)
    owned = {name: set(_CASES[case].outcome.owned(claim.block, name)) for name in claim.names}
    before, after = (
        {path: value for path, value in trees.walk(tree) if not isinstance(value, dict)}
        for tree in (_params(style), _applied(_CASES[case].make, claim, style, dtype)[0]))
    changed = {path for path in {*before, *after} if not _same(before.get(path), after.get(path))}
    self.assertEmpty(changed - set().union(*owned.values()))
    self.assertNotEmpty(changed)

  @_every_case
  def test_5_merged_halves_equal_the_whole(self, case, model):
    style, dtype = model
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
    for state in (statistics.merge(first, second), statistics.merge(second, first),
                  _observed(transform, params, batches[::-1])):
      self.assertEqual(_avals(state), _avals(whole))
      # Solvers amplify the rounding of float32 sums; no code, however, may differ.
      close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
      jax.tree.map(close, transform.search(params, state), want)

  @_over(name for name, case in _CASES.items() if case.outcome is _FOLD)
  def test_7_folding_leaves_the_full_precision_function_unchanged(self, case, model):
    style, dtype = model
    inputs, _, forward = _calibration(style, 'float32')
    after = _applied(_CASES[case].make, _claim(case, style), style, dtype)[0]
    want = forward(_params(style), inputs)
    self.assertLessEqual(jnp.max(jnp.abs(forward(after, inputs) - want)), 1e-5 * jnp.max(jnp.abs(want)))

  @_over(name for name, case in _CASES.items() if case.plainer or case.errors)
  def test_8_no_worse_than_a_plainer_method(self, case, model):
    style, dtype = model
    claim, case = _claim(case, style), _CASES[case]
    for entry in _applied(case.make, claim, style, dtype)[1].values():
      for less, more in case.errors:
        self.assertLessEqual(entry[less], entry[more])
    if case.plainer is None:
      return
    inputs, _, forward = _calibration(style, dtype)
    exact = np.asarray(forward(_params(style), inputs), np.float32)

    def error(make):
      tree = _applied(make, claim, style, dtype)[0]
      # Codes that meet floats are dequantized; doing so here saves a compilation for each format.
      tree = trees.map_nodes(lambda path, x: _dequantize(x) if isinstance(x, qtensor.QTensor) else x, tree)
      return np.mean((np.asarray(forward(tree, inputs), np.float32) - exact) ** 2)

    self.assertLessEqual(error(case.make), error(case.plainer))

  @parameterized.parameters(*_IN_TURN.items())
  def test_9_simulated_integer_and_reloaded_trees_agree(self, case, model):
    style, dtype = model
    after = _applied(_CASES[case].make, _claim(case, style), style, dtype)[0]
    config = networks.config(style, dtype)
    if not _CASES[case].weight_only:  # What the transform leaves in floats is quantized plainly.
      for path in trees.linears(after):
        if not nodes.is_node(kernel := trees.get(after, path)['kernel']):
          after = trees.put(after, f'{path}/kernel', _quantize(kernel))
      for site in staging.staged(config).blocks[0][1].sites:
        if trees.get(after, f'{site.name}/quantizer') is None:
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
