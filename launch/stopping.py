"""How launchers end that keep what they have finished: SIGTERM, SIGUSR1 and Ctrl-C make them exit with code 75."""

import signal
import sys
from collections.abc import Callable

_GOES_ON = 'stopped; the same command goes on behind what is finished'
_ELSEWHERE = .01  # seconds after which a stop that was ignored is raised again


class Stopped(KeyboardInterrupt):
  """Somebody asked the launcher to stop."""

  def __init__(self, message: str, exit_code: int):
    super().__init__(message)
    self.exit_code = exit_code


def stoppable(main: Callable[[Callable[[], None]], None]) -> Callable[[], None]:
  """`main` of a launcher, for `runtime.launch`: a signal to stop raises `Stopped` in it.

  A single process ends at once. Of several, none can leave the others alone: they end together at a later call of the
  function that `main` gets, which all of them call after each piece of work.
  """
  def run():
    import jax  # pylint: disable=g-import-not-at-top  # here, so that --help and mistakes in flags are answered at once
    from jaxquant.training import preemption  # pylint: disable=g-import-not-at-top
    if jax.process_count() == 1:
      _run_alone(main, preemption.SIGNALS, preemption.EXIT_CODE)
      return
    with preemption.Preemption('this block') as preempted:
      def stop():
        if preempted.requested():
          raise Stopped(_GOES_ON, preemption.EXIT_CODE)

      main(stop)

  return run


def _run_alone(main, signals, exit_code) -> None:
  """Runs `main`, whose only process stops at once."""
  def handle(handler):
    for number in signals:
      signal.signal(number, handler)

  def stop(number, frame):
    del frame
    handle(signal.SIG_IGN)
    raise Stopped(f'{signal.Signals(number).name}: {_GOES_ON}', exit_code)

  _raise_what_is_ignored()
  handle(stop)
  try:
    main(lambda: None)
  finally:
    # Nothing is left to stop, and Python's own end is not to be disturbed.
    handle(signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_what_is_ignored() -> None:
  """Has a stop raised once more, elsewhere, that Python ignores.

  A signal that comes during a destructor or the callback of a weak reference raises there, where an exception ends
  nothing.
  """
  report = sys.unraisablehook

  def report_others(ignored):
    stopped = ignored.exc_value
    if not isinstance(stopped, Stopped):
      report(ignored)
      return

    def stop(number, frame):
      raise stopped

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _ELSEWHERE)

  sys.unraisablehook = report_others
