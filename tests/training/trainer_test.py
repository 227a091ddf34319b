"""The trainer: the same training on one device and on eight, and a loop that does everything at its step.

Run with an argument, this file is the program on eight devices that one of its tests starts.
"""

import json
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant import errors
from jaxquant.layers import sharding
from jaxquant.models import staging
from jaxquant.numerics import trees
from jaxquant.training import optimizer
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.training import step as training_step
from jaxquant.training import trainer
from tests import networks
from tests import source

_MODEL = networks.config('llama')


def _rows(step: int) -> np.ndarray:
  return np.random.default_rng(step).integers(0, 32, (16, 9)).astype(np.int32)


def _train(devices: int, fully_sharded: bool = False, microbatches: int = 1) -> dict:
  """Three steps on the first devices: metrics, sums over the arrays of the state, and whether these stayed in place."""
  sites = tuple(site.name for site in staging.model_sites(_MODEL))
  params = qat.prepare(networks.params('llama'), qat.QATConfig(), sites)
  tx = optimizer.make(optimizer.OptimizerConfig(learning_rate=0.01, warmup_steps=1, epsilon=1e-3), 10)
  objective = training_step.Objective(_MODEL, regularizers.OutputKurtosis(1e-3))
  fitter = trainer.Trainer(
      objective, tx, sharding.data_mesh(jax.devices()[:devices]), fully_sharded=fully_sharded,
      microbatches=microbatches)
  state, metrics = fitter.initialize(params), []
  wanted = jax.tree.map(lambda leaf: leaf.sharding, fitter.abstract_state(params))
  in_place = []
  with jax.set_mesh(fitter.mesh):
    for step in range(3):
      in_place.append(jax.tree.all(jax.tree.map(
          lambda leaf, want: leaf.sharding.is_equivalent_to(want, leaf.ndim), state, wanted)))
      state, values = fitter.step(state, _rows(step), step + 1)
      metrics.append({name: float(value) for name, value in values.items()})
  kernel = state.params['layers']['0']['mlp']['up']['kernel']
  return {
      'metrics': metrics, 'in_place': in_place, 'shard': kernel.addressable_shards[0].data.shape,
      'moment': [leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state.optimizer)
                 if leaf.shape == kernel.shape][0],
      'sums': {path: float(jnp.sum(jnp.abs(leaf))) for path, leaf in trees.arrays(state.params).items()}}


class DevicesTest(absltest.TestCase):

  def test_devices_and_shardings_and_microbatches_train_alike(self):
    one, replicated, sharded = json.loads(source.output_on_eight_devices(__file__, 'devices'))
    for run, shard in ((one, [16, 32]), (replicated, [16, 32]), (sharded, [16, 4])):
      self.assertEqual((run['shard'], run['moment'], run['in_place']), (shard, shard, [True] * 3))
      for got, want in zip(run['metrics'], one['metrics']):
        self.assertEqual(set(got), {'loss', 'cross_entropy', 'kurtosis', 'gradient_norm'})
        np.testing.assert_allclose([got[name] for name in want], list(want.values()), rtol=1e-3)
      for path, total in one['sums'].items():
        np.testing.assert_allclose(run['sums'][path], total, rtol=1e-3, atol=1e-4, err_msg=path)
    losses = [values['loss'] for values in one['metrics']]
    self.assertGreater(max(losses) - min(losses), 0.01)


class _Stop:
  """Asks to leave after so many steps."""

  def __init__(self, steps: float = float('inf')):
    self.left = steps

  def requested(self) -> bool:
    """Whether they are done, of which each call is one more."""
    self.left -= 1
    return self.left <= 0


class _Batches:
  """Batches that know how many were taken."""

  def __init__(self):
    self.taken = 0

  def __next__(self):
    self.taken += 1
    return {'tokens': _rows(self.taken)}

  def get_state(self):
    """The position."""
    return self.taken


class FitTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.fitter = trainer.Trainer(training_step.Objective(_MODEL), optax.sgd(0.1), sharding.data_mesh())

  def setUp(self):
    super().setUp()
    self.calls = []

  def _fit(self, schedule: trainer.Schedule, start: int = 0, stop=_Stop(), poison: int | None = None):
    """Runs the loop with every hook writing down what it is called with."""
    note = lambda name: lambda *arguments: self.calls.append((name, *arguments))

    def validate(step, state):
      self.calls.append(('validate', step, int(state.step)))
      return {'cross_entropy': step}

    def save(step, state, metrics, position):
      self.calls.append(('save', step, int(state.step), metrics, position))

    hooks = {name: note(name) for name in trainer.Hooks._fields} | {'validate': validate, 'save': save}
    state = self.fitter.initialize(networks.params('llama'))._replace(step=jnp.int32(start))
    run, batches = self.fitter.step, _Batches()

    def step(state, rows, number):
      if state.step == poison:
        state = state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))
      return run(state, rows, number)

    with mock.patch.object(self.fitter, 'step', step):
      return self.fitter.fit(state, batches, schedule, trainer.Hooks(**hooks), stop), batches

  def _steps(self, name: str) -> list[int]:
    return [call[1] for call in self.calls if call[0] == name]

  def test_everything_happens_at_its_step(self):
    self.fitter = trainer.Trainer(training_step.Objective(_MODEL), optax.sgd(0.1), sharding.data_mesh())  # not compiled
    state, batches = self._fit(trainer.Schedule(7, log_every=4, save_every=3, visit=frozenset({0, 2, 7})))
    self.assertEqual((state.step, batches.taken), (7, 7))
    self.assertEqual(self._steps('visit'), [0, 2, 7])
    self.assertEqual([call[1:] for call in self.calls if call[0] == 'validate'], [(i, i) for i in (0, 2, 3, 6, 7)])
    # A save or a visit logs too, so that what it costs is not counted as training.
    self.assertEqual(self._steps('log'), [2, 3, 4, 6, 7])
    self.assertEqual([call[2]['steps'] for call in self.calls if call[0] == 'log'], [1, 1, 1, 2, 1])
    saves = [call[1:] for call in self.calls if call[0] == 'save']
    self.assertEqual(saves, [(i, i, {'cross_entropy': i}, i) for i in (3, 6, 7)])
    self.assertEqual(self.calls[-1], ('wait',))
    metrics = next(call[2] for call in self.calls if call[0] == 'log')
    self.assertContainsSubset({'loss', 'cross_entropy', 'gradient_norm', 'seconds', 'steps'}, metrics)
    self.assertTrue(all(isinstance(value, (int, float)) for value in metrics.values()))

  def test_a_step_takes_over_the_memory_of_the_state(self):
    state = self.fitter.initialize(networks.params('llama'))
    after, _ = self.fitter.step(state, _rows(0), 1)
    self.assertTrue(all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params)))
    self.assertFalse(any(leaf.is_deleted() for leaf in jax.tree.leaves((after, networks.params('llama')))))

  def test_kurtosis_is_measured_at_the_steps_that_are_due(self):
    objective = training_step.Objective(_MODEL, regularizers.OutputKurtosis(1e-3, every=3))
    self.fitter = trainer.Trainer(objective, optax.sgd(0.1), sharding.data_mesh())
    self._fit(trainer.Schedule(7, 1, 7, frozenset()))
    logs = {call[1]: call[2] for call in self.calls if call[0] == 'log'}
    self.assertEqual([step for step, metrics in logs.items() if 'kurtosis' in metrics], [3, 6])
    for step, metrics in logs.items():
      penalty = 3e-3 * 7 * metrics['kurtosis'] if step in (3, 6) else 0
      self.assertAlmostEqual(metrics['loss'] - metrics['cross_entropy'], penalty, delta=1e-5)
    # Either program is compiled once, and its first step is not part of the measured speed.
    self.assertEqual(self._steps('compiled'), [1, 3])
    self.assertEqual([metrics['steps'] for metrics in logs.values()], [0, 1, 0, 1, 1, 1, 1])

  def test_a_later_start_goes_on_from_there(self):
    state, batches = self._fit(trainer.Schedule(5, 1, 5, frozenset({0, 4})), start=3)
    self.assertEqual((state.step, batches.taken), (5, 2))
    self.assertEqual((self._steps('visit'), self._steps('log'), self._steps('save')), ([4], [4, 5], [5]))

  def test_a_checkpoint_has_metrics_of_its_own_step_alone(self):
    # A later start knows nothing of the measurements before it, and a step that a stop chose is not measured.
    with self.assertRaises(trainer.Interrupted):
      self._fit(trainer.Schedule(6, 10, 2, frozenset({3})), start=2, stop=_Stop(3))
    self.assertEqual([call[1:4:2] for call in self.calls if call[0] == 'save'], [(4, {'cross_entropy': 4}), (5, {})])

  def test_interruption_saves_and_leaves(self):
    with self.assertRaisesRegex(trainer.Interrupted, 'stopped at step 2 of 5'):
      self._fit(trainer.Schedule(5, 10, 10, frozenset()), stop=_Stop(2))
    self.assertEqual((self._steps('save'), self._steps('validate'), self.calls[-1]), ([2], [], ('wait',)))

  def test_interruption_in_the_last_step_is_the_end(self):
    state, _ = self._fit(trainer.Schedule(2, 10, 10, frozenset()), stop=_Stop(2))
    self.assertEqual((state.step, self._steps('save')), (2, [2]))

  def test_what_is_not_finite_is_never_saved(self):
    with self.assertRaisesRegex(errors.NonFiniteError, 'loss is nan.*; checkpoints before it are finite'):
      self._fit(trainer.Schedule(6, 1, 3, frozenset()), poison=4)
    self.assertEqual(self._steps('save'), [3])


class LogSpacedTest(parameterized.TestCase):

  @parameterized.parameters(
      (1000, 4, {0, 1, 10, 100, 1000}), (1, 8, {0, 1}), (4, 50, {0, 1, 2, 3, 4}), (30, 1, {0, 1, 30}))
  def test_steps(self, steps, count, want):
    self.assertEqual(trainer.log_spaced(steps, count), want)

  def test_steps_are_about_as_many_as_asked_for(self):
    self.assertBetween(len(trainer.log_spaced(10_000, 40)), 30, 42)


if __name__ == '__main__':
  if sys.argv[1:] == ['devices']:
    print(json.dumps([_train(1), _train(8, microbatches=2), _train(8, fully_sharded=True)]))
  else:
    absltest.main()
