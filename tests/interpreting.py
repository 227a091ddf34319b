"""Kernels run without a GPU: Mosaic's interpreter, where JAX has it."""

import unittest

from jax.experimental.pallas import mosaic_gpu as plgpu

needed = unittest.skipUnless(hasattr(plgpu, 'force_gpu_interpret_mode'), 'this jax does not interpret Mosaic')


def kernels(detect_races: bool = False):
  """A context in which kernels are interpreted; races are told on standard output."""
  return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=detect_races))
