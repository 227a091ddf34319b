"""Flags that say how many: integers from 1 on, or lists of them."""

import functools

from absl import flags

from jaxquant import errors

DEFINE = functools.partial(flags.DEFINE_integer, lower_bound=1)


def integers(flag: flags.FlagHolder[list[str]], least: int = 1) -> list[int]:
  """The values of a flag that lists integers from `least` on, at least one; `UserError` for anything else."""
  try:
    values = [int(value) for value in flag.value]
  except ValueError:
    values = []
  if not values or min(values) < least:
    raise errors.UserError(f'--{flag.name} takes integers from {least} on, not {",".join(flag.value)!r}')
  return values
