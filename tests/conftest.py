"""What pytest sets up before it imports a test, and absltest.main() does for a test that is run as a script.

The tests run on the CPU, also where there is a GPU: what is bit-exact is stated for the CPU. `pytest -n 0 -m gpu` runs
the tests marked so, and leaves the device to JAX.
"""

import os
import shutil
import tempfile

from absl import flags

_SCRATCH = tempfile.mkdtemp(prefix='jaxquant-tests-')


def pytest_configure(config):
  """Parses absl's flags, and chooses the scratch folder and the device."""
  # The default of absltest is one folder for every user and run of a machine.
  os.environ['TEST_TMPDIR'] = _SCRATCH
  if config.option.markexpr == 'not gpu':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  flags.FLAGS.mark_as_parsed()


def pytest_unconfigure():
  """Removes the scratch folder."""
  shutil.rmtree(_SCRATCH, ignore_errors=True)
