"""Finished blocks on disk: those of the same run come back bit for bit, all others are computed again."""

import functools
import json
import math
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.calibration import driver
from jaxquant.models import staging
from jaxquant.numerics import formats
from jaxquant.numerics import nodes
from jaxquant.numerics import quantizers
from jaxquant.numerics import trees
from jaxquant.training import block_store
from jaxquant.transforms import activation_ranges
from jaxquant.transforms import round_to_nearest
from tests import checkpoint_state
from tests import networks

_LAYERS = 3
_MODEL = staging.staged(networks.config('llama', layers=_LAYERS))
_STEPS = [
    driver.Step('linears', [('.*', functools.partial(
        round_to_nearest.round_to_nearest, weight=quantizers.WeightQuantizer(formats.IntFormat(3))))]),
    driver.Step('sites', [('.*', functools.partial(activation_ranges.activation_ranges, bits=8))], stream='quantized')]
_BATCHES = [networks.tokens(3, seed=seed) for seed in range(2)]


class Interrupted(Exception):
  """What ends a run in the middle."""


def _params():
  return networks.params('llama', _LAYERS)


def _run(store=None, report=lambda progress: None):
  return driver.run(_params(), _MODEL, _STEPS, _BATCHES, store=store, report=report)


_straight = functools.cache(_run)


def _stop_at(path, progress):
  if progress.block == path:
    raise Interrupted


def _flip_a_bit(file: pathlib.Path) -> None:
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


class BlockStoreTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path) / 'blocks'
    self.lines = []

  def open(self, run='run'):
    return block_store.BlockStore(self.directory, run, self.lines.append)

  def assert_continues(self, restored):
    """A run on the store restores these blocks, computes the others, and ends as a straight one."""
    seen = []
    result = _run(self.open(), seen.append)
    self.assertEqual([entry.block for entry in seen if entry.work == 'restored'], restored)
    self.assertEqual(seen[-1].done, seen[-1].total)
    self.assertEqual(nodes.encode(result.params), nodes.encode(_straight().params))
    jax.tree.map(np.testing.assert_array_equal, result.params, _straight().params)
    self.assertEqual(result.decisions, _straight().decisions)

  def interrupt(self, at='layers/2'):
    with self.assertRaises(Interrupted):
      _run(self.open(), functools.partial(_stop_at, at))

  def test_interrupted_run_continues_behind_the_last_finished_block(self):
    self.interrupt()
    self.assertCountEqual(os.listdir(self.directory), ['layers.0', 'layers.1'])
    self.assert_continues(['layers/0', 'layers/1'])
    self.assert_continues(['layers/0', 'layers/1', 'layers/2', ''])
    self.assertEmpty(self.lines)

  def test_trees_of_every_kind_and_decisions_come_back_to_the_bit(self):
    params, decisions = checkpoint_state.make(1)['params'], {'q': {'axis': 1, 'share': 0.1, 'curve': [1e-42, math.inf]}}
    for path in ('layers/0', ''):
      self.open().save(path, params, decisions)
      found, made = self.open().finished(path)
      self.assertEqual(checkpoint_state.digest(found), checkpoint_state.digest(params))
      self.assertEqual(nodes.encode(found), nodes.encode(params))
      self.assertEqual(json.dumps(made), json.dumps(decisions))
    self.assertIsNone(self.open().finished('layers/1'))

  @parameterized.parameters(_flip_a_bit, lambda file: os.truncate(file, 50), os.unlink)
  def test_damaged_block_is_computed_again_with_one_line(self, damage):
    self.interrupt()
    (file,) = (self.directory / 'layers.0').glob('0/params/d/*')  # where Orbax keeps the numbers of small arrays
    damage(file)
    self.assert_continues(['layers/1'])
    self.assertLen(self.lines, 1)
    self.assertRegex(self.lines[0], 'removed .*/layers.0, which is damaged and is computed again: .*params/')
    self.assert_continues(['layers/0', 'layers/1', 'layers/2', ''])

  def test_blocks_that_traded_places_are_not_trusted(self):
    self.interrupt()
    first, second, aside = (self.directory / name for name in ('layers.0', 'layers.1', 'aside'))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    self.assert_continues([])
    self.assertLen(self.lines, 1)

  def test_blocks_of_another_run_are_removed_with_one_line(self):
    self.interrupt()
    self.assertIsNone(self.open('another').finished('layers/0'))
    self.assertEqual(
        self.lines, [f'removed {self.directory}, the blocks of another model, data or configuration'])
    self.assertFalse(self.directory.exists())
    self.assertIsNone(self.open().finished('layers/1'))

  def test_a_block_kept_again_replaces_the_one_before(self):
    store = self.open()
    for value in (1, 2):
      store.save('a', {'x': jnp.full(3, value)}, {'x': {'value': value}})
    params, decisions = store.finished('a')
    np.testing.assert_array_equal(params['x'], 2)
    self.assertEqual(decisions, {'x': {'value': 2}})

  def test_clear_leaves_nothing_on_disk(self):
    self.interrupt()
    self.open().clear()
    self.assertFalse(self.directory.exists())
    self.open().clear()
    self.assertEmpty(self.lines)


class FingerprintTest(absltest.TestCase):

  def test_everything_that_matters_changes_it(self):
    params, configuration = _params(), {'bits': 4, 'pattern': ['a']}
    rounded = trees.put(params, 'head/kernel', quantizers.WeightQuantizer(formats.IntFormat(4)).quantized(
        trees.get(params, 'head/kernel')))
    packed = trees.get(rounded, 'head/kernel')
    other = type(packed)(packed.codes, packed.scale, None, formats.parse('int2'), packed.axis, 2 * packed.size)
    nudged = trees.put(params, 'head/kernel', params['head']['kernel'].at[3, 4].multiply(1 + 1e-6))
    batches = [np.asarray(batch) for batch in _BATCHES]
    changed = batches[0].copy()
    changed[2, 7] += 1
    prints = [block_store.fingerprint(*arguments) for arguments in (
        (params, batches, configuration),
        (nudged, batches, configuration),
        (trees.put(params, 'extra', jnp.zeros(1)), batches, configuration),
        (rounded, batches, configuration),
        (trees.put(rounded, 'head/kernel', other), batches, configuration),
        (params, [changed, batches[1]], configuration),
        (params, batches[::-1], configuration),
        (params, batches[:1], configuration),
        (params, [np.concatenate(batches)], configuration),
        (params, batches, {**configuration, 'bits': 3}))]
    self.assertLen(set(prints), len(prints))
    backwards = lambda mapping: dict(reversed(mapping.items()))
    again = block_store.fingerprint(
        backwards(params), [jnp.asarray(batch) for batch in batches], backwards(configuration))
    self.assertEqual(again, prints[0])


if __name__ == '__main__':
  absltest.main()
