"""Errors a user can cause, each with the exit code that a launcher returns.

The library raises these with one complete sentence that names the culprit; `launch` prints that sentence on one line
and exits with `exit_code`. Anything else that escapes is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
  """A mistake in a config, flag, file or argument. Exit code 2."""

  exit_code = 2


class CheckpointError(UserError):
  """A checkpoint is damaged or does not fit the model. Exit code 3."""

  exit_code = 3


class NonFiniteError(UserError):
  """A loss, gradient or weight stopped being finite. Exit code 4."""

  exit_code = 4
  collective = True  # every process of a run raises it
