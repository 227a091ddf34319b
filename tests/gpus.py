"""What marks tests for an NVIDIA GPU: `pytest -n 0 -m gpu` runs these alone."""

import os
import types
import unittest

import pytest


def needed(test):
  """Marks a test or a class of tests `gpu`; where JAX is held to the CPU and no mark is read, they are skipped."""
  if not isinstance(test, (type, types.FunctionType)):
    raise TypeError('the mark stands below what parameterizes a test, where it would be lost')
  skipped = unittest.skipIf(os.environ.get('JAX_PLATFORMS') == 'cpu', 'needs a GPU, and JAX_PLATFORMS is cpu')
  return pytest.mark.gpu(skipped(test))
