"""Flags that say how many: integers from 1 on."""

import functools

from absl import flags

DEFINE = functools.partial(flags.DEFINE_integer, lower_bound=1)
