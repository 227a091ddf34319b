"""What pytest sets up before it imports a test, and absltest.main() does for a test that is run as a script.

The tests run on the CPU, also where there is a GPU: what is bit-exact is stated for the CPU. `pytest -n 0 -m gpu` runs
the tests marked so, and leaves the device to JAX.

Most of the time goes into compiling, so programs are compiled fast (tests/compiling.py), and once for all processes.
With `XLA_FLAGS=` set to anything, be it nothing, pytest compiles as users do; so do tests that are run as scripts.
"""

import gc
import os
import pathlib
import shutil
import tempfile

from absl import flags
import pytest

from tests import compiling

_SCRATCH = tempfile.mkdtemp(prefix='jaxquant-tests-')
_MOST_MAPS = 30_000
_ALLOCATIONS = 50_000  # of containers, between two collections of the youngest


def pytest_configure(config):
  """Parses absl's flags, and chooses the scratch folder and the device."""
  # The default of absltest is one folder for every user and run of a machine.
  os.environ['TEST_TMPDIR'] = _SCRATCH
  if config.option.markexpr == 'not gpu':
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    os.environ.setdefault('XLA_FLAGS', compiling.FAST)
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # NumPy's threads would only wait, and take time for it
    # Set by the first process, whose folder goes last.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{_SCRATCH}/programs')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    # Of what is traced nobody asks which lines it came from.
    os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
  else:
    # Several processes share the GPU, none of which takes more of its memory than it needs.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  flags.FLAGS.mark_as_parsed()


def pytest_collection_finish():
  """Spares the collector of cycles what was imported, and runs it less often: tracing leaves few cycles."""
  gc.freeze()
  gc.set_threshold(_ALLOCATIONS)


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """Lets go of compiled programs before Linux aborts the process: each takes memory maps, of which there are 65,530."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > _MOST_MAPS:
    import jax  # pylint: disable=g-import-not-at-top  # most workers have it by then
    jax.clear_caches()


def pytest_unconfigure():
  """Removes the scratch folder."""
  shutil.rmtree(_SCRATCH, ignore_errors=True)
