"""Preemption: the notice that a job will be stopped, agreed on by all its processes.

A loop asks after every piece of work, a step of training or a block. On a yes it saves what it has, waits for it and
exits with `EXIT_CODE`, upon which a scheduler or a supervising script starts the same command again.
"""

import os
import signal

import jax
from jax.experimental import multihost_utils

from jaxquant import errors
from jaxquant import terminal

# EX_TEMPFAIL of sysexits.h: nothing is wrong, start me again.
EXIT_CODE = 75

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preemption:
  """Turns SIGTERM (preemption), SIGUSR1 (Slurm's `--signal`) and SIGINT (Ctrl-C) into the end of a piece of work.

  A context manager, entered in the main thread and, where there is one, after `jax.distributed.initialize`. Further
  signals change nothing, so that an impatient second Ctrl-C cannot cut off the checkpoint; SIGKILL still ends the
  process. In a run of several processes a signal to any one of them counts for all: JAX carries the notice to the
  others and finds an end that none of them has passed.
  """

  def __init__(self, end: str = 'this step, with a checkpoint'):
    """Begins to count pieces of work.

    Args:
      end: of a piece of work, in the words of a message.
    """
    self._end, self._asked = end, 0
    self._agree = jax.distributed.is_initialized()
    self._received, self._reached = False, False
    self._previous = {}

  def __enter__(self) -> 'Preemption':
    # JAX has a handler of its own for SIGTERM, which one of ours would replace.
    for number in SIGNALS[1:] if self._agree else SIGNALS:
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def requested(self) -> bool:
    """Whether to save and exit. From the first True on, always True. In a run of several processes all ask alike.

    Raises:
      UserError: JAX's preemption service is disabled in a run of several processes.
    """
    self._asked += 1
    if not self._agree:
      return self._received
    try:
      self._reached |= multihost_utils.reached_preemption_sync_point(self._asked)
    except RuntimeError as error:
      raise errors.UserError('set jax_enable_preemption_service, without which processes cannot agree') from error
    return self._reached

  def _receive(self, number, frame):
    del frame
    name = signal.Signals(number).name
    first, self._received = not self._received, True
    if first and self._agree:
      os.kill(os.getpid(), signal.SIGTERM)
    # Printing could deadlock if the signal came while something else was printed.
    advice = f'stopping after {self._end}' if first else 'already stopping, ignored'
    os.write(2, f'{terminal.CLEARED * os.isatty(2)}{name}: {advice}\n'.encode())
