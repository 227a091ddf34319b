"""The driver: which block runs which transform on which activations, and what it refuses."""

import functools
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import plan
from jaxquant.calibration import transform
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import dynamic_ranges
from jaxquant.transforms import round_to_nearest
from tests import networks

_LAYERS = 3
_CONFIG = networks.config('llama', layers=_LAYERS)
_MODEL = staging.staged(_CONFIG)
_grid = lambda **options: quantizers.WeightQuantizer(formats.IntFormat(3), **options)
_round = functools.partial(round_to_nearest.round_to_nearest, weight=_grid())
_ranges = functools.partial(activation_ranges.activation_ranges, bits=8)
_WEIGHTS = driver.Step('linears', [('layers/.*', _round), ('.*', None)])
_SITES = driver.Step('sites', [('layers/.*', _ranges), ('.*', None)])


def _params():
  return networks.params('llama', _LAYERS)


def _batches(*rows):
  return [networks.tokens(count, seed=seed) for seed, count in enumerate(rows or (2, 3))]


def _kernels(params):
  return {path: trees.get(params, path)['kernel'] for path in trees.linears(params)}


def _run(steps, batches=None, params=None, model=_MODEL, **kwargs):
  return driver.run(params or _params(), model, steps, batches or _batches(), **kwargs)


_forward, _taps = map(networks.quick_jit, (_MODEL.blocks[0][1].forward, _MODEL.blocks[0][1].taps))


def _streams(params):
  """Inputs of the first block, from the batches together."""
  return jax.jit(_MODEL.embed)(params, jnp.concatenate(_batches()))


def _assert_ranges(decisions, path, activations):
  """The recorded ranges of the block at `path` are the extrema of its `activations`."""
  for site in _MODEL.blocks[0][1].sites:
    seen = activations[site.name]
    record = decisions[f'{path}/{site.name}']['activation_ranges']
    np.testing.assert_allclose([record['low'], record['high']], [seen.min(), seen.max()], rtol=1e-4)


class RoutingTest(parameterized.TestCase):

  def test_rules_route_by_the_path_from_the_root(self):
    step = driver.Step('linears', [('layers/1/attention/[qk]|head', _round), ('.*', None)])
    rounded = [path for path, kernel in _kernels(_run([step]).params).items() if isinstance(kernel, qtensor.QTensor)]
    self.assertCountEqual(rounded, ['layers/1/attention/q', 'layers/1/attention/k', 'head'])

  def test_what_no_transform_owns_comes_back_identical(self):
    step = driver.Step('linears', [('layers/2/mlp/.*', _round), ('.*', None)])
    before, after = trees.arrays(_params()), trees.arrays(_run([step]).params)
    touched = {path for path in before if path.startswith('layers/2/mlp/') and path.endswith('/kernel')}
    self.assertLen(touched, 3)
    self.assertContainsSubset(set(before) - touched, after)
    for path in set(before) - touched:
      np.testing.assert_array_equal(after[path], before[path])

  def test_no_rule_with_a_transform_changes_nothing(self):
    result = _run([driver.Step('linears', [('.*', None)]), driver.Step('sites', [('.*', None)])])
    jax.tree.map(np.testing.assert_array_equal, result.params, _params())
    self.assertEqual(result.decisions, {})

  def test_each_owner_has_its_own_options(self):
    step = driver.Step('linears', [
        ('layers/0/.*', _round), ('layers/1/.*', functools.partial(_round, weight=_grid(group_size=4))), ('.*', None)])
    kernels = _kernels(_run([step]).params)
    self.assertEqual(kernels['layers/0/attention/q'].groups, 1)
    self.assertEqual(kernels['layers/1/attention/q'].groups, 4)

  @parameterized.parameters(*networks.STYLES)
  def test_every_linear_and_site_of_a_model_can_be_owned(self, style):
    params, model = networks.params(style), staging.staged(networks.config(style))
    axis = lambda path: -1 if path == 'embedding' else -2  # A tied head sums over the features of its rows.
    rounding = driver.Step('linears', [
        ('embedding', functools.partial(_round, weight=_grid(axis=-1))), ('.*', _round)])
    result = _run([rounding, driver.Step('sites', [('.*', _ranges)])], params=params, model=model)
    self.assertTrue(all(isinstance(kernel, qtensor.QTensor) for kernel in _kernels(result.params).values()))
    sites = [site.name for site in staging.model_sites(networks.config(style))]
    self.assertCountEqual(trees.inputs(result.params), sites)
    self.assertCountEqual(result.decisions, [*trees.linears(params), *sites])
    expected = jax.jit(functools.partial(quantize.quantize, fmt=formats.IntFormat(3)), static_argnames='axis')
    want = {path: expected(kernel, axis=axis(path)) for path, kernel in _kernels(params).items()}
    jax.tree.map(np.testing.assert_array_equal, _kernels(result.params), want)
    logits = networks.evaluator(networks.config(style), jit=networks.quick_jit)(result.params, networks.tokens(2))
    self.assertTrue(jnp.isfinite(logits).all())

  def test_a_tied_head_takes_scales_of_rows_only_where_its_input_is_quantized(self):
    """In either order: those of features vary along the sum over them."""
    params, model = networks.params('opt'), staging.staged(networks.config('opt'))
    ranges = driver.Step('sites', [('head/input', _ranges)], every=False)
    for weight in (_grid(), _grid(axis=-1)):
      rounding = driver.Step('linears', [('embedding', functools.partial(_round, weight=weight))], every=False)
      for steps in ([rounding, ranges], [ranges, rounding]):
        if weight.axis == -1:
          _run(steps, params=params, model=model)
          continue
        with self.assertRaisesRegex(errors.UserError, '^embedding: .* cannot meet integer activations'):
          _run(steps, params=params, model=model)

  def test_warnings_are_reported_by_the_path_from_the_root(self):
    careful = lambda claim: _round(claim)._replace(
        warn=lambda params, record: {name: f'{len(params)} entries' for name in record if name.endswith('up')})
    progress = []
    _run([driver.Step('linears', [('layers/[01]/mlp/.*', careful)], every=False)], report=progress.append)
    self.assertEqual([done.warnings for done in progress],
                     [{'layers/0/mlp/up': '4 entries'}, {'layers/1/mlp/up': '4 entries'}])

  def test_decisions_are_plain_numbers_by_path_and_blocks_are_reported(self):
    progress = []
    result = _run([_WEIGHTS, _SITES], report=progress.append)
    self.assertEqual(json.loads(json.dumps(result.decisions)), result.decisions)
    fields = lambda path: {method: set(entry) for method, entry in result.decisions[path].items()}
    self.assertEqual(fields('layers/1/attention/q'), {'round_to_nearest': {'relative_error', 'zeros'}})
    self.assertEqual(fields('layers/1/mlp/down/input'), {'activation_ranges': {'low', 'high'}})
    self.assertEqual([(entry.block, entry.done, entry.total) for entry in progress], [
        (f'layers/{i // 2}', i + 1, 2 * _LAYERS) for i in range(2 * _LAYERS)])
    self.assertIn('attention/q, attention/v', progress[0].work)
    self.assertIn('mlp/down/input', progress[1].work)


  def test_methods_on_one_name_keep_their_records_apart(self):
    def noting(claim, value):
      search = lambda params: (params, {name: {'error': jnp.float32(value)} for name in claim.names}, {})
      return transform.without_data(search, lambda params: None)

    def other(claim, value):
      return noting(claim, value)

    factories = [functools.partial(noting, value=1), functools.partial(other, value=2),
                 functools.partial(noting, value=3), functools.partial(functools.partial(noting), value=4)]
    steps = [driver.Step('linears', [('layers/1/mlp/(up|down)', factory)], every=False) for factory in factories]
    found = {'noting': {'error': 1}, 'other': {'error': 2}, 'noting_2': {'error': 3}, 'noting_3': {'error': 4}}
    self.assertEqual(_run(steps).decisions, {f'layers/1/mlp/{name}': found for name in ('down', 'up')})


class StreamsTest(parameterized.TestCase):

  def test_a_step_observes_what_the_steps_before_it_made(self):
    result = _run([_WEIGHTS, _SITES])
    rounded = trees.get(_run([_WEIGHTS]).params, 'layers/0')
    _assert_ranges(result.decisions, 'layers/0', _taps(rounded, _streams(_params()))[1])

  def test_a_step_observes_the_float_or_the_quantized_stream(self):
    stream, ends = _streams(_params()), {}
    rounded = trees.get(_run([_WEIGHTS]).params, 'layers/1')
    for name in plan.STREAMS:
      result = _run([_WEIGHTS, _SITES._replace(stream=name)])
      source = trees.get(_params() if name == 'float' else result.params, 'layers/0')
      _assert_ranges(result.decisions, 'layers/1', _taps(rounded, _forward(source, stream))[1])
      ends[name] = result.decisions['layers/1/mlp/input']['activation_ranges']['high']
    self.assertNotAlmostEqual(ends['float'], ends['quantized'], 3)

  def test_sequential_steps_observe_site_by_site(self):
    """In each stage the linears before are rounded already."""
    seen = {}

    def watching(claim):
      def search(params, state):
        return params, {name: {} for name in claim.names}, {}

      def rewrite(params, record, decisions):
        del record, decisions
        seen[claim.names] = [path for path, kernel in _kernels(params).items() if isinstance(kernel, qtensor.QTensor)]
        return round_to_nearest.round_linears(params, claim.names, _grid())[0]

      return transform.Transform(lambda params, batch: {}, lambda state, batch: state, search, rewrite)

    step = driver.Step('linears', [('layers/0/.*', watching), ('.*', None)], schedule='sequential')
    _run([step])
    stages = [('attention/k', 'attention/q', 'attention/v'), ('attention/o',), ('mlp/gate', 'mlp/up'), ('mlp/down',)]
    self.assertEqual([sorted(names) for names in seen], [sorted(names) for names in stages])
    for done, rounded in enumerate(seen.values()):
      self.assertCountEqual(rounded, [name for names in stages[:done] for name in names])

  def test_the_teacher_is_the_float_model_on_the_float_stream(self):
    def comparing(claim):
      site = claim.names[0]

      def observe(state, batch):
        return jnp.maximum(state, jnp.max(jnp.abs(batch.teacher[site])))

      search = lambda params, state: (params, {site: {'most': state}}, {})
      return transform.Transform(lambda params, batch: jnp.float32(0), observe, search, needs_teacher=True)

    step = driver.Step('sites', [('layers/1/mlp/input', comparing), ('.*', None)], stream='quantized')
    got = _run([_WEIGHTS, step]).decisions['layers/1/mlp/input']['comparing']['most']
    stream = _forward(trees.get(_params(), 'layers/0'), _streams(_params()))
    want = np.abs(_taps(trees.get(_params(), 'layers/1'), stream)[1]['mlp/input']).max()
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_batches_of_different_sizes_count_as_one_set(self):
    step = driver.Step('sites', [('layers/.*', functools.partial(_ranges, method='average')), ('.*', None)])
    parts, whole = (_run([step], batches).decisions for batches in (_batches(), [jnp.concatenate(_batches())]))
    for site in whole:
      found = (list(made[site]['activation_ranges'].values()) for made in (parts, whole))
      np.testing.assert_allclose(*found, rtol=1e-4, err_msg=site)

  def test_every_sequence_has_an_identity_of_its_own(self):
    def counting(claim):
      site = claim.names[0]

      def observe(state, batch):
        return state.at[batch.ids].add(batch.activations[site].shape[0] // batch.ids.shape[0])

      search = lambda params, state: (params, {site: {'seen': state}}, {})
      return transform.Transform(lambda params, batch: jnp.zeros(6, jnp.int32), observe, search)

    step = driver.Step('sites', [('layers/1/mlp/input', counting), ('.*', None)])
    self.assertEqual(_run([step], _batches(2, 1, 3)).decisions, {'layers/1/mlp/input': {'counting': {'seen': [1] * 6}}})

  def test_decisions_reach_rewrite_as_python_values(self):
    # The axis of a QTensor is static: no traced search could choose it.
    def choosing(claim):
      def search(params, state):
        return params, {}, {path: {'axis': jnp.argmax(jnp.array([0, 1]))} for path in claim.names}

      def rewrite(params, record, decisions):
        del record
        for path in claim.names:
          axis = (-1, -2)[decisions[path]['axis']]
          kernel = quantize.quantize(trees.get(params, path)['kernel'], formats.IntFormat(4), axis=axis)
          params = trees.put(params, f'{path}/kernel', kernel)
        return params

      return transform.Transform(lambda params, batch: {}, lambda state, batch: state, search, rewrite)

    result = _run([driver.Step('linears', [('layers/0/mlp/up', choosing), ('.*', None)])])
    self.assertEqual(result.decisions, {'layers/0/mlp/up': {'choosing': {'axis': 1}}})
    self.assertEqual(trees.get(result.params, 'layers/0/mlp/up/kernel').axis, -2)


class CompilingTest(absltest.TestCase):

  def test_blocks_of_one_shape_share_one_compilation(self):
    block = _MODEL.blocks[0][1]
    traced = mock.Mock(forward=mock.Mock(wraps=block.forward), taps=mock.Mock(wraps=block.taps))
    counted = block._replace(forward=traced.forward, taps=traced.taps)
    head = _MODEL.blocks[-1]
    model = _MODEL._replace(blocks=(*((f'layers/{i}', counted) for i in range(_LAYERS)), head))
    step = driver.Step('sites', [('layers/.*', _ranges), ('.*', None)])
    _run([step], _batches(2, 2), model=model)
    self.assertEqual((traced.taps.call_count, traced.forward.call_count), (1, 1))
    # The quantized blocks are trees of another structure: one more for these.
    _run([step._replace(stream='quantized')], _batches(2, 2), model=model)
    self.assertEqual(traced.forward.call_count, 2)


class RefusalsTest(parameterized.TestCase):

  def test_weights_that_are_not_finite_by_path(self):
    params = trees.put(_params(), 'layers/1/attention_norm/scale', jnp.full(16, jnp.nan))
    with self.assertRaisesRegex(errors.NonFiniteError, 'layers/1: non-finite values in attention_norm/scale$'):
      _run([_SITES], params=params)

  @parameterized.parameters(
      (driver.Step('linears', [('layers/.*', _round)]), 'rules for linears: no rule claims (embedding|head)'),
      (driver.Step('linears', [('layers/7/.*', _round), ('.*', None)]), "rules for linears: 'layers/7/.*' wins none"),
      (driver.Step('sites', [('layers/./attention/q', _ranges), ('.*', None)]), 'rules for sites: .* wins none of 13'))
  def test_rules_that_do_not_fit_the_model(self, step, message):
    with self.assertRaisesRegex(errors.UserError, message):
      _run([step])

  def test_groups_that_do_not_divide_by_path(self):
    step = driver.Step('linears', [('.*', functools.partial(_round, weight=_grid(group_size=5)))])
    with self.assertRaisesRegex(errors.UserError, 'attention/k: group size 5 does not divide 16'):
      _run([step])

  def test_kernels_that_hold_codes_already(self):
    with self.assertRaisesRegex(errors.UserError, 'attention/k: already quantized to int3'):
      _run([_WEIGHTS, _WEIGHTS])

  @parameterized.parameters(
      ({'stream': 'teacher'}, "unknown stream 'teacher'; there are float, quantized"),
      ({'schedule': 'random'}, "unknown schedule 'random'; there are block, sequential"),
      ({'owns': 'norms'}, "unknown kind of names 'norms'; there are linears, sites, operands"))
  def test_unknown_words(self, change, message):
    with self.assertRaisesRegex(errors.UserError, message):
      _run([_WEIGHTS._replace(**change)])

  def test_activations_that_are_not_finite(self):
    params = trees.put(_params(), 'layers/1/attention_norm/scale', jnp.full(16, 1e38))
    step = _SITES._replace(rules=[('layers/1/.*', _ranges), ('.*', None)])
    with self.assertRaisesRegex(errors.NonFiniteError, 'layers/1: activations: non-finite values'):
      _run([step], params=params)

  def test_a_site_that_has_a_quantizer_already(self):
    with self.assertRaisesRegex(errors.UserError, 'attention/input has a quantizer already'):
      _run([_SITES, _SITES])

  def test_no_batches_where_statistics_are_needed(self):
    with self.assertRaisesRegex(errors.UserError, 'calibration needs at least one batch of tokens'):
      driver.run(_params(), _MODEL, [_SITES], [])

  @parameterized.parameters((0, 8), (2, 0))
  def test_a_batch_without_tokens_where_statistics_are_needed(self, rows, length):
    with self.assertRaisesRegex(errors.UserError, '^calibration has a batch without tokens, which says nothing'):
      driver.run(_params(), _MODEL, [_SITES], [*_batches(), jnp.zeros((rows, length), jnp.int32)])

  def test_what_is_no_list_of_batches_and_no_step(self):
    with self.assertRaisesRegex(errors.UserError, r'^batches is a list of arrays, not one array of shape \('):
      driver.run(_params(), _MODEL, [_SITES], jnp.stack(_batches(2, 2)))
    for steps in (_WEIGHTS, [_round]):
      with self.assertRaisesRegex(errors.UserError, '^steps are driver.Step or driver.Learning, not a '):
        driver.run(_params(), _MODEL, steps, [])
    again = driver.run(_params(), _MODEL, [_SITES], iter(_batches()))
    jax.tree.map(np.testing.assert_array_equal, again.params, _run([_SITES]).params)

  def test_groups_of_features_that_do_not_divide_by_site(self):
    quantizer = quantizers.DynamicQuantizer(formats.parse('uint8'), group_size=7)
    step = driver.Step('sites', [('layers/.*', functools.partial(dynamic_ranges.dynamic_ranges, quantizer=quantizer))],
                       every=False)
    with self.assertRaisesRegex(errors.UserError, '^attention/input: group size 7 does not divide 16 elements$'):
      _run([step])

  def test_no_batches_are_fine_where_none_is_needed(self):
    result = driver.run(_params(), _MODEL, [_WEIGHTS], [])
    jax.tree.map(np.testing.assert_array_equal, result.params, _run([_WEIGHTS]).params)


if __name__ == '__main__':
  absltest.main()
