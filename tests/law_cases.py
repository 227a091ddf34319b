"""The transforms under the laws of tests/transforms/laws_test.py, and what each kind of them may leave in a tree."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxquant.calibration import driver
from jaxquant.calibration import plan
from jaxquant.calibration import sites
from jaxquant.calibration import transform as transforms
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import adadim
from jaxquant.transforms import aqas
from jaxquant.transforms import awq
from jaxquant.transforms import clip_search
from jaxquant.transforms import dynamic_ranges
from jaxquant.transforms import gptq
from jaxquant.transforms import norm_fusion
from jaxquant.transforms import outlier_suppression
from jaxquant.transforms import round_to_nearest
from jaxquant.transforms import sensitivity
from jaxquant.transforms import smooth_quant
from tests import networks


def aval(x):
  """(shape, dtype) of an array or a shape."""
  return jnp.shape(x), jnp.result_type(x)


def avals(tree):
  """The tree with (shape, dtype) in place of every array."""
  return jax.tree.map(aval, tree)


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
  if not kernel.format.symmetric:
    test.assertEqual(kernel.zero_point.dtype, jnp.uint8 if kernel.format.with_zero else jnp.float32)
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
    test.assertContainsSubset(avals(old).items(), avals(new).items())
    test.assertContainsSubset(new, {*old, 'bias'})  # The bias that a shift needs.
  if site.residual is not None:
    features = trees.get(before, site.producer)['scale'].shape
    want = dict.fromkeys(('scale', 'shift'), (features, jnp.float32))
    test.assertEqual(avals(trees.get(after, site.residual)), want)


CODES = Outcome(lambda block, name: [f'{name}/kernel'], _check_codes)
GRID = Outcome(lambda block, name: [f'{name}/kernel_quantizer'], _check_grid)
RANGE = Outcome(lambda block, name: [f'{name}/quantizer'], _check_range)
FOLD = Outcome(_folded, _check_fold)
NOTHING = Outcome(lambda block, name: [], lambda test, block, name, before, after: None)


class Case(NamedTuple):
  """A transform under the laws.

  Attributes:
    owns: `linears`, `sites` or `operands`.
    outcome: what it makes of them.
    make: factory, Claim -> Transform.
    record: what it records, or decides, for each name.
    plainer: factory of the method that law 8 compares with: round-to-nearest of the same format, or, for
      that itself and for ranges, which have no such rival, the simplest of the kind with a bit less. Law 8 has nothing
      to say where there is none.
    behind: (claim, tree) -> tree, what comes behind the method and behind the plainer one before law 8 compares them.
    claimable: sites that it can claim at all.
    weight_only: its kernels cannot meet integer activations.
    ordered: its statistics depend on the order of batches.
  """

  owns: str
  outcome: Outcome
  make: plan.Factory
  record: frozenset[str]
  plainer: plan.Factory | None = None
  behind: Callable[[transforms.Claim, dict], dict] = lambda claim, tree: tree
  claimable: Callable[[sites.Site], bool] = lambda site: True
  weight_only: bool = False
  ordered: bool = False


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


def _dynamic_ranges(quantizer):
  return functools.partial(dynamic_ranges.dynamic_ranges, quantizer=quantizer)


_ROUNDED = frozenset({'relative_error', 'zeros'})


def _rounding(method, plainer, record=_ROUNDED, **fields):
  """A case that leaves codes."""
  return Case('linears', CODES, method, record, plainer, **fields)


def _calibrating(method, **fields):
  """A case that leaves ranges."""
  return Case('sites', RANGE, method, **{'record': frozenset({'low', 'high'}), 'plainer': _ranges(3), **fields})


def _folding(method, record, *, claimable=lambda site: site.producer is not None, **fields):
  """A case that leaves an equivalent block."""
  return Case('sites', FOLD, method, frozenset(record), claimable=claimable, **fields)


def _no_fold(claim):
  """Leaves everything as it is."""
  return transforms.without_data(lambda params: (params, {}, {}), lambda params: None)


def _quantized(weight, activation, claim, tree):
  """The tree with what reads the claimed sites rounded, and their activations quantized if they are to be."""
  for site in claim.sites:
    for path in site.consumers:
      tree = trees.put(tree, f'{path}/kernel', weight(trees.get(tree, path)['kernel']))
    tree = tree if activation is None else trees.put(tree, f'{site.name}/quantizer', activation)
  return tree


def _searched_fold(method, record, weight, activation=None, **options):
  """A fold that is searched: quantized behind it, the block is no worse than quantized without it."""
  told = {'weight': weight} if activation is None else {'weight': weight, 'activation': activation}
  return _folding(
      functools.partial(method, tokens=128, **told, **options), {*record, 'error', 'error_before'}, plainer=_no_fold,
      behind=functools.partial(_quantized, weight, activation))


_SCALE = frozenset({'exponent', 'weight_exponent', 'largest'})
_SHIFT_AND_SCALE = frozenset({'threshold', 'scaled', 'shift', 'error_shifted'})
_GPTQ = frozenset({'error', 'error_rtn', 'damping_increases', 'dead', 'tokens'})
_CLIP = _ROUNDED | {'clipped', 'error_clipped', 'error_unclipped', 'tokens'}
_AXES = frozenset({'error_output_channels', 'error_input_channels', 'axis'})
_PER_TOKEN = quantizers.DynamicQuantizer(formats.parse('uint4'))
_PER_TENSOR = quantizers.DynamicQuantizer(formats.parse('uint4'), per_tensor=True)
CASES = {
    'round_to_nearest': _rounding(_round('int4'), _round('int3')),
    'round_to_nearest, groups': _rounding(_round('int4', group_size=8), _round('int3', group_size=8)),
    'round_to_nearest, two-level scales': _rounding(
        _round('int4', group_size=8, two_level=True), _round('int4')),
    'round_to_nearest, per tensor': _rounding(_round('int4', per_tensor=True), _round('int3', per_tensor=True)),
    'round_to_nearest, input channels': _rounding(
        _round('int4', axis=-1), _round('int3'), weight_only=True),
    'round_to_nearest, asymmetric': _rounding(_round('uint4'), _round('uint3')),
    'round_to_nearest, without zero in range': _rounding(
        _round('offset_uint4', group_size=8), _round('offset_uint3', group_size=8)),
    'round_to_nearest, dINT': _rounding(_round('dint4'), _round('uint3')),
    'round_to_nearest, dINT of 3 bits in groups': _rounding(
        _round('dint3', group_size=8), _round('dint3')),
    'round_to_nearest, dINT of 8 bits': _rounding(_round('dint8'), _round('uint6')),
    'gptq, dINT': _rounding(_gptq('dint4'), _round('dint4'), _GPTQ),
    'gptq': _rounding(_gptq('uint3', group_size=8), _round('uint3', group_size=8), _GPTQ),
    'gptq, act order': _rounding(
        _gptq('int3', group_size=4, act_order=True, static_groups=True), _round('int3', group_size=4), _GPTQ),
    'gptq, two-level scales': _rounding(
        _gptq('int3', group_size=4, two_level=True, static_groups=True), _round('int3', group_size=4, two_level=True),
        _GPTQ),
    'gptq, input channels': _rounding(
        _gptq('int3', axis=-1), _round('int3', axis=-1), _GPTQ, weight_only=True),
    'clip_search': _rounding(
        _clip_and_round(_grid('int3', group_size=8)), _round('int3', group_size=8), _CLIP),
    'adadim': Case(
        'linears', GRID, functools.partial(adadim.adadim, weight=_grid('int3', group_size=8)), _AXES,
        _round('int3', group_size=8), weight_only=True),
    'ranges, minmax': _calibrating(_ranges()),
    'ranges, average': _calibrating(_ranges(method='average')),
    'ranges, percentile': _calibrating(_ranges(method='percentile', percentile=99.0)),
    'ranges, token_wise': _calibrating(_ranges(method='token_wise', percentile=90.0)),
    'ranges, moving_average': _calibrating(_ranges(method='moving_average'), ordered=True),
    'ranges, symmetric': _calibrating(_ranges(symmetric=True), plainer=_ranges(3, symmetric=True)),
    'ranges, per channel': _calibrating(
        _ranges(per_channel=True), plainer=_ranges(3, per_channel=True))._replace(owns='operands'),
    'dynamic_ranges': _calibrating(
        _dynamic_ranges(_PER_TOKEN), plainer=_dynamic_ranges(quantizers.DynamicQuantizer(formats.parse('uint3'))),
        record=frozenset({'bits'})),
    # Law 8 exempts scales by formula, which promise nothing, and norm fusion, which serves methods behind it.
    'smooth_quant': _folding(smooth_quant.smooth_quant, _SCALE),
    'norm_fusion': _folding(norm_fusion.norm_fusion, {'largest'}, claimable=lambda site: site.reads_residual),
    'smooth_quant, searched': _searched_fold(
        smooth_quant.smooth_quant, _SCALE, search=True, weight=_grid('int4'), activation=_PER_TOKEN, candidates=6),
    'awq': _searched_fold(awq.awq, _SCALE, weight=_grid('uint3', group_size=8), candidates=5),
    'awq, two exponents': _searched_fold(
        awq.awq, _SCALE, weight=_grid('uint3', group_size=8), candidates=4, two_exponents=True),
    'aqas': _searched_fold(aqas.aqas, _SCALE, weight=_grid('uint4'), activation=_PER_TOKEN, candidates=6),
    'outlier_suppression': _searched_fold(
        outlier_suppression.outlier_suppression, _SHIFT_AND_SCALE, weight=_grid('int4'), activation=_PER_TENSOR,
        candidates=10),
    'outlier_suppression, per token': _searched_fold(
        outlier_suppression.outlier_suppression, _SHIFT_AND_SCALE, weight=_grid('int4'), activation=_PER_TOKEN,
        candidates=10),
    'layer_errors': Case(
        'linears', NOTHING, functools.partial(sensitivity.layer_errors, candidates=(_grid('int3'), _grid('uint4'))),
        frozenset({'errors'})),
}
MODELS = list(itertools.product(networks.STYLES, ('float32', 'bfloat16')))
# The model for which the programs of each case are compiled. Folds and ranges leave trees of few structures: all of a
# kind take one turn, and share programs; folds that of the encoder, whose residual branches they change.
_KINDS = {name: name if case.outcome is CODES else case.outcome for name, case in CASES.items()}
_TURNS = {**dict(zip(dict.fromkeys(_KINDS.values()), itertools.cycle(MODELS))), FOLD: ('bert', 'bfloat16')}
IN_TURN = {name: _TURNS[kind] for name, kind in _KINDS.items()}
