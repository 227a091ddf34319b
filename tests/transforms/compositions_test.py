"""Methods behind one another, from the float model to packed codes: each does its part, and together they pay."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from jaxquant.models import staging
from jaxquant.models import validate
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.transforms import recipes
from tests import calibrating
from tests import networks

_LAYERS = 2
_BATCHES = [networks.tokens(8, seed=seed) for seed in range(2)]
_PER_TOKEN = quantizers.DynamicQuantizer(formats.parse('uint8'))
# The sites of a block at which the first method folds, the methods, the activations: AdaDim leaves these as they are.
_COMPOSED = (
    (('attention/input', 'attention/o/input', 'mlp/input', 'mlp/down/input'),
     ('outlier_suppression', 'adadim', 'round_to_nearest'), None),
    (('attention/input', 'mlp/input'), ('smooth_quant', 'clip_search', 'gptq'), _PER_TOKEN))


@functools.cache
def _params(style):
  """The network with what each method is for.

  A channel of what each norm puts out is ten times as strong, and off centre where norms have biases. Weights of
  another channel are large in the last linear of each module, so that groups of some had better run along outputs.
  """
  params = networks.params(style, _LAYERS)
  for block in range(_LAYERS):
    for norm in ('attention_norm', 'mlp_norm'):
      for key, value in trees.get(params, f'layers/{block}/{norm}').items():
        value = value.at[5].add(6.0) if key == 'bias' else value.at[5].multiply(10.0)
        params = trees.put(params, f'layers/{block}/{norm}/{key}', value)
    for path in (f'layers/{block}/{name}/kernel' for name in ('attention/o', 'mlp/down')):
      params = trees.put(params, path, trees.get(params, path).at[9].multiply(6.0))
  return params


def _outputs(model):
  """The function of a tree: what each of its blocks puts out on the calibration set, float32 [blocks, ...]."""

  @networks.quick_jit
  def outputs(params):
    x, found = model.embed(params, jnp.concatenate(_BATCHES)), []
    for path, block in model.blocks[:_LAYERS]:
      x = block.forward(trees.get(params, path), x)
      found.append(x)
    return jnp.stack(found)

  return outputs


class CompositionsTest(parameterized.TestCase):

  @parameterized.product(style=['llama', 'opt'], composed=_COMPOSED)
  def test_each_method_is_recorded_in_turn_and_blocks_are_twice_as_close_as_rounded(self, style, composed):
    folded, methods, activation = composed
    config = networks.config(style, layers=_LAYERS)
    model, sites = staging.staged(config), staging.model_sites(config)
    recipe = recipes.Recipe(
        weight=quantizers.WeightQuantizer(formats.parse('uint3'), group_size=8), activation=activation)
    outputs = _outputs(model)
    run = lambda methods: calibrating.quantized(
        _params(style), model, dataclasses.replace(recipe, methods=methods).steps(sites), _BATCHES, outputs)
    (_, rounded), (result, error) = run(('round_to_nearest',)), run(methods)
    self.assertLess(error, rounded / 2)

    linears = trees.matching(recipe.weight_pattern, trees.linears(_params(style)))
    want = {path: [*methods[1:]] for path in linears}
    want |= {f'layers/{i}/{name}': [methods[0]] for i in range(_LAYERS) for name in folded}
    for name in recipe.sites(site.name for site in sites) if activation else ():
      want[name] = [*want.get(name, []), 'dynamic_ranges']
    self.assertEqual({name: list(entry) for name, entry in result.decisions.items()}, want)

    validate.validate(result.params, config)
    axes = {path: result.decisions[path].get('adadim', {'axis': 0})['axis'] for path in linears}
    self.assertLen(set(axes.values()), 1 + ('adadim' in methods))
    for path, axis in axes.items():
      layer = trees.get(result.params, path)
      self.assertIsInstance(layer['kernel'], qtensor.QTensor)
      self.assertEqual(layer['kernel'].axis, (-2, -1)[axis])
      self.assertNotIn('kernel_quantizer', layer)


if __name__ == '__main__':
  absltest.main()
