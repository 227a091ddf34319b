"""Decoding with a cache gives the logits of the whole forward, token by token, whatever family and whatever tree."""

import dataclasses
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import kernels
from jaxquant import errors
from jaxquant.layers import attention
from jaxquant.layers import device_kernels
from jaxquant.layers import inputs
from jaxquant.models import decoding
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import quantize
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from tests import gpus
from tests import networks

_DECODERS = [style for style in networks.FAMILIES if networks.config(style).causal]
_LENGTHS = (3, 5, 1)  # of the prompts in a batch


# The same function, compiled in less time.
_extend = networks.quick_jit(
    decoding.extend.__wrapped__, static_argnames=('config', 'implementation', 'first'), donate_argnames='cache')


@networks.quick_jit
def _packed(params):
  for path in trees.linears(params):
    kernel = trees.get(params, path)['kernel']
    params = trees.put(params, f'{path}/kernel', quantize.quantize(kernel, formats.parse('int4')))
  return params


def _at_sites(params, config, quantizer):
  for site in staging.model_sites(config):
    params = trees.put(params, f'{site.name}/quantizer', quantizer)
  return params


def _operands(params, config):
  ends = {'query': (-2.0, 1.5), 'key': (-1.0, 1.0), 'value': (-1.2, 2.0), 'probabilities': (0.0, 0.9)}
  for i in range(config.layers):
    for name in attention.OPERANDS:
      quantizer = quantizers.ClipQuantizer(*map(jnp.float32, ends[name]), 4)
      params = trees.put(params, f'layers/{i}/attention/{name}/quantizer', quantizer)
  return params


_STATIC = quantizers.ClipQuantizer(jnp.float32(-2), jnp.float32(2.5), 4)
_DYNAMIC = quantizers.DynamicQuantizer(formats.parse('uint4'))
_CODES = quantizers.DynamicQuantizer(formats.parse('int8'))
_TREES = {
    'packed': lambda params, config: _packed(params),
    'static': lambda params, config: _at_sites(params, config, _STATIC),
    'dynamic': lambda params, config: _at_sites(params, config, _DYNAMIC),
    'packed, dynamic': lambda params, config: _at_sites(_packed(params), config, _DYNAMIC),
    'operands': _operands,
    'dynamic operands': lambda params, config: trees.put(
        params, 'layers/0/attention', params['layers']['0']['attention'] | dict.fromkeys(
            ('query', 'key', 'value'), {'quantizer': _DYNAMIC})),
    'cache of codes': lambda params, config: trees.put(
        params, 'layers/0/attention', params['layers']['0']['attention'] | dict.fromkeys(
            ('key', 'value'), {'quantizer': _CODES})),
}


class DecodingTest(parameterized.TestCase):

  def _assert_decodes(self, params, config, slots=8, implementation='simulated', width=5, first=False):
    """Prompts of different lengths, then a token at a time: at each place the logits are those of the whole texts."""
    ids, lengths = np.asarray(networks.tokens(len(_LENGTHS))), np.array(_LENGTHS)
    want = np.asarray(networks.evaluator(config, implementation, networks.quick_jit)(params, ids))
    prompts = np.full((len(ids), width), 7, np.int32)
    for prompt, row, length in zip(prompts, ids, lengths):
      prompt[:length] = row[:length]
    cache = decoding.empty(params, config, len(ids), slots)
    logits, cache = _extend(params, cache, prompts, lengths, config=config, implementation=implementation, first=first)
    rows = np.arange(len(ids))
    for _ in range(ids.shape[1] - max(_LENGTHS) + 1):
      np.testing.assert_array_equal(cache.lengths, lengths)
      np.testing.assert_allclose(logits, want[rows, lengths - 1], rtol=0, atol=1e-5 * np.abs(want).max())
      if lengths.max() < ids.shape[1]:
        logits, cache = _extend(
            params, cache, ids[rows, lengths][:, None], np.ones_like(lengths), config=config,
            implementation=implementation)
        lengths = lengths + 1
    return want

  @parameterized.parameters(*_DECODERS)
  def test_families(self, style):
    layers = 1 if networks.config(style).opening_norm else 2  # The first block of some is unlike the others.
    self._assert_decodes(networks.params(style, layers), networks.config(style, layers=layers))

  @parameterized.parameters(*_DECODERS)
  def test_prompts_need_not_see_an_empty_cache(self, style):
    layers = 1 if networks.config(style).opening_norm else 2
    self._assert_decodes(networks.params(style, layers), networks.config(style, layers=layers), first=True)

  @parameterized.parameters(*(('llama', kind) for kind in _TREES), ('bloom', 'operands'), ('mistral', 'operands'))
  def test_quantized_trees(self, style, kind):
    config, params = networks.config(style), networks.params(style)
    made = _TREES[kind](params, config)
    got = self._assert_decodes(made, config)
    plain = networks.evaluator(config, jit=networks.quick_jit)(params, networks.tokens(len(_LENGTHS)))
    self.assertGreater(np.abs(got - plain).max(), 0.01)

  @parameterized.parameters(
      ('llama', True), ('mistral', True), ('qwen3', True), ('gpt2', True), ('bloom', False),
      ('llama', False, 'operands'), ('llama', False, 'dynamic operands'), ('llama', True, 'cache of codes'))
  def test_steps_of_single_tokens_in_one_kernel(self, style, taken, kind=None):
    config, params = networks.config(style), networks.params(style)
    made = _TREES[kind](params, config) if kind else params
    with mock.patch.object(kernels, 'decode_attention', wraps=kernels.decode_attention) as called:
      self._assert_decodes(made, config, implementation='auto')
    self.assertEqual(called.call_count > 0, taken)

  @parameterized.parameters(_CODES, _STATIC)
  def test_trees_that_are_laid_out(self, quantizer):
    config = dataclasses.replace(networks.config('llama', layers=2), feed_forward=128)  # which fills tiles
    params = _at_sites(_packed(networks.noise(config)), config, quantizer)
    laid_out, static = device_kernels.laid_out(params), quantizer is _STATIC
    makers = [mock.patch.object(kernels, name, wraps=getattr(kernels, name))
              for name in ('decode_attention', 'quantize_activations')]
    with mock.patch.object(inputs, 'prepare_total', wraps=inputs.prepare_total) as totals, makers[0] as attend:
      with makers[1] as quantize_activations:
        self._assert_decodes(laid_out, config, implementation='auto')
    self.assertGreater(totals.call_count, 0)
    # Where the range is known before, whoever makes an activation makes its codes.
    self.assertEqual({call.kwargs['behind'].static is not None for call in attend.call_args_list}, {static})
    shapes = [call.args[0].shape for call in quantize_activations.call_args_list]
    self.assertEqual((len(_LENGTHS), 1, config.feed_forward) in shapes, not static)

  def test_configurations_that_rematerialize(self):
    self._assert_decodes(networks.params('llama'), dataclasses.replace(networks.config('llama'), remat=True))

  def test_integer_products(self):
    config = networks.config('llama')
    self._assert_decodes(_TREES['packed, dynamic'](networks.params('llama'), config), config, implementation='xla')

  @parameterized.parameters('llama', 'opt')
  def test_what_fills_a_batch_up_may_stand_beyond_the_slots_and_the_context(self, style):
    self._assert_decodes(networks.params(style), networks.config(style), slots=8, width=16)
    config, params = networks.config(style), networks.params(style)
    ids = np.asarray(networks.tokens(2))
    whole = np.concatenate([ids, ids[:, ::-1]], axis=1)
    _, cache = _extend(params, decoding.empty(params, config, 2, 16), whole, np.array([15, 2]), config=config)
    # The second row goes on by four tokens, the first by one: three of its places lie beyond the context.
    more = np.stack([np.append(whole[0, 15], [1, 1, 1]), whole[1, 2:6]])
    logits, _ = _extend(params, cache, more, np.array([1, 4]), config=config)
    want = np.asarray(networks.evaluator(config, jit=networks.quick_jit)(params, whole))
    np.testing.assert_allclose(logits, want[[0, 1], [15, 5]], rtol=0, atol=1e-5 * np.abs(want).max())

  def test_steps_are_compiled_once(self):
    config, params = networks.config('qwen2'), networks.params('qwen2')
    cache = decoding.empty(params, config, 2, 6)
    before = decoding.extend._cache_size()
    for token in range(5):
      _, cache = decoding.extend(params, cache, np.full((2, 1), token, np.int32), np.ones(2, np.int32), config=config)
    self.assertEqual(decoding.extend._cache_size(), before + 1)

  def test_bfloat16_is_close_to_the_whole_forward(self):
    config, params = networks.config('llama', 'bfloat16'), networks.params('llama')
    ids = np.asarray(networks.tokens(2))
    want = np.float32(networks.evaluator(config, jit=networks.quick_jit)(params, ids))
    cache = decoding.empty(params, config, 2, 8)
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(cache.layers)}, {jnp.dtype(jnp.bfloat16)})
    logits, cache = _extend(params, cache, ids[:, :7], np.full(2, 7), config=config)
    logits, _ = _extend(params, cache, ids[:, 7:], np.ones(2, np.int32), config=config)
    self.assertEqual(logits.dtype, jnp.bfloat16)
    self.assertLess(np.std(np.float32(logits) - want[:, -1]), 0.02 * np.std(want))

  @parameterized.product(
      quantizer=[_CODES, dataclasses.replace(_STATIC, low=jnp.float32(-4), high=jnp.float32(4.5), bits=8)],
      codes=[False, True])
  @gpus.needed
  def test_kernels_of_a_gpu(self, quantizer, codes):
    config = dataclasses.replace(
        networks.config('llama', 'bfloat16'), width=256, heads=2, kv_heads=1, head_dim=128, feed_forward=512,
        max_length=64)
    params = _at_sites(_packed(networks.noise(config)), config, quantizer)
    params = _TREES['cache of codes'](params, config) if codes else params
    laid_out, ids = device_kernels.prepared(params, 'auto'), np.asarray(networks.tokens(2))
    want = np.float32(networks.evaluator(config, jit=networks.quick_jit)(params, ids))
    logits, cache = decoding.extend(
        laid_out, decoding.empty(laid_out, config, 2, 64), ids[:, :4], np.full(2, 4), config=config,
        implementation='auto', first=True)
    for place in range(4, ids.shape[1]):
      logits, cache = decoding.extend(
          laid_out, cache, ids[:, place : place + 1], np.ones(2, np.int32), config=config, implementation='auto')
      # Rounding alone, also of XLA, makes 0.03, and of one range 0.08, since codes on an edge move.
      limit = 0.08 if quantizer is _CODES else 0.15
      self.assertLess(np.std(np.float32(logits) - want[:, place]), limit * np.std(want))
    self.assertEqual(cache.layers['layers']['0']['attention']['keys'].dtype, jnp.int8 if codes else jnp.bfloat16)

  def test_encoders_and_caches_beyond_the_context_are_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'an encoder'):
      decoding.empty({}, networks.config('bert'), 1, 8)
    with self.assertRaisesRegex(errors.UserError, '17 tokens exceed .* 16'):
      decoding.empty({}, networks.config('llama'), 1, 17)


if __name__ == '__main__':
  absltest.main()
