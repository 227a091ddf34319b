"""Keeps off the terminal what Orbax and its threads print; what a user must know of it reaches him as one line of ours.

At the level of a launcher's logging Orbax writes a page about each save. When a save fails, say on a full disk, Orbax
raises the first error; the other writes under way then complain to an event loop that is closed, each with a trace.
"""

import functools
import logging
import os
import sys
import warnings

from absl import logging as absl_logging


@functools.cache
def orbax() -> None:
  """Drops log records of Orbax's, and complaints of its abandoned writes, in this process from now on."""
  with_trace = logging.Formatter().format
  absl_logging.get_absl_logger().addFilter(lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname)
  logging.getLogger('asyncio').addFilter(lambda record: 'orbax' not in with_trace(record))
  warnings.filterwarnings('ignore', r"coroutine 'async_serialize.* was never awaited", RuntimeWarning)
  report = sys.unraisablehook

  def report_others(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      report(unraisable)

  sys.unraisablehook = report_others
