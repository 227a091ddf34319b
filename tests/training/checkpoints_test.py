"""Tests of jaxquant.training.checkpoints.

Run with arguments, this file is one of the programs that its tests start and stop.
"""

import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import time

from absl import logging
from absl.testing import absltest
import jax
import jax.numpy as jnp
import optax

from jaxquant import errors
from jaxquant.training import checkpoints
from jaxquant.training import preemption
from tests import checkpoint_state
from tests import source

_OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(1e-2, 20))


def _initial_state():
  key = jax.random.key(0)
  params = {'w1': jax.random.normal(key, (8, 32)), 'w2': jax.random.normal(key, (32, 4))}
  return {'params': params, 'optimizer': _OPTIMIZER.init(params), 'key': key}


@jax.jit
def _step(state, batch):
  """One step with dropout on a batch [16, 8]."""
  key, dropout = jax.random.split(state['key'])

  def loss(params):
    hidden = jnp.tanh(batch @ params['w1']) * jax.random.bernoulli(dropout, 0.9, (16, 32))
    return jnp.mean((hidden @ params['w2'])**2)

  updates, moments = _OPTIMIZER.update(jax.grad(loss)(state['params']), state['optimizer'], state['params'])
  return {'params': optax.apply_updates(state['params'], updates), 'optimizer': moments, 'key': key}


def _train(directory: str, steps: int, stop_at: int | None = None) -> str:
  """Trains on from the newest checkpoint; is sent SIGTERM in step `stop_at`. Returns the digest of the last state."""
  store, state, batches = checkpoints.Checkpoints(directory), _initial_state(), 0
  if store.latest_step():
    restored = store.restore(target=jax.eval_shape(_initial_state))
    state, batches = restored.state, restored.data['batches']
  with preemption.Preemption() as stop:
    while batches < steps:
      state = _step(state, jax.random.normal(jax.random.fold_in(jax.random.key(1), batches), (16, 8)))
      batches += 1
      if batches == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
      if stop.requested():
        store.save(batches, state, data={'batches': batches})
        # As impatient users do; the checkpoint must survive it.
        os.kill(os.getpid(), signal.SIGINT)
        store.close()
        sys.exit(preemption.EXIT_CODE)
  return checkpoint_state.digest(state)


def _big_state(step: int):
  return {'params': {'w': jnp.full((4_000_000,), step, jnp.float32) + jnp.arange(4_000_000)}}


def _save_until_killed(root: str):
  """Forks one process after the other that saves and saves, and kills each some moments into its third save."""
  for trial, delay in enumerate((0.0, 0.01, random.random() * 0.1, random.random() * 0.1)):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
      store = checkpoints.Checkpoints(f'{root}/{trial}')
      for step in range(1, 100):
        store.save(step, _big_state(step))
        os.write(writer, b'.')
    os.close(writer)
    for _ in range(3):
      os.read(reader, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _fail(directory: str):
  """Saves step 1, fails to save step 2 three times for lack of space, and saves it."""
  store = checkpoints.Checkpoints(directory)
  store.save(1, checkpoint_state.make(1))
  store.wait()
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
  for size in (2000, 0, 500):
    # As on a full disk: no file can grow beyond this size.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
      store.save(2, checkpoint_state.make(2))
      store.wait()
    except errors.CheckpointError as error:
      print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print('restored step', store.restore().step)
  store.save(2, checkpoint_state.make(2))
  store.close()


def _run(*arguments: str) -> subprocess.CompletedProcess:
  environment = source.environment()
  return subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)


class CheckpointsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = self.create_tempdir().full_path
    self.lines = []

  def _open(self, **options) -> checkpoints.Checkpoints:
    return checkpoints.Checkpoints(self.directory, report=self.lines.append, **options)

  def _assert_restores(self, store, step: int):
    restored = store.restore(target=checkpoint_state.shapes())
    self.assertEqual(restored.step, step)
    self.assertEqual(checkpoint_state.digest(restored.state), checkpoint_state.digest(checkpoint_state.make(step)))

  def test_resumed_after_sigterm_training_ends_in_the_same_bits(self):
    stopped = _run('train', self.directory, '20', '10')
    self.assertEqual(stopped.returncode, preemption.EXIT_CODE, stopped.stderr)
    lines = 'SIGTERM: stopping after this step, with a checkpoint\nSIGINT: already stopping, ignored\n'
    self.assertEqual(stopped.stderr, lines)
    resumed = _run('train', self.directory, '20')
    self.assertEqual(resumed.stderr, '')
    self.assertEqual(resumed.stdout.strip(), _train(self.create_tempdir().full_path, 20))

  def test_kill_in_the_middle_of_a_save_leaves_the_step_before(self):
    root = self.create_tempdir().full_path
    killed = _run('kill', root)
    self.assertEqual(killed.returncode, 0, killed.stderr)
    for trial in sorted(os.listdir(root)):
      store = checkpoints.Checkpoints(f'{root}/{trial}', report=self.lines.append)
      restored = store.restore()
      self.assertGreaterEqual(restored.step, 2)
      expected = checkpoint_state.digest(_big_state(restored.step))
      self.assertEqual(checkpoint_state.digest(restored.state), expected)
      self.assertTrue(store.save(100, _big_state(100)))
      store.close()
      self.assertEqual(store.all_steps(), [restored.step, 100])
      self.assertEmpty(list(pathlib.Path(root, trial).glob('*tmp*')))
    self.assertTrue(any(re.match(r'removed .*/3\.orbax-checkpoint-tmp', line) for line in self.lines), self.lines)

  def test_donated_arrays_are_saved_as_they_were(self):
    store, state = self._open(), _big_state(1)
    expected = checkpoint_state.digest(state)
    negate = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
    store.save(1, state)
    for _ in range(5):
      state = jax.block_until_ready(negate(state))
    self.assertEqual(checkpoint_state.digest(store.restore().state), expected)

  def test_newest_and_best_are_kept_whatever_is_not_finite(self):
    for step, loss in enumerate((3.0, 1.0, 2.0, float('nan'), 4.0, -float('inf'), 5.0), 1):
      # Opened anew each time: what is best must also be known of checkpoints of earlier processes.
      store = self._open()
      store.save(step, {'params': {'w': jnp.ones(3)}}, metrics={'loss': jnp.float32(loss)})
      store.close()
    self.assertEqual(store.all_steps(), [2, 6, 7])
    self.assertEqual((store.latest_step(), store.best_step()), (7, 2))

  def test_damaged_newest_step_is_set_aside_and_saved_again(self):
    for attempt in range(2):
      store = self._open()
      for step in (1, 2) if not attempt else (2,):
        self.assertTrue(store.save(step, checkpoint_state.make(step)))
      store.close()
      os.truncate(f'{self.directory}/2/params/manifest.ocdbt', 10)
      self.lines.clear()
      self._assert_restores(self._open(read_only=True), 1)
      self.assertTrue(os.path.exists(f'{self.directory}/2'))
      self.lines.clear()
      self._assert_restores(self._open(), 1)
      self.assertLen(self.lines, 3)
      self.assertRegex(self.lines[0], '^checkpoint step 2 in .* is damaged: params/')
      self.assertEqual(self.lines[1], 'using checkpoint step 1')
      self.assertRegex(self.lines[2], 'renamed .*/2 to damaged-2' + ('-2' if attempt else ''))
      self.assertFalse(os.path.exists(f'{self.directory}/2'))
    store = self._open()
    store.restore()
    self.assertTrue(store.save(2, checkpoint_state.make(2)))
    self._assert_restores(store, 2)

  def test_failed_save_is_reported_in_one_line_and_the_next_succeeds(self):
    failed = _run('fail', self.directory)
    self.assertEqual(failed.returncode, 0, failed.stderr)
    lines = failed.stdout.splitlines()
    self.assertLen(lines, 6)
    for line in lines[::2]:
      self.assertStartsWith(line, f'checkpoint step 2 could not be saved in {self.directory}: ')
    self.assertEqual(lines[1::2], ['restored step 1'] * 3)
    for line in failed.stderr.splitlines():
      self.assertRegex(line, r'^removed .*/2\.orbax-checkpoint-tmp, left by a save that did not finish$')
    self._assert_restores(self._open(), 2)

  def test_steps_are_saved_once_and_in_order(self):
    store = self._open()
    self.assertTrue(store.save(5, checkpoint_state.make(5)))
    self.assertFalse(store.save(5, checkpoint_state.make(6)))
    with self.assertRaisesRegex(errors.CheckpointError, 'step 4 cannot be saved .* holds step 5'):
      store.save(4, checkpoint_state.make(4))
    self._assert_restores(store, 5)
    self.assertEqual(store.all_steps(), [5])

  def test_refused_state_leaves_nothing_behind(self):
    store = self._open()
    with self.assertRaisesRegex(errors.UserError, 'a state needs params and identifiers as names, not weights'):
      store.save(1, {'weights': jnp.ones(3)})
    with self.assertRaisesRegex(errors.UserError, 'params/rate is a float'):
      store.save(1, {'params': {'rate': 1.0}})
    store.close()
    self.assertEmpty(os.listdir(self.directory))


if __name__ == '__main__':
  if len(sys.argv) > 2 and sys.argv[1] in ('train', 'kill', 'fail'):
    # As in a launcher, where Orbax would write many lines about every save.
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    if sys.argv[1] == 'train':
      print(_train(sys.argv[2], *map(int, sys.argv[3:])))
    else:
      {'kill': _save_until_killed, 'fail': _fail}[sys.argv[1]](sys.argv[2])
  else:
    absltest.main()
