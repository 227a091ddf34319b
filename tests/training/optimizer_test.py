"""AdamW in groups, against a float64 reference that shares no code with it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.training import optimizer
from tests import networks

_STEPS = 5


def _params() -> dict:
  """A kernel, a gain, a bias and one learned range of each kind."""
  rng = np.random.default_rng(0)
  noise = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
      'norm': {'scale': noise(4)},
      'layer': {'kernel': noise(4, 3), 'bias': noise(3), 'kernel_quantizer': quantizers.WeightQuantizer(
          formats.parse('int4')), 'input': {'quantizer': quantizers.ClipQuantizer(noise(), noise(), 4)}},
      'pact': {'input': {'quantizer': quantizers.PactQuantizer(noise(), 4)}},
      'lsq': {'input': {'quantizer': quantizers.StepQuantizer(noise(), 4)}},
      'dynamic': {'input': {'quantizer': quantizers.DynamicQuantizer(formats.parse('uint4')), 'shift': noise(4)}}}


def _gradients(step: int, scale: float = 1.0) -> dict:
  rng = np.random.default_rng(100 + step)
  return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), _params())


def _trained(config: optimizer.OptimizerConfig, scale: float = 1.0) -> dict:
  """The arrays after some steps, by path."""
  tx, params = optimizer.make(config, _STEPS), _params()
  state, update = tx.init(params), networks.quick_jit(tx.update)
  for step in range(_STEPS):
    updates, state = update(_gradients(step, scale), state, params)
    params = optax.apply_updates(params, updates)
  return trees.arrays(params)


def _reference(config: optimizer.OptimizerConfig, scale: float = 1.0) -> dict:
  """The same in float64: clipping of all but ranges, Adam with bias correction, decoupled decay, linear schedule."""
  params = {path: np.float64(leaf) for path, leaf in trees.arrays(_params()).items()}
  moments = {path: (0.0, 0.0) for path in params}
  for step in range(_STEPS):
    gradients = {path: np.float64(leaf) for path, leaf in trees.arrays(_gradients(step, scale)).items()}
    norm = np.sqrt(sum(np.sum(g**2) for path, g in gradients.items() if '/quantizer/' not in path))
    warm, rest = config.warmup_steps, _STEPS - config.warmup_steps
    rate = config.learning_rate * min(step / warm, 1 - (1 - config.final_fraction) * (step - warm) / rest)
    for path, g in gradients.items():
      is_range = '/quantizer/' in path
      g = g if is_range else g * min(1, config.clip_norm / norm)
      first, second = (b * m + (1 - b) * g**p for b, m, p in zip((config.b1, config.b2), moments[path], (1, 2)))
      moments[path] = first, second
      direction = first / (1 - config.b1 ** (step + 1)) / (
          np.sqrt(second / (1 - config.b2 ** (step + 1))) + config.epsilon)
      decay = config.range_decay if is_range else config.weight_decay if path == 'layer/kernel' else 0
      group = config.range_multiplier if is_range else 1
      params[path] = params[path] - group * rate * (direction + decay * params[path])
  return params


class MakeTest(parameterized.TestCase):

  # The large epsilon makes Adam sensitive to the size of gradients, hence to clipping.
  @parameterized.parameters(
      (dict(), 1.0), (dict(epsilon=1.0, clip_norm=0.5), 1.0), (dict(epsilon=1.0, clip_norm=1e9), 3.0),
      (dict(range_multiplier=5.0, range_decay=0.3, weight_decay=0.5), 1.0))
  def test_trained_arrays_are_those_of_the_reference(self, options, scale):
    config = optimizer.OptimizerConfig(
        **{'learning_rate': 0.1, 'warmup_steps': 2, 'schedule': 'linear', 'final_fraction': 0.1, **options})
    got, want = _trained(config, scale), _reference(config, scale)
    self.assertEqual(set(got), set(want))
    for path, value in want.items():
      np.testing.assert_allclose(got[path], value, rtol=1e-4, atol=1e-5, err_msg=path)

  def test_only_kernels_decay(self):
    config = optimizer.OptimizerConfig(learning_rate=0.1, warmup_steps=0, schedule='constant', weight_decay=0.5)
    got, before = _trained(config, scale=0.0), trees.arrays(_params())
    for path in before:
      factor = 0.95**_STEPS if path == 'layer/kernel' else 1
      np.testing.assert_allclose(got[path], before[path] * factor, rtol=1e-5, err_msg=path)

  def test_gradients_of_ranges_are_not_in_the_norm_that_clips_the_others(self):
    config = optimizer.OptimizerConfig(epsilon=1.0)
    update = networks.quick_jit(lambda gradients: optimizer.make(config, _STEPS).update(
        gradients, optimizer.make(config, _STEPS).init(_params()), _params()))
    huge = lambda path, leaf: jax.tree.map(lambda g: g * 1e6, leaf) if path.endswith('quantizer') else leaf
    _, plain = update(_gradients(0))
    _, swamped = update(trees.map_nodes(huge, _gradients(0)))
    moments = lambda state: [leaf for leaf in jax.tree.leaves(state) if leaf.shape]
    self.assertNotEmpty(moments(plain))
    jax.tree.map(np.testing.assert_array_equal, moments(plain), moments(swamped))

  def test_labels_follow_the_quantizers_of_inputs(self):
    labels = trees.arrays(jax.tree.map(np.array, optimizer.labels(_params())))
    self.assertEqual({path for path, label in labels.items() if label == 'ranges'}, {
        'layer/input/quantizer/low', 'layer/input/quantizer/high', 'pact/input/quantizer/clip',
        'lsq/input/quantizer/step'})
    self.assertEqual(set(labels), set(trees.arrays(_params())))

  def test_clips_that_ranges_have_left_stay(self):
    params = {'input': {'clip': (jnp.float32(-1), jnp.float32(1))}, 'kernel': jnp.ones((2, 2))}
    made = optimizer.make(optimizer.OptimizerConfig(warmup_steps=0), 4)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = made.update(gradients, made.init(params), params)
    self.assertEqual(updates['input']['clip'], (0, 0))
    self.assertLess(float(updates['kernel'].max()), 0)


class ScheduleTest(parameterized.TestCase):

  def _rates(self, steps: int, **options) -> np.ndarray:
    schedule = optimizer.learning_rate(optimizer.OptimizerConfig(learning_rate=2.0, **options), steps)
    return np.array([schedule(step) for step in range(steps + 1)])

  def test_warm_up_then_each_decay(self):
    rising = [0, 0.5, 1, 1.5, 2]
    for schedule, falling in (('linear', [1.85, 1.7, 1.55, 1.4, 1.25, 1.1, 0.95, 0.8]), ('constant', [2.0] * 8), (
        'cosine', 0.8 + 1.2 * (1 + np.cos(np.pi * np.arange(1, 9) / 8)) / 2)):
      rates = self._rates(12, warmup_steps=4, schedule=schedule, final_fraction=0.4)
      np.testing.assert_allclose(rates, [*rising, *falling], rtol=1e-5, err_msg=schedule)

  def test_no_warm_up_starts_at_the_peak(self):
    np.testing.assert_allclose(self._rates(4, warmup_steps=0, schedule='linear'), [2, 1.5, 1, 0.5, 0], atol=1e-6)

  @parameterized.parameters(*optimizer.SCHEDULES)
  def test_warm_up_longer_than_the_training_ends_at_the_peak(self, schedule):
    rates = self._rates(4, warmup_steps=100, schedule=schedule)
    np.testing.assert_allclose(rates, [0, 0.5, 1, 1.5, 2], rtol=1e-6)

  @parameterized.parameters(
      (dict(schedule='step'), "optimizer.schedule is 'step'; there are cosine, linear, constant"),
      (dict(learning_rate=0.0), 'optimizer.learning_rate must be positive, not 0'))
  def test_mistakes_are_named(self, options, message):
    with self.assertRaisesRegex(errors.UserError, message):
      optimizer.OptimizerConfig(**options)


if __name__ == '__main__':
  absltest.main()
