"""Tests of jaxquant.training.preemption.

Run with arguments, this file is one of the two processes of a training run that its test starts and stops.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxquant.training import checkpoints
from jaxquant.training import preemption
from tests import source


def _initial():
  # More than what TensorStore would put into its index instead of into a file of each process.
  return jax.random.normal(jax.random.key(0), (8, 3000))


def _step(params):
  return jax.tree.map(lambda w: w * 0.5 + jnp.roll(w, 1, axis=1), params)


def _train(index: int, port: int, directory: str, last: int):
  """Trains from the newest checkpoint until `last`, and is preempted in step 20; checkpoints at 10 and at the end."""
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)
  sharding = jax.sharding.NamedSharding(jax.make_mesh((2,), ('d',)), jax.sharding.PartitionSpec('d'))
  step = jax.jit(_step, out_shardings=sharding)
  params, done = {'w': jax.jit(_initial, out_shardings=sharding)()}, 0
  store = checkpoints.Checkpoints(directory)
  if store.latest_step():
    restored = store.restore(target={'params': params})
    params, done = restored.state['params'], restored.step
  with preemption.Preemption() as stop:
    while done < last:
      params, done = step(params), done + 1
      time.sleep(0.01)
      if done == 10:
        store.save(done, {'params': params})
      if index == 1 and done in (20, 22):
        os.kill(os.getpid(), signal.SIGUSR1)
      if stop.requested():
        break
  store.save(done, {'params': params})
  store.close()
  print(f'ended at step {done}')
  sys.exit(0 if done == last else preemption.EXIT_CODE)


class PreemptionTest(parameterized.TestCase):

  @parameterized.parameters(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
  def test_signal_requests_a_checkpoint_and_further_ones_change_nothing(self, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with preemption.Preemption() as stop:
      self.assertFalse(stop.requested())
      for again in (number, number, signal.SIGINT):
        os.kill(os.getpid(), again)
        self.assertTrue(stop.requested())
    self.assertEqual([signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)], before)

  @parameterized.parameters((True, b'\r\x1b[K'), (False, b''))
  def test_notice_takes_the_place_of_a_bar_on_a_terminal(self, terminal, start):
    with (mock.patch.object(os, 'isatty', lambda descriptor: terminal), mock.patch.object(os, 'write') as write,
          preemption.Preemption()):
      os.kill(os.getpid(), signal.SIGUSR1)
    write.assert_called_once_with(2, start + b'SIGUSR1: stopping after this step, with a checkpoint\n')

  def _run(self, directory: str, last: int) -> list[tuple[int, str, str]]:
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    environment = source.environment()
    processes = []
    for index in range(2):
      command = [sys.executable, __file__, str(index), str(port), directory, str(last)]
      processes.append(subprocess.Popen(
          command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
      self.addCleanup(processes[-1].kill)
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]

  def test_two_processes_stop_and_fall_back_at_a_common_step(self):
    directory = self.create_tempdir().full_path
    stopped = self._run(directory, 10**6)
    self.assertEqual([code for code, *_ in stopped], [preemption.EXIT_CODE] * 2, stopped)
    newest = max(int(name) for name in os.listdir(directory))
    self.assertGreater(newest, 20)
    for _, output, _ in stopped:
      self.assertIn(f'ended at step {newest}', output)
    # One of the files in which each process has put its half of the array.
    files = pathlib.Path(directory, str(newest)).rglob('ocdbt.process_1/d/*')
    os.truncate(max(files, key=lambda path: path.stat().st_size), 0)
    resumed = self._run(directory, 15)
    self.assertEqual([code for code, *_ in resumed], [0, 0], resumed)
    lines = [error.count(f'checkpoint step {newest} in {directory} is damaged: params/w') for *_, error in resumed]
    self.assertEqual(lines, [1, 0])
    expected = {'w': _initial()}
    for _ in range(15):
      expected = jax.jit(_step)(expected)
    restored = checkpoints.load_params(directory)
    self.assertEqual(restored.step, 15)
    np.testing.assert_array_equal(restored.state['params']['w'], expected['w'])


if __name__ == '__main__':
  if len(sys.argv) == 5 and sys.argv[1] in '01':
    _train(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
  absltest.main()
