"""One training step: its loss against direct computation, microbatches against the whole batch, and what it leaves."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant.layers import tap
from jaxquant.models import staging
from jaxquant.numerics import trees
from jaxquant.training import optimizer
from jaxquant.training import qat
from jaxquant.training import regularizers
from jaxquant.training import step as training_step
from tests import networks

_MODEL = networks.config('llama')
_SITES = tuple(site.name for site in staging.model_sites(_MODEL))
# Plain descent by the gradient itself, so that a step shows it.
_DESCENT = optax.sgd(1.0)


def _batch(rows: int = 8) -> jax.Array:
  return jnp.asarray(np.random.default_rng(3).integers(0, 32, (rows, 9)), jnp.int32)


def _quantized() -> dict:
  return qat.prepare(networks.params('llama'), qat.QATConfig(weight_bits=4), _SITES)


def _step(objective, tx, **options):
  return networks.quick_jit(functools.partial(training_step.train_step, objective=objective, tx=tx, **options))


@functools.cache
def _outputs() -> dict:
  """The outputs of all linears of the quantized network, by point."""
  model = staging.make(_MODEL, taps=(tap.Tap('.*/output', lambda y: y),))
  apply = networks.quick_jit(functools.partial(model.apply, mutable=[tap.COLLECTION]))
  return tap.by_point(apply({'params': _quantized()}, _batch()[:, :-1])[1][tap.COLLECTION])


def _kurtosis(y) -> np.ndarray:
  centered = np.float64(y) - np.float64(y).mean(-1, keepdims=True)
  return (centered**4).mean(-1) / (centered**2).mean(-1) ** 2


class ObjectiveTest(parameterized.TestCase):

  def test_without_regularizers_it_is_plain_cross_entropy(self):
    def plain(params):
      logits = staging.make(_MODEL).apply({'params': params}, _batch()[:, :-1])
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, _batch()[:, 1:]))

    # Nothing quantized, and a kurtosis of weight zero: the baseline.
    config = qat.QATConfig(ranges=(), weight_bits=16)
    params = qat.prepare(networks.params('llama'), config, _SITES)
    want = networks.quick_jit(jax.value_and_grad(plain))(networks.params('llama'))
    for penalty in (None, regularizers.OutputKurtosis(0.0)):
      objective = training_step.Objective(_MODEL, penalty)
      gradient = networks.quick_jit(jax.value_and_grad(lambda params: objective(params, _batch(), 64)[0]))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), gradient(params), want)

  @parameterized.parameters(
      (dict(), 7, 1), (dict(pattern='layers/.*/(o|down)', reduction='sum'), 2, 64),
      (dict(pattern='.*/q|head', stride=4), 2, 1))
  def test_kurtosis_is_that_of_all_outputs_that_the_pattern_chooses(self, options, count, factor):
    objective = training_step.Objective(_MODEL, regularizers.OutputKurtosis(0.01, **options))
    loss, metrics = networks.quick_jit(lambda params: objective(params, _batch(), 64))(_quantized())
    names = trees.matching(f'(?:{options.get("pattern", "layers/.*")})/output', _outputs())
    self.assertLen(names, count)
    mean = np.mean([_kurtosis(_outputs()[name][:: options.get('stride', 1)]).mean() for name in names])
    np.testing.assert_allclose(metrics['kurtosis'], mean, rtol=1e-3)
    np.testing.assert_allclose(loss - metrics['cross_entropy'], 0.01 * factor * count * mean, rtol=1e-3)
    self.assertEqual(loss, metrics['loss'])

  def test_kernels_are_rounded_from_the_step_on_that_the_objective_names(self):
    objective = training_step.Objective(_MODEL, weight_start=5)
    plain = qat.prepare(networks.params('llama'), qat.QATConfig(), _SITES)
    gradient = networks.quick_jit(jax.value_and_grad(
        lambda params, step: objective(params, _batch(), 64, step - 1)[0]))
    always = networks.quick_jit(jax.value_and_grad(
        lambda params: training_step.Objective(_MODEL)(params, _batch(), 64)[0]))
    for step, want in ((4, always(plain)), (5, always(_quantized())), (6, always(_quantized()))):
      loss, gradients = gradient(_quantized(), step)
      self.assertEqual(loss, want[0])
      for path in trees.linears(plain):
        np.testing.assert_allclose(
            trees.get(gradients, path)['kernel'], trees.get(want[1], path)['kernel'], rtol=1e-5, atol=1e-7)
    self.assertNotEqual(always(plain)[0], always(_quantized())[0])
    self.assertEqual([objective.rounds(step) for step in (4, 5)], [False, True])
    jax.tree.map(np.testing.assert_array_equal, objective.used(_quantized(), 4), plain)
    self.assertIn('kernel_quantizer', objective.used(_quantized(), 5)['layers']['0']['mlp']['up'])

  def test_kurtosis_of_weights_is_that_of_the_float_kernels(self):
    penalty = regularizers.WeightKurtosis(0.5, pattern='.*/mlp/.*')
    loss, metrics = networks.quick_jit(
        lambda params: training_step.Objective(_MODEL, weight_kurtosis=penalty)(params, _batch(), 64))(_quantized())
    kernels = [layer['kernel'] for layer in networks.params('llama')['layers']['0']['mlp'].values()]
    means = np.array([_kurtosis(np.asarray(kernel).T).mean() for kernel in kernels])
    np.testing.assert_allclose(metrics['weight_kurtosis'], means.mean(), rtol=1e-3)
    np.testing.assert_allclose(
        loss - metrics['cross_entropy'], 0.5 * np.mean((means - 1.8) ** 2), rtol=1e-3)


class TrainStepTest(absltest.TestCase):

  def test_microbatches_add_up_to_the_batch(self):
    # The sum over the tokens of the batch is what could depend on its parts.
    objective = training_step.Objective(
        _MODEL, regularizers.OutputKurtosis(1e-4, reduction='sum'), regularizers.WeightKurtosis(1e-3))
    state = training_step.initial_state(_quantized(), _DESCENT)
    (whole, metrics), (parts, split) = (
        _step(objective, _DESCENT, microbatches=count)(state, _batch()) for count in (1, 4))
    self.assertEqual(set(metrics), {'loss', 'cross_entropy', 'kurtosis', 'weight_kurtosis', 'gradient_norm'})
    np.testing.assert_allclose([split[name] for name in metrics], list(metrics.values()), rtol=1e-4)
    for (path, a), b in zip(trees.arrays(whole.params).items(), jax.tree.leaves(parts.params)):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=path)

  def test_gradient_norm_is_that_of_all_but_ranges(self):
    state = training_step.initial_state(_quantized(), _DESCENT)
    after, metrics = _step(training_step.Objective(_MODEL), _DESCENT)(state, _batch())
    gradients = {path: np.float64(a) - np.float64(b) for (path, a), b in zip(
        trees.arrays(state.params).items(), jax.tree.leaves(after.params))}
    norm = np.sqrt(sum(np.sum(g**2) for path, g in gradients.items() if '/quantizer/' not in path))
    np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-3)
    self.assertEqual(after.step, 1)
    self.assertTrue(all(np.abs(g).max() > 0 for g in gradients.values()))

  def test_ranges_are_valid_after_a_step_that_turned_them_over(self):
    tx = optax.sgd(1e4)
    after, _ = _step(training_step.Objective(_MODEL), tx)(
        training_step.initial_state(_quantized(), tx), _batch())
    ranges = qat.ranges(after.params)
    self.assertLen(ranges, 4)
    for name, (low, high) in ranges.items():
      self.assertLess(low, high, name)

  def test_both_parts_of_the_regularization_memorize_a_batch(self):
    objective = training_step.Objective(_MODEL, regularizers.OutputKurtosis(1e-3))
    tx = optimizer.make(optimizer.OptimizerConfig(learning_rate=0.03, warmup_steps=5), 60)
    step, state, first = _step(objective, tx), training_step.initial_state(_quantized(), tx), None
    for _ in range(60):
      state, metrics = step(state, _batch())
      first = first or metrics
    self.assertGreater(first['cross_entropy'], 3)
    self.assertLess(metrics['cross_entropy'], 1)
    self.assertLess(metrics['kurtosis'], first['kurtosis'])
    self.assertEqual(state.step, 60)
    before, after = qat.ranges(_quantized()), qat.ranges(state.params)
    for name in before:
      self.assertGreater(np.abs(np.subtract(after[name], before[name])).max(), 0.01, name)


if __name__ == '__main__':
  absltest.main()
