"""GPTQ, AWQ and compressed tensors: every tensor as the format has it, by another way of writing it down, and back."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxquant import errors
from jaxquant.interop import awq
from jaxquant.interop import compressed_tensors
from jaxquant.interop import gptq
from jaxquant.interop import matrices
from jaxquant.numerics import formats
from jaxquant.numerics import qtensor
from jaxquant.numerics import quantize

_INPUTS, _OUTPUTS = 32, 16
# Nibble j of a word of AWQ is this output of the eight.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _matrix(bits=4, symmetric=False, group_size=8, least=1) -> matrices.Matrix:
  """Random codes, with zero points of at least `least`."""
  rng = np.random.default_rng(0)
  scheme = matrices.Scheme(bits, symmetric, group_size)
  shape = scheme.groups(_INPUTS), _OUTPUTS
  zeros = np.full(shape, 2 ** (bits - 1)) if symmetric else rng.integers(least, 2**bits, shape)
  return matrices.Matrix(
      rng.integers(0, 2**bits, (_INPUTS, _OUTPUTS)).astype(np.uint8),
      rng.uniform(0.5, 2, shape).astype(np.float16).astype(np.float32), zeros.astype(np.int16), scheme)


def _nibble(word, j):
  return (int(word) >> (4 * j)) & 15


def _assert_equal(got: matrices.Matrix, want: matrices.Matrix):
  for name in ('codes', 'scale', 'zero_point'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert getattr(got, name).dtype == getattr(want, name).dtype, name
  assert got.scheme == want.scheme


class GPTQTest(parameterized.TestCase):

  @parameterized.product(version=gptq.VERSIONS, symmetric=[True, False])
  def test_tensors(self, version, symmetric):
    matrix = _matrix(symmetric=symmetric)
    made = gptq.GPTQ(matrix.scheme, version).encode(matrix, 'x')
    self.assertEqual({name: (x.dtype, x.shape) for name, x in made.items()}, {
        'qweight': (np.int32, (4, 16)), 'qzeros': (np.int32, (4, 2)), 'scales': (np.float16, (4, 16)),
        'g_idx': (np.int32, (32,))})
    less = 1 if version == 'gptq' else 0
    for i, o in np.ndindex(_INPUTS, _OUTPUTS):
      self.assertEqual(_nibble(made['qweight'][i // 8, o], i % 8), matrix.codes[i, o])
      self.assertEqual(_nibble(made['qzeros'][i // 8, o // 8], o % 8), matrix.zero_point[i // 8, o] - less)
      self.assertEqual(made['g_idx'][i], i // 8)
    np.testing.assert_array_equal(made['scales'], matrix.scale)

  def test_symmetric_zero_points_by_version(self):
    matrix = _matrix(symmetric=True)
    for version, word in (('gptq', 0x77777777), ('gptq_v2', -0x77777778)):
      self.assertEqual(set(gptq.GPTQ(matrix.scheme, version).encode(matrix, 'x')['qzeros'].ravel().tolist()), {word})

  @parameterized.product(version=gptq.VERSIONS, symmetric=[True, False], bits=gptq.BITS, group_size=[8, None])
  def test_there_and_back(self, version, symmetric, bits, group_size):
    matrix = _matrix(bits, symmetric, group_size)
    codec = gptq.GPTQ(matrix.scheme, version)
    read = gptq.GPTQ.read(codec.config(), 'config.json')
    self.assertEqual((read.scheme, read.version), (matrix.scheme, version))
    made = codec.encode(matrix, 'x')
    self.assertEqual({name: x.shape for name, x in made.items()},
                     {name: shape for name, (_, shape) in codec.shapes('x', _INPUTS, _OUTPUTS).items()})
    got, gather = read.decode(made, 'x', _INPUTS, 'DIR: x')
    _assert_equal(got, matrix)
    np.testing.assert_array_equal(gather, np.arange(_INPUTS))

  def test_zero_points_of_zero_are_raised_in_version_1_with_their_codes(self):
    matrix = _matrix(least=0)
    matrix.zero_point[0] = 0
    matrix.codes[:8] %= 15
    matrix.zero_point[1:] = np.maximum(matrix.zero_point[1:], 1)
    got, _ = gptq.GPTQ(matrix.scheme).decode(gptq.GPTQ(matrix.scheme).encode(matrix, 'x'), 'x', _INPUTS, 'x')
    self.assertEqual(got.zero_point[0].tolist(), [1] * _OUTPUTS)
    np.testing.assert_array_equal(got.values(), matrix.values())
    matrix.codes[3, 5] = 15
    with self.assertRaisesRegex(errors.UserError, 'x: version 1 of GPTQ cannot hold .* gptq_v2 can'):
      gptq.GPTQ(matrix.scheme).encode(matrix, 'x')

  @parameterized.parameters(*gptq.BITS)
  def test_zero_points_of_version_1_are_those_of_version_2_less_one_in_every_word(self, bits):
    # GPTQModel turns one version into the other by one addition for a word of 32 bits, in which codes borrow and carry.
    matrix = _matrix(bits, least=0)
    matrix.zero_point[:, ::3] = 0
    made = gptq.GPTQ(matrix.scheme, 'gptq_v2').encode(matrix, 'x')
    one = np.uint32(sum(1 << i for i in range(0, 32, bits)))
    made['qzeros'] = (made['qzeros'].view(np.uint32) - one).view(np.int32)
    _assert_equal(gptq.GPTQ(matrix.scheme, 'gptq').decode(made, 'x', _INPUTS, 'x')[0], matrix)

  @parameterized.parameters(*gptq.VERSIONS)
  def test_wrong_version_of_symmetric_codes_is_seen(self, version):
    matrix = _matrix(symmetric=True)
    other, = set(gptq.VERSIONS) - {version}
    made = gptq.GPTQ(matrix.scheme, other).encode(matrix, 'x')
    with self.assertRaisesRegex(errors.UserError, f"DIR: x: .*version '{version}'.*checkpoint_format"):
      gptq.GPTQ(matrix.scheme, version).decode(made, 'x', _INPUTS, 'DIR: x')

  def test_groups_in_any_order(self):
    matrix, order = _matrix(), np.random.default_rng(1).permutation(_INPUTS)
    made = gptq.GPTQ(matrix.scheme).encode(matrix, 'x')
    # Row i of the file is row order[i] of the sorted kernel.
    made['g_idx'] = made['g_idx'][order]
    made['qweight'] = gptq.GPTQ(matrix.scheme).encode(
        matrices.Matrix(matrix.codes[order], matrix.scale, matrix.zero_point, matrix.scheme), 'x')['qweight']
    got, gather = gptq.GPTQ(matrix.scheme, in_any_order=True).decode(made, 'x', _INPUTS, 'x')
    x = np.random.default_rng(2).normal(size=_INPUTS)
    np.testing.assert_allclose(x[gather] @ got.values(), x @ matrix.values()[order])
    with self.assertRaisesRegex(errors.UserError, 'in their order, as desc_act says'):
      gptq.GPTQ(matrix.scheme).decode(made, 'x', _INPUTS, 'x')
    made['g_idx'][:] = 0
    with self.assertRaisesRegex(errors.UserError, 'does not give 8 inputs to each of 4 groups'):
      gptq.GPTQ(matrix.scheme, in_any_order=True).decode(made, 'x', _INPUTS, 'x')

  @parameterized.parameters(
      (dict(bits=3), '3 bits'), (dict(group_size=0), 'groups of 0'), (dict(checkpoint_format='marlin'), "'marlin'"),
      (dict(lm_head=True), 'quantized head'), (dict(bits='4'), "'4' bits"))
  def test_refused(self, changes, message):
    config = gptq.GPTQ(_matrix().scheme).config() | changes
    with self.assertRaisesRegex(errors.UserError, message):
      gptq.GPTQ.read(config, 'config.json')

  def test_scales_beyond_16_bits_are_refused(self):
    for scale in (1e6, 1e-9):
      with self.assertRaisesRegex(errors.UserError, 'x: a scale .* leaves float16'):
        gptq.float16(np.array([1, scale], np.float32), 'x')


class AWQTest(parameterized.TestCase):

  def test_tensors(self):
    matrix = _matrix(least=0)
    made = awq.AWQ(matrix.scheme).encode(matrix, 'x')
    self.assertEqual({name: (x.dtype, x.shape) for name, x in made.items()}, {
        'qweight': (np.int32, (32, 2)), 'qzeros': (np.int32, (4, 2)), 'scales': (np.float16, (4, 16))})
    for i, w, j in np.ndindex(_INPUTS, _OUTPUTS // 8, 8):
      output = 8 * w + _AWQ_ORDER[j]
      self.assertEqual(_nibble(made['qweight'][i, w], j), matrix.codes[i, output])
      self.assertEqual(_nibble(made['qzeros'][i // 8, w], j), matrix.zero_point[i // 8, output])

  @parameterized.parameters(8, None)
  def test_there_and_back(self, group_size):
    matrix = _matrix(group_size=group_size, least=0)
    codec = awq.AWQ(matrix.scheme, ('lm_head',))
    read = awq.AWQ.read(codec.config(), 'config.json')
    self.assertEqual(read.scheme, matrix.scheme)
    self.assertIsNone(read.scheme_of('lm_head'))
    _assert_equal(read.decode(codec.encode(matrix, 'x'), 'x', _INPUTS, 'x')[0], matrix)

  @parameterized.parameters((dict(bits=8), '8 bits'), (dict(version='gemv'), "'gemv'"),
                            (dict(modules_to_not_convert='lm_head'), 'modules_to_not_convert'))
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(errors.UserError, message):
      awq.AWQ.read(awq.AWQ(_matrix().scheme).config() | changes, 'config.json')


class CompressedTensorsTest(parameterized.TestCase):

  def _codec(self, scheme, layout=compressed_tensors.PACKED):
    return compressed_tensors.CompressedTensors([(('Linear',), scheme, None)], ('lm_head',), layout)

  def test_packed_tensors(self):
    matrix = _matrix(least=0)
    made = self._codec(matrix.scheme).encode(matrix, 'x')
    self.assertEqual({name: (x.dtype, x.shape) for name, x in made.items()}, {
        'weight_packed': (np.int32, (16, 4)), 'weight_scale': (np.float32, (16, 4)), 'weight_shape': (np.int64, (2,)),
        'weight_zero_point': (np.int32, (2, 4))})
    for i, o in np.ndindex(_INPUTS, _OUTPUTS):
      self.assertEqual(_nibble(made['weight_packed'][o, i // 8], i % 8), matrix.codes[i, o])
      self.assertEqual(_nibble(made['weight_zero_point'][o // 8, i // 8], o % 8), matrix.zero_point[i // 8, o])
    self.assertEqual(made['weight_shape'].tolist(), [16, 32])

  @parameterized.product(layout=[compressed_tensors.PACKED, compressed_tensors.INTEGER], bits=list(range(2, 9)),
                         symmetric=[True, False], group_size=[8, None])
  def test_there_and_back(self, layout, bits, symmetric, group_size):
    matrix = _matrix(bits, symmetric, group_size, least=0)
    codec = self._codec(matrix.scheme, layout)
    read = compressed_tensors.CompressedTensors.read(codec.config(), 'config.json')
    self.assertEqual((read.scheme_of('model.x'), read.scheme_of('lm_head')), (matrix.scheme, None))
    made = codec.encode(matrix, 'x')
    self.assertEqual({name: (x.dtype, x.shape) for name, x in made.items() if name != 'weight_scale'},
                     {name: shape for name, shape in codec.shapes('x', _INPUTS, _OUTPUTS).items()
                      if name != 'weight_scale'})
    _assert_equal(read.decode(made, 'x', _INPUTS, 'x')[0], matrix)

  def test_groups_by_name_and_by_expression(self):
    four, eight = matrices.Scheme(4, True, 8), matrices.Scheme(8, True, None)
    codec = compressed_tensors.CompressedTensors(
        [(('re:.*mlp.*', 'a.b'), four, None), (('Linear',), eight, None)], ('re:.*head',))
    for module, scheme in (('l.mlp.up', four), ('a.b', four), ('a.bc', eight), ('lm_head', None)):
      self.assertEqual(codec.scheme_of(module), scheme, module)

  @parameterized.parameters(*itertools.permutations(range(4)))
  def test_the_most_specific_pattern_counts_in_any_order(self, *order):
    schemes = [matrices.Scheme(bits, True, None) for bits in (2, 3, 4, 8)]
    groups = list(zip((('a.b',), ('re:a.*',), ('re:z|a.*',), ('Linear',)), schemes, [None] * 4))
    codec = compressed_tensors.CompressedTensors([groups[i] for i in order])
    self.assertEqual([codec.scheme_of(module) for module in ('a.b', 'a.c', 'z', 'b')], schemes)

  @parameterized.parameters(
      (dict(format='marlin-24'), 'marlin-24'), (dict(quantization_status='frozen'), 'frozen'),
      (dict(kv_cache_scheme={'num_bits': 8}), 'kv_cache_scheme'), (dict(config_groups={}), 'config_groups'),
      (dict(sparsity_config={'format': 'sparse-bitmask'}), 'sparsity_config'),
      (dict(ignore='lm_head'), 'lm_head'), (dict(ignore=['re:(']), 'regular expression'))
  def test_refused(self, changes, message):
    config = self._codec(_matrix().scheme).config() | changes
    with self.assertRaisesRegex(errors.UserError, message):
      compressed_tensors.CompressedTensors.read(config, 'config.json')

  def test_what_changes_nothing_is_taken(self):
    config = self._codec(_matrix().scheme).config() | {'sparsity_config': {'format': 'dense', 'global_sparsity': 0.1}}
    for order in (None, False, 'static', 'weight'):
      config['config_groups']['group_0']['weights']['actorder'] = order
      self.assertEqual(compressed_tensors.CompressedTensors.read(config, 'x').scheme_of('x'), _matrix().scheme)

  @parameterized.parameters(compressed_tensors.PACKED, compressed_tensors.INTEGER)
  def test_one_scale_for_the_tensor(self, layout):
    matrix = _matrix(8, True, None)
    codec = self._codec(matrices.Scheme(8, True, None, per_tensor=True), layout)
    read = compressed_tensors.CompressedTensors.read(codec.config(), 'config.json')
    made = self._codec(matrix.scheme, layout).encode(matrix, 'x') | {'weight_scale': np.array([0.25], np.float32)}
    self.assertEqual({name: array.shape for name, array in made.items()},
                     {name: shape for name, (_, shape) in read.shapes('x', _INPUTS, _OUTPUTS).items()})
    got, _ = read.decode(made, 'x', _INPUTS, 'x')
    np.testing.assert_array_equal(got.values(), (matrix.codes - 128.0) * 0.25)

  @parameterized.parameters(
      ('weights', dict(num_bits=4, strategy='tensor', symmetric=False)),
      ('weights', dict(num_bits=4, type='float', strategy='group', group_size=8)),
      ('weights', dict(num_bits=4, strategy='block', group_size=8)),
      ('weights', dict(num_bits=4, strategy='group', group_size=None)),
      ('weights', dict(num_bits=4, strategy='group', group_size=8, actorder='group')),
      ('input_activations', dict(num_bits=8, strategy='channel', dynamic=False)),
      ('output_activations', dict(num_bits=8)))
  def test_schemes_that_are_refused(self, key, values):
    config = self._codec(_matrix().scheme).config()
    config['config_groups']['group_0'][key] = values
    with self.assertRaisesRegex(errors.UserError, f'config.json: {key}'):
      compressed_tensors.CompressedTensors.read(config, 'config.json')


class OddValuesTest(parameterized.TestCase):

  @parameterized.parameters(gptq.GPTQ, awq.AWQ, compressed_tensors.CompressedTensors)
  def test_of_every_key_are_read_or_refused(self, codec):
    scheme = _matrix().scheme
    groups = [(('Linear',), scheme, None)] if codec is compressed_tensors.CompressedTensors else scheme
    config, refused = codec(groups).config(), 0
    odd = (None, -1, 0, 4.0, 1.5, '', 'x', [], ['x'], [1], {}, {'x': 1}, True, 2**70)
    for key in config:
      for value in odd:
        try:
          read = codec.read({**config, key: value}, 'config.json')
          scheme = read.scheme_of('model.x')
          self.assertIn(type(scheme and scheme.bits), (int, type(None)))
        except errors.UserError as error:
          self.assertIn('config.json', str(error))
          refused += 1
    self.assertGreater(refused, 20)


class MatricesTest(parameterized.TestCase):

  @parameterized.parameters('int3', 'int4', 'full_int8', 'uint4', 'uint8')
  def test_values_are_those_of_the_kernel(self, name):
    kernel = np.random.default_rng(0).normal(size=(_INPUTS, _OUTPUTS)).astype(np.float32)
    ours = quantize.quantize(kernel, formats.parse(name), group_size=8)
    matrix = matrices.from_qtensor(ours, 'x')
    np.testing.assert_array_equal(matrix.values(), quantize.dequantize(ours))
    back = matrices.to_qtensor(matrix)
    self.assertIsInstance(back, qtensor.QTensor)
    np.testing.assert_array_equal(quantize.dequantize(back), quantize.dequantize(ours))

  def test_one_scale_for_all_is_one_for_each(self):
    kernel = np.random.default_rng(0).normal(size=(_INPUTS, _OUTPUTS)).astype(np.float32)
    ours = quantize.quantize(kernel, formats.parse('uint4'), per_tensor=True)
    np.testing.assert_array_equal(matrices.from_qtensor(ours, 'x').values(), quantize.dequantize(ours))

  @parameterized.parameters(
      ('dint4', -2, 'special codes'), ('offset_uint4', -2, 'real zero points'), ('int4', -1, 'input channels'))
  def test_what_no_format_of_others_has_is_refused(self, name, axis, message):
    kernel = quantize.quantize(np.ones((8, 8), np.float32), formats.parse(name), axis=axis)
    with self.assertRaisesRegex(errors.UserError, f'layers/0/x: .*{message}'):
      matrices.from_qtensor(kernel, 'layers/0/x')


if __name__ == '__main__':
  absltest.main()
