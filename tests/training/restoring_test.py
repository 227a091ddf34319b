"""Tests of jaxquant.training.restoring, through the checkpoints that it reads."""

import os
import pathlib
import random
import shutil
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxquant import errors
from jaxquant.numerics import formats
from jaxquant.training import checkpoints
from tests import checkpoint_state
from tests import compiling
from tests import source

# Restores to eight devices by a function and by trees of shardings; saves it from there as step 2.
_EIGHT_DEVICES = """
import sys, jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxquant.training import checkpoints
from tests import checkpoint_state
whole = NamedSharding(jax.make_mesh((8,), ('d',), (AxisType.Auto,)), PartitionSpec())
split = NamedSharding(whole.mesh, PartitionSpec('d'))
store = checkpoints.Checkpoints(sys.argv[1])
place = lambda path, struct: split if struct.shape and struct.shape[0] % 8 == 0 else whole
params = store.restore(shardings=place).state['params']
assert params['layers']['1']['kernel'].sharding == split and params['mask'].sharding == whole
print(checkpoint_state.digest(params))
trees = {'params': {'layers': {'0': {'kernel': {'codes': split}}, '1': split}, 'int8': whole}}
state = store.restore(target=checkpoint_state.shapes(), shardings=trees | {'keys': whole}).state
layers = state['params']['layers']
assert {layers['0']['kernel'].codes.sharding, layers['1']['kernel'].sharding} == {split}
assert len(state['params']['bfloat16'].devices()) == 1 and len(state['keys']['one'].devices()) == 8
print(checkpoint_state.digest(state))
with jax.set_mesh(whole.mesh):
  assert store.restore().state['params']['mask'].sharding == whole
store.save(2, state)
store.close()
"""


class RestoringTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = self.create_tempdir().full_path
    self.lines = []

  def _open(self, **options) -> checkpoints.Checkpoints:
    return checkpoints.Checkpoints(self.directory, report=self.lines.append, **options)

  def _save(self, *steps: int, **options):
    store = self._open()
    for step in steps:
      store.save(step, checkpoint_state.make(step), **options)
    store.close()

  def test_all_comes_back_bit_for_bit(self):
    self._save(3, data={'next': [1, 2.5]}, metadata={'config': 'é', 'nothing': None})
    restored = self._open(read_only=True).restore(target=checkpoint_state.shapes())
    self.assertEqual(checkpoint_state.digest(restored.state), checkpoint_state.digest(checkpoint_state.make(3)))
    self.assertEqual(restored[2:], ({'next': [1, 2.5]}, {'config': 'é', 'nothing': None}))
    self.assertEmpty(self.lines)

  def test_parameters_come_back_without_a_model_and_without_reading_the_optimizer(self):
    self._save(3)
    shutil.rmtree(f'{self.directory}/3/optimizer')
    state = checkpoints.load_params(self.directory).state
    expected = {'params': checkpoint_state.make(3)['params']}
    self.assertEqual(checkpoint_state.digest(state), checkpoint_state.digest(expected))
    self.assertEqual(state['params']['layers']['0']['kernel'].format, formats.parse('int4'))

  def test_flipped_bit_is_named_and_never_restored(self):
    self._save(1, 2)
    intact = self.create_tempdir().full_path
    shutil.copytree(self.directory, intact, dirs_exist_ok=True)
    expected = {step: checkpoint_state.digest(checkpoint_state.make(step)) for step in (1, 2)}
    files = sorted(path for path in pathlib.Path(intact, '2').rglob('*') if path.is_file() and path.stat().st_size)
    largest = max(files, key=lambda path: path.stat().st_size)
    for trial in range(30):
      # In its middle, the largest file holds nothing but the floats of a kernel; elsewhere a flip may be harmless.
      in_kernel = trial < 15
      path = largest if in_kernel else random.choice(files)
      content = bytearray(path.read_bytes())
      byte = random.randrange(len(content) // 4, len(content) // 2) if in_kernel else random.randrange(len(content))
      content[byte] ^= 1 << random.randrange(8)
      with self.subTest(path=path.relative_to(intact), byte=byte):
        shutil.copytree(intact, self.directory, dirs_exist_ok=True)
        pathlib.Path(self.directory, path.relative_to(intact)).write_bytes(content)
        self.lines.clear()
        restored = self._open(read_only=True).restore(target=checkpoint_state.shapes())
        self.assertEqual(checkpoint_state.digest(restored.state), expected[restored.step])
        self.assertLen(self.lines, 2 * (2 - restored.step))
        if in_kernel:
          self.assertRegex(self.lines[0], r'step 2 .* damaged: .*params/layers/1/kernel')

  @parameterized.product(entry=('params', 'optimizer', 'manifest'), damage=('half', 'empty', 'missing', 'folder'))
  def test_damaged_files_are_named_and_the_step_before_is_used(self, entry, damage):
    self._save(1, 2)
    folder = pathlib.Path(self.directory, '2', entry)
    file = folder / ('metadata' if entry == 'manifest' else 'manifest.ocdbt')
    {'half': lambda: os.truncate(file, file.stat().st_size // 2), 'empty': lambda: os.truncate(file, 0),
     'missing': file.unlink, 'folder': lambda: shutil.rmtree(folder)}[damage]()
    restored = self._open(read_only=True).restore(target=checkpoint_state.shapes())
    self.assertEqual(checkpoint_state.digest(restored.state), checkpoint_state.digest(checkpoint_state.make(1)))
    self.assertLen(self.lines, 2)
    self.assertRegex(self.lines[0], f'^checkpoint step 2 in [^\n]* is damaged: [^\n]*{entry}[^\n]*$')
    self.assertEqual(self.lines[1], 'using checkpoint step 1')

  def test_a_step_renamed_to_another_is_damaged(self):
    self._save(1)
    shutil.copytree(f'{self.directory}/1', f'{self.directory}/2')
    self.assertEqual(self._open(read_only=True).restore().step, 1)
    self.assertIn('step 2', self.lines[0])

  def test_arrays_of_another_checkpoint_with_the_same_bits_are_damage(self):
    other = self.create_tempdir().full_path
    for directory, dtype in ((self.directory, jnp.float32), (other, jnp.int32)):
      store = checkpoints.Checkpoints(directory)
      store.save(1, {'params': {'w': jnp.arange(6, dtype=jnp.int32).view(dtype)}})
      store.close()
    shutil.rmtree(f'{self.directory}/1/params')
    shutil.copytree(f'{other}/1/params', f'{self.directory}/1/params')
    with self.assertRaisesRegex(errors.CheckpointError, r'params/w cannot be read: .*stored as int32\[6\]'):
      self._open(read_only=True).restore()

  def test_refuses_if_all_or_the_one_asked_for_are_damaged(self):
    with self.assertRaisesRegex(errors.CheckpointError, 'no checkpoint to restore in'):
      self._open(read_only=True).restore()
    self._save(1, 2, 3)
    for step in (2, 3):
      pathlib.Path(self.directory, str(step), 'params', 'manifest.ocdbt').unlink()
    store = self._open()
    with self.assertRaisesRegex(errors.CheckpointError, r'^checkpoint step 2 in \S* is damaged: params/[^\n]*$'):
      store.restore(2)
    with self.assertRaisesRegex(errors.CheckpointError, r'^no checkpoint [^\n]*step 3 [^\n]*; [^\n]*step 2 [^\n]*$'):
      store.restore()
    with self.assertRaisesRegex(errors.CheckpointError, r'^no step 7 in \S*, only \[2, 3\]$'):
      store.restore(7)
    self.assertEqual(store.all_steps(), [2, 3])

  def test_target_that_differs_is_refused_and_nothing_cast(self):
    self._save(1, 2)
    target = checkpoint_state.shapes()
    target['params'] |= {'int8': jax.ShapeDtypeStruct((9,), jnp.int32), 'mask': None}
    message = (r'^checkpoint step 2 in \S* does not fit: params/int8 is int8\[9\] in the checkpoint, not int32\[9\]; '
               r'params/mask is bool\[2\] in the checkpoint, not None; schedule is not in the checkpoint$')
    with self.assertRaisesRegex(errors.CheckpointError, message):
      self._open(read_only=True).restore(target=target | {'schedule': jax.ShapeDtypeStruct((), jnp.int32)})
    self.assertEmpty(self.lines)

  def test_restores_to_other_devices_than_it_was_saved_from(self):
    self._save(1)
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': compiling.on_devices(8)}
    command = [sys.executable, '-c', _EIGHT_DEVICES, self.directory]
    result = subprocess.run(command, cwd=source.ROOT, env=environment, capture_output=True, text=True)
    self.assertEqual(result.returncode, 0, result.stderr)
    state = checkpoint_state.make(1)
    self.assertEqual(result.stdout.split(), [checkpoint_state.digest(tree) for tree in (state['params'], state)])
    restored = self._open().restore(target=checkpoint_state.shapes())
    self.assertEqual((restored.step, checkpoint_state.digest(restored.state)), (2, checkpoint_state.digest(state)))

  def test_impossible_sharding_is_refused_by_path(self):
    self._save(1)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ('d',)), jax.sharding.PartitionSpec(None, 'd'))
    with self.assertRaisesRegex(errors.UserError, '^params/int8 cannot be sharded as asked: [^\n]*$'):
      self._open().restore(shardings={'params': {'int8': sharding}})
    self.assertEmpty(self.lines)


if __name__ == '__main__':
  absltest.main()
