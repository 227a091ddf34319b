"""Learning: a learned clip of weights, trained over windows of two blocks, does what it is for and nothing else."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant import errors
from jaxquant.calibration import driver
from jaxquant.calibration import learning
from jaxquant.calibration import stores
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import rounding
from jaxquant.numerics import trees
from jaxquant.transforms import round_to_nearest
from tests import networks

_LAYERS = 4
_MODEL = staging.staged(networks.config('llama', layers=_LAYERS))
_BLOCK = _MODEL.blocks[0][1]
_FORMAT = formats.IntFormat(3)
_forward = networks.quick_jit(_BLOCK.forward)


@nodes.node('logit')
class LearnedClip:
  """Codes of the share sigmoid(logit) of each output channel's min-max range; gradients pass the rounding."""

  logit: jax.Array
  format: formats.IntFormat

  def scales(self, kernel):
    share = jax.nn.sigmoid(self.logit)
    return quantize.affine(*(share * end for end in quantize.group_range(kernel, axis=-2)), self.format)[0]

  def __call__(self, kernel):
    scale = self.scales(kernel)
    steps = rounding.straight_through_round(kernel / scale)
    return jnp.clip(steps, self.format.minimum, self.format.maximum) * scale


def _learned_clip(claims, *, epochs=20, optimizer=optax.adam(0.1)):
  """The learner of the clips of all claimed linears, which start at 98 % of the range."""

  def prepare(window):
    made = []
    for claim, params in zip(claims, window):
      for path in claim.names:
        width = trees.get(params, path)['kernel'].shape[-1]
        params = trees.put(params, f'{path}/kernel_quantizer', LearnedClip(jnp.full((1, width), 4.0), _FORMAT))
      made.append(params)
    return tuple(made)

  def trainable(window):
    return jax.tree_util.tree_map_with_path(lambda path, _: 'logit' in jax.tree_util.keystr(path), window)

  def finish(window):
    made, records = [], []
    for claim, params in zip(claims, window):
      records.append({})
      for path in claim.names:
        layer = dict(trees.get(params, path))
        clip, kernel = layer.pop('kernel_quantizer'), layer['kernel']
        records[-1][path] = {'share': jax.nn.sigmoid(clip.logit).mean()}
        rounded = quantize.from_scales(kernel, clip.scales(kernel), None, _FORMAT)
        params = trees.put(params, path, {**layer, 'kernel': rounded})
      made.append(params)
    return tuple(made), tuple(records)

  return learning.Learner(prepare, trainable, finish, optimizer, epochs)


def _steps(pattern='layers/.*', learner=_learned_clip):
  return [driver.Learning([(pattern, learner), ('.*', None)])]


_STEPS = _steps()
_ROUNDING = [driver.Step('linears', [
    ('layers/.*', functools.partial(round_to_nearest.round_to_nearest, weight=quantizers.WeightQuantizer(_FORMAT))),
    ('.*', None)])]


def _params():
  return networks.params('llama', _LAYERS)


def _batches():
  return [networks.tokens(4, seed=seed) for seed in range(3)]


def _run(steps=None, params=None, **kwargs):
  return driver.run(params or _params(), _MODEL, steps or _STEPS, _batches(), **{'window': 2, **kwargs})


_learned = functools.cache(_run)


def _streams(params):
  """Outputs of every second block of `params`, by the block's number."""
  xs, outputs = [jax.jit(_MODEL.embed)(params, batch) for batch in _batches()], {}
  for i in range(_LAYERS):
    xs = [_forward(trees.get(params, f'layers/{i}'), x) for x in xs]
    outputs[i] = jnp.concatenate(xs)
  return outputs


def _assert_same(first, second):
  assert jax.tree.structure(first.params) == jax.tree.structure(second.params)
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  assert first.decisions == second.decisions


def _clips(decisions):
  """What learning recorded, by path."""
  return {path: entry['_learned_clip'] for path, entry in decisions.items()}


class Interrupted(Exception):
  """What ends a run in the middle."""


class Kept(dict):
  """A store in memory, which counts what it is given."""

  def finished(self, path):
    return self.get(path)

  def save(self, path, params, decisions):
    assert path not in self, path
    self[path] = params, decisions


class LearningTest(parameterized.TestCase):

  def test_loss_goes_down_in_every_window(self):
    decisions = _learned().decisions
    self.assertLen(decisions, 7 * _LAYERS)
    for path, entry in _clips(decisions).items():
      self.assertLess(entry['loss_after'], 0.7 * entry['loss_before'], path)
      self.assertNotAlmostEqual(entry['share'], jax.nn.sigmoid(4.0), 3, path)
    losses = [_clips(decisions)[f'layers/{i}/mlp/down']['loss_after'] for i in range(_LAYERS)]
    self.assertEqual(losses, [losses[0]] * 2 + [losses[2]] * 2)
    self.assertNotEqual(losses[0], losses[2])

  def test_rounded_windows_are_nearer_to_full_precision_than_round_to_nearest(self):
    exact, learned, nearest = map(_streams, (_params(), _learned().params, _run(_ROUNDING).params))
    for i in (1, 3):
      error, rival = (np.mean(np.square(outputs[i] - exact[i])) for outputs in (learned, nearest))
      self.assertLess(error, 0.6 * rival)
      # The loss is that of the codes that are left: nothing is lost between training and rounding.
      np.testing.assert_allclose(
          _clips(_learned().decisions)[f'layers/{i}/mlp/up']['loss_after'], error, rtol=1e-4)

  def test_two_blocks_learn_together(self):
    """Blocks of a window are trained for what leaves its last one, so that another window gives other clips."""
    share = lambda result: _clips(result.decisions)['layers/0/mlp/down']['share']
    self.assertNotAlmostEqual(share(_learned()), share(_run(window=1)), 3)

  def test_only_what_is_trainable_changes(self):
    before, after = trees.arrays(_params()), trees.arrays(_learned().params)
    kernels = {path for path in before if path.startswith('layers') and path.endswith('/kernel')}
    codes = {f'{path}/{part}' for path in kernels for part in ('codes', 'scale')}
    self.assertEqual(set(before) - kernels, set(after) - codes)
    for path in set(before) - kernels:
      np.testing.assert_array_equal(after[path], before[path])

  def test_claims_of_a_part_of_a_window(self):
    result = _run(_steps('layers/[13]/mlp/.*'))
    rounded = [path for path in trees.linears(result.params)
               if isinstance(trees.get(result.params, path)['kernel'], qtensor.QTensor)]
    self.assertCountEqual(rounded, [f'layers/{i}/mlp/{name}' for i in (1, 3) for name in ('gate', 'up', 'down')])
    self.assertCountEqual(result.decisions, rounded)

  def test_arrays_that_came_in_outlive_donation(self):
    params = jax.tree.map(jnp.copy, _params())
    _run(params=params)
    jax.tree.map(np.testing.assert_array_equal, params, _params())

  def test_optimizer_whose_state_starts_as_the_parameters(self):
    """Its arrays may be donated once only."""
    slow = optax.GradientTransformation(
        lambda params: params,
        lambda updates, state, params: (jax.tree.map(lambda u, s, p: -u + 0 * (s - p), updates, state, params), state))
    learner = functools.partial(_learned_clip, epochs=2, optimizer=slow)
    decisions = _clips(_run(_steps(learner=learner)).decisions)['layers/0/mlp/up']
    self.assertLess(decisions['loss_after'], decisions['loss_before'])

  def test_windows_of_one_shape_share_one_compilation(self):
    calls = []

    def counted(params, x):
      calls.append(x)
      return _BLOCK.forward(params, x)

    block = _BLOCK._replace(forward=counted)
    model = _MODEL._replace(blocks=(*((path, block) for path, _ in _MODEL.blocks[:-1]), _MODEL.blocks[-1]))
    driver.run(_params(), model, _STEPS, _batches(), window=2)
    # Traced: two blocks in each of step and loss, one of the float stream and one of the quantized one.
    self.assertLen(calls, 6)

  def test_work_adds_up(self):
    progress = []
    _run(_steps('layers/[013]/mlp/.*'), report=progress.append)
    self.assertEqual([(entry.block, entry.done, entry.total) for entry in progress], [
        ('layers/0', 2, 3), ('layers/2', 3, 3)])
    self.assertIn('layers/1/mlp/up', progress[0].work)


class ResumingTest(absltest.TestCase):

  def test_killed_after_the_first_window_and_restarted_is_bit_identical(self):
    store, seen = Kept(), []

    def kill(progress):
      if progress.block == 'layers/2':
        raise Interrupted

    with self.assertRaises(Interrupted):
      _run(store=store, report=kill)
    self.assertCountEqual(store, ['layers/0', 'layers/1'])
    _assert_same(_run(store=store, report=seen.append), _learned())
    self.assertEqual(
        [(entry.block, entry.work == 'restored', entry.done) for entry in seen],
        [('layers/0', True, 2), ('layers/2', False, 4)])
    self.assertCountEqual(store, [path for path, _ in _MODEL.blocks])

  def test_half_a_window_counts_for_nothing(self):
    half = {'scale': jnp.zeros(3)}, {}
    store = Kept()
    store.finished = lambda path: half if path == 'layers/0' else None
    _assert_same(_run(store=store), _learned())

  def test_a_source_that_loads_block_by_block(self):
    class Counting(stores.InMemory):
      loaded = []

      def load(self, path):
        self.loaded.append(path)
        return super().load(path)

    source = Counting(_params(), _MODEL)
    _assert_same(_run(params=source), _learned())
    self.assertEqual(source.loaded, ['', *(path for path, _ in _MODEL.blocks), ''])


class RefusalsTest(parameterized.TestCase):

  def test_loss_that_is_not_finite(self):
    diverging = functools.partial(_learned_clip, optimizer=optax.sgd(jnp.inf))
    with self.assertRaisesRegex(
        errors.NonFiniteError, 'layers/0, layers/1: the loss of learning is (nan|inf) in epoch 1 of 20'):
      _run(_steps(learner=diverging))

  def test_target_that_is_not_finite(self):
    params = trees.put(_params(), 'layers/1/mlp_norm/scale', jnp.full(16, 3e38))
    with self.assertRaisesRegex(errors.NonFiniteError, 'the loss of learning is nan before the first step'):
      _run(params=params)

  def test_result_that_is_not_finite(self):
    def broken(claims):
      made = _learned_clip(claims)
      return made._replace(finish=lambda window: (
          tuple(trees.put(params, 'mlp/up/kernel', jnp.full((16, 32), jnp.nan)) for params in window), ({}, {})))

    with self.assertRaisesRegex(errors.NonFiniteError, 'layers/0: rewritten: non-finite values in mlp/up/kernel'):
      _run(_steps(learner=broken))

  def test_no_batches(self):
    with self.assertRaisesRegex(errors.UserError, 'learning needs at least one batch of tokens'):
      driver.run(_params(), _MODEL, _STEPS, [], window=2)


if __name__ == '__main__':
  absltest.main()
