"""Tests of jaxquant.training.manifest."""

import copy
import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.training import checksums
from jaxquant.training import manifest
from tests import checkpoint_state

_struct = jax.ShapeDtypeStruct


def _with_kernel(params, kernel):
  return params | {'layers': params['layers'] | {'0': {'kernel': kernel, 'bias': None}}}


class ManifestTest(parameterized.TestCase):

  def test_rebuilds_parameters_from_their_json(self):
    state = checkpoint_state.make(1)
    arrays = manifest.stored_arrays(state)
    entries = json.loads(json.dumps(manifest.describe(state, checksums.checksum(arrays))))
    rebuilt = manifest.rebuild(entries, lambda path, record: manifest.from_stored(arrays[path], record))
    self.assertEqual(checkpoint_state.digest(rebuilt['params']), checkpoint_state.digest(state['params']))
    leaves = [leaf for name in ('optimizer', 'step', 'keys') for leaf in rebuilt[name].values()]
    expected = jax.tree.leaves([state['optimizer'], state['step']]) + [state['keys']['many'], state['keys']['one']]
    self.assertEqual(checkpoint_state.digest(leaves), checkpoint_state.digest(expected))

  def test_shapes_alone_give_the_same_description(self):
    saved = manifest.describe(checkpoint_state.make(1), checksums.checksum(checkpoint_state.make(1)))
    wanted = manifest.describe(checkpoint_state.shapes())
    self.assertEmpty(list(manifest.differences(saved, wanted)))

  @parameterized.parameters(
      (["params/layers/0/kernel/format is 'int4' in the checkpoint, not 'int8'"], 'params',
       lambda p: _with_kernel(p, dataclasses.replace(p['layers']['0']['kernel'], format=formats.parse('int8')))),
      (['params/layers/0/kernel/axis is -2 in the checkpoint, not -1'], 'params',
       lambda p: _with_kernel(p, dataclasses.replace(p['layers']['0']['kernel'], axis=-1))),
      (['params/layers/0/kernel is QTensor in the checkpoint, not float32[16, 6]'], 'params',
       lambda p: _with_kernel(p, _struct((16, 6), jnp.float32))),
      (['params/int8 is int8[9] in the checkpoint, not int4[9]'], 'params',
       lambda p: p | {'int8': _struct((9,), jnp.int4)}),
      (['params/int8 is int8[9] in the checkpoint, not int8[3, 3]'], 'params',
       lambda p: p | {'int8': _struct((3, 3), jnp.int8)}),
      (['params/mask is in the checkpoint only', 'params/other is not in the checkpoint'], 'params',
       lambda p: {'other' if k == 'mask' else k: v for k, v in p.items()}),
      (['step is int32[] in the checkpoint, not float32[]'], 'step', lambda _: _struct((), jnp.float32)),
      (['keys/one is uint32[2] of threefry2x32 keys in the checkpoint, not uint32[4] of rbg keys'], 'keys',
       lambda k: k | {'one': jax.eval_shape(lambda: jax.random.key(0, impl='rbg'))}),
      (['keys/one is uint32[2] of threefry2x32 keys in the checkpoint, not uint32[2]'], 'keys',
       lambda k: k | {'one': _struct((2,), jnp.uint32)}),
      ([f'optimizer/1/0/{name} is in the checkpoint only' for name in ('count', 'mu/w', 'nu/w')], 'optimizer',
       lambda _: optax.sgd(1.0).init({})),
  )
  def test_differences_name_paths_and_both_sides(self, expected, entry, change):
    shapes = checkpoint_state.shapes()
    wanted = manifest.describe(shapes | {entry: change(shapes[entry])})
    self.assertEqual(list(manifest.differences(manifest.describe(shapes), wanted)), expected)

  @parameterized.parameters(
      ('params/a/b is a float; a checkpoint holds arrays only', {'a': {'b': 1.0}}),
      (r'params/e has shape \(0, 3\); a checkpoint holds no empty arrays', {'e': np.ones((0, 3), np.float32)}),
      ('params/w is float64, which a checkpoint cannot hold', {'w': np.ones(3)}),
      ('params/w is uint4, which a checkpoint cannot hold', {'w': np.ones(3, jnp.uint4)}),
      ('two arrays of the state have the same path', {'a/b': np.int32(1), 'a': {'b': np.int32(1)}}),
      ('params/l is a list; parameters are dicts, nodes and arrays', {'l': [np.int32(1)]}),
  )
  def test_refuses_what_cannot_come_back_as_it_was(self, message, params):
    with self.assertRaisesRegex(errors.UserError, message):
      manifest.describe({'params': params}, checksums.checksum(manifest.stored_arrays({'params': params})))

  def test_seal_breaks_at_any_change_and_copies(self):
    content = {'step': 1, 'data': {'next': [0.1, 'é', None]}}
    document = manifest.seal(content)
    self.assertEqual(manifest.unseal(json.loads(json.dumps(document))), content)
    content['data']['next'][0] = 0.2
    self.assertEqual(manifest.unseal(document)['data']['next'][0], 0.1)
    changed = copy.deepcopy(document)
    changed['content']['step'] = 2
    with self.assertRaises(ValueError):
      manifest.unseal(changed)

  @parameterized.parameters(float('nan'), np.float32(1.0), ([{1, 2}],))
  def test_seal_refuses_what_is_not_json(self, value):
    with self.assertRaisesRegex(errors.UserError, 'not JSON'):
      manifest.seal({'metadata': value})


if __name__ == '__main__':
  absltest.main()
