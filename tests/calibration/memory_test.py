"""The estimate of memory: every part is what a run holds, told from shapes alone; what cannot fit is refused."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant import errors
from jaxquant.calibration import aliasing
from jaxquant.calibration import channels
from jaxquant.calibration import driver
from jaxquant.calibration import learning
from jaxquant.calibration import memory
from jaxquant.calibration import stores
from jaxquant.calibration import transform as transforms
from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import gptq
from jaxquant.transforms import round_to_nearest
from tests import networks

_LAYERS = 3
_MODEL = staging.staged(networks.config('llama', layers=_LAYERS))
_BATCHES = [networks.tokens(rows) for rows in (2, 3)]
_round = functools.partial(round_to_nearest.round_to_nearest, weight=quantizers.WeightQuantizer(formats.IntFormat(4)))
_WEIGHTS = driver.Step('linears', [('layers/.*', _round)], every=False)


def _params():
  return networks.params('llama', _LAYERS)


def _hessians(claim):
  """A transform that gathers second moments and halves the kernels in float."""

  def init(params, batch):
    return {name: channels.SecondMoment.empty(batch.activations[name].shape[-1]) for name in claim.by_site()}

  def observe(state, batch):
    return {name: moment.observed(batch.activations[name]) for name, moment in state.items()}

  def search(params, state):
    del state
    for path in claim.names:
      params = trees.put(params, f'{path}/kernel', trees.get(params, path)['kernel'] / 2)
    return params, {}, {}

  return transforms.Transform(init, observe, search)


def _biases(claims):
  """A learner of a bias for every claimed linear."""

  def prepare(window):
    for claim in claims:
      window = tuple(functools.reduce(_with_bias, claim.names, params) for params in window)
    return window

  is_bias = lambda path, _: 'bias' in jax.tree_util.keystr(path)
  trainable = lambda window: jax.tree_util.tree_map_with_path(is_bias, window)
  return learning.Learner(prepare, trainable, lambda window: (window, tuple({} for _ in window)), optax.adam(1e-3), 1)


def _with_bias(params, path):
  return trees.put(params, f'{path}/bias', jnp.zeros(trees.get(params, path)['kernel'].shape[-1]))


def _estimate(*steps, params=None, batches=_BATCHES, **options):
  return memory.estimate(_params() if params is None else params, _MODEL, steps, batches, **options)


def _bytes(tree):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class PartsTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_blocks_are_what_a_run_makes_beside_the_model(self, window):
    params = _params()
    result = driver.run(params, _MODEL, [_WEIGHTS], [], window=window)
    old = set(map(id, jax.tree.leaves(params)))
    made = [leaf for leaf in jax.tree.leaves(result.params) if id(leaf) not in old]
    self.assertLen(made, 2 * 7 * _LAYERS)  # codes and scales: the other arrays are those of the model
    parts = _estimate(_WEIGHTS, window=window).parts
    self.assertEqual(parts['model'], _bytes(params))
    self.assertEqual(parts['finished blocks'] + parts['window of blocks'], _bytes(made))
    self.assertEqual(parts['window of blocks'], _bytes(made) // _LAYERS)  # the last one, at either size of windows
    self.assertEqual((parts['statistics'], parts['learning'], parts['streams']), (0, 0, 0))

  def test_a_source_is_not_in_memory_as_a_whole(self):
    params = _params()
    parts = _estimate(_WEIGHTS, params=stores.InMemory(params, _MODEL)).parts
    rounded = driver.run(params, _MODEL, [_WEIGHTS], []).params['layers']
    # Most is needed in the last layer, which is there in float and as codes and scales, with the norms of both.
    self.assertEqual(parts['model'], 0)
    self.assertEqual(parts['finished blocks'], _bytes([rounded['0'], rounded['1']]))
    self.assertEqual(parts['window of blocks'], _bytes(params['layers']['2']) + _bytes(rounded['2']) - 2 * 4 * 16)

  def test_statistics_are_those_of_the_transform_with_the_largest_state(self):
    step = driver.Step('linears', [('layers/.*', _hessians)], every=False)
    moment = lambda features: 4 * (features**2 + 1)
    self.assertEqual(_estimate(step, _WEIGHTS).parts['statistics'], 3 * moment(16) + moment(32))
    self.assertEqual(_estimate(step._replace(schedule='sequential'), _WEIGHTS).parts['statistics'], moment(32))
    for parts in (_estimate(step).parts, _estimate(step, batches=[_BATCHES[0]] * 4).parts):
      self.assertEqual(parts['statistics'], 3 * moment(16) + moment(32))

  def test_streams_are_those_that_flow_and_their_copies_in_a_window(self):
    step = driver.Step('linears', [('layers/.*', _hessians)], every=False)
    batches = [jax.ShapeDtypeStruct((512, 8), np.int32)]  # enough to make the streams the largest part
    streams = lambda *steps, **options: (
        _estimate(*steps, batches=batches, **options).parts['streams'] / (4 * 512 * 8 * 16))
    self.assertEqual(streams(step), 1)
    self.assertEqual(streams(step, _WEIGHTS), 1)
    self.assertEqual(streams(step, step._replace(stream='quantized')), 2)
    self.assertEqual(streams(step, step._replace(stream='quantized'), window=2), 3)
    self.assertEqual(streams(driver.Learning([('layers/.*', _biases)], every=False)), 3)  # with the targets

  def test_streams_are_split_as_the_batches_are(self):
    mesh = jax.sharding.AbstractMesh((8,), ('data',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    batches = [jax.ShapeDtypeStruct((16, 8), np.int32, sharding=sharding), jax.ShapeDtypeStruct((4, 8), np.int32)]
    step = driver.Step('linears', [('layers/.*', _hessians)], every=False)
    self.assertEqual(_estimate(step, batches=batches).parts['streams'], 4 * (2 + 4) * 8 * 16)

  def test_learning_holds_what_is_trained_its_gradients_and_the_optimizers_state(self):
    biases = 2 * 16  # of q and o in each block
    parts = _estimate(driver.Learning([('layers/./attention/[qo]', _biases)], every=False), window=2).parts
    self.assertEqual(parts['learning'], 4 * (2 * biases * (1 + 1 + 2) + 1))  # Adam: two moments and a counter
    self.assertEqual(parts['finished blocks'] + parts['window of blocks'], 4 * 2 * biases)

  def test_shapes_of_a_large_model_are_enough(self):
    config = dataclasses.replace(
        networks.config('llama', 'bfloat16', layers=40), width=8192, heads=64, kv_heads=8, head_dim=128,
        feed_forward=28672, vocabulary=128256, max_length=2048)
    params, model = validate.abstract_params(config), staging.staged(config)
    step = driver.Step('linears', [('layers/.*', _hessians)], every=False, stream='quantized')
    batches = [jax.ShapeDtypeStruct((16, 2048), np.int32)] * 8
    parts = memory.estimate(params, model, [step, _WEIGHTS], batches).parts
    self.assertEqual(parts['model'], 4 * trees.size(params))
    self.assertEqual(parts['statistics'], 4 * (3 * 8192**2 + 28672**2 + 4))
    self.assertEqual(parts['streams'], 2 * 8 * 16 * 2048 * 8192)


class AliasingTest(absltest.TestCase):

  def test_arrays_that_a_function_leaves_alone_are_the_very_objects(self):
    kernel = quantizers.WeightQuantizer(formats.IntFormat(4)).quantized(jnp.arange(12.0).reshape(4, 3))
    tree = {'a': jnp.ones(3), 'b': {'kernel': kernel, 'c': jnp.zeros(3)}, 'd': None}

    def function(tree, factor):
      kernel = dataclasses.replace(tree['b']['kernel'], scale=tree['b']['kernel'].scale * factor)
      return {'a': tree['a'], 'b': {'kernel': kernel, 'c': tree['b']['c'] + 1}}, tree['a'], factor

    compiled = aliasing.Jit(function)
    made, again, factor = compiled(tree, 2.0)
    self.assertIs(made['a'], tree['a'])
    self.assertIs(again, tree['a'])
    self.assertIs(made['b']['kernel'].codes, kernel.codes)
    np.testing.assert_array_equal(made['b']['kernel'].scale, 2 * kernel.scale)
    self.assertIsNot(made['b']['c'], tree['b']['c'])
    self.assertEqual(factor, 2)
    shapes = jax.eval_shape(lambda: tree)
    abstract = compiled.eval_shape(shapes, 2.0)
    self.assertIs(abstract[0]['b']['kernel'].codes, shapes['b']['kernel'].codes)
    self.assertEqual(jax.tree.structure(abstract), jax.tree.structure((made, again, factor)))


class RefusalsTest(parameterized.TestCase):

  @parameterized.parameters(*memory._REMEDIES)
  def test_what_cannot_fit_is_refused_naming_the_largest_part(self, largest):
    parts = dict.fromkeys(memory._REMEDIES, 10**6) | {largest: 3 * 10**9}
    estimate = memory.Estimate(parts)
    estimate.check(None)
    estimate.check(estimate.total)
    with self.assertRaisesRegex(
        errors.UserError,
        f'calibration needs 3.00 GB on a device of 900.00 MB, the largest part, 3.00 GB, for the {largest}: [a-z ]+'):
      estimate.check(9 * 10**8)

  def test_line_names_every_part_that_is_there(self):
    self.assertEqual(
        str(memory.Estimate({'model': 2_500_000_000, 'statistics': 0, 'streams': 12_000_000})),
        'at least 2.51 GB a device: model 2.50 GB, streams 12.00 MB')

  def test_no_batches_where_statistics_are_needed(self):
    rules = [('layers/.*', functools.partial(gptq.gptq, weight=quantizers.WeightQuantizer(formats.IntFormat(4))))]
    with self.assertRaisesRegex(errors.UserError, 'calibration needs at least one batch of tokens'):
      _estimate(driver.Step('linears', rules, every=False), batches=[])

  def test_mistakes_that_shapes_tell_are_raised(self):
    grid = quantizers.WeightQuantizer(formats.IntFormat(4), group_size=5)
    rules = [('layers/.*', functools.partial(_round, weight=grid))]
    with self.assertRaisesRegex(errors.UserError, 'group size 5 does not divide 16'):
      _estimate(driver.Step('linears', rules, every=False))


if __name__ == '__main__':
  absltest.main()
