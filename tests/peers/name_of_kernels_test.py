"""Our package called `kernels` leaves transformers alone, which looks for a distribution of that name."""

import pathlib
import subprocess
import sys

from absl.testing import absltest

from tests import peering
from tests import source

_PROGRAM = '''
import sys
from transformers.utils import import_utils
import kernels
assert kernels.__file__.startswith({root!r}), kernels.__file__
assert not import_utils.is_kernels_available(), import_utils._is_package_available('kernels', return_version=True)
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained({model!r})).__name__)
'''


@peering.needed
class NameOfKernelsTest(absltest.TestCase):

  def _assert_undisturbed(self, *path):
    program = _PROGRAM.format(root=str(source.ROOT), model=str(peering.saved('llama')))
    made = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=self.create_tempdir().full_path,
        env={'PYTHONPATH': ':'.join(map(str, (*path, source.ROOT))), 'JAX_PLATFORMS': 'cpu', 'PATH': '/usr/bin:/bin',
             'HOME': self.create_tempdir().full_path})
    self.assertEqual((made.returncode, made.stdout), (0, 'LlamaForCausalLM\n'), made.stderr)

  def test_in_a_checkout(self):
    self._assert_undisturbed()

  def test_installed(self):
    # Metadata say that a distribution called jaxquant provides a package called kernels, and of which version it is.
    version = next(line.partition('=')[2].strip() for line in (source.ROOT / 'setup.cfg').read_text().splitlines()
                   if line.startswith('version'))
    folder = pathlib.Path(self.create_tempdir().full_path)
    metadata = folder / f'jaxquant-{version}.dist-info'
    metadata.mkdir()
    (metadata / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: jaxquant\nVersion: {version}\n')
    (metadata / 'top_level.txt').write_text('jaxquant\nkernels\nlaunch\n')
    self._assert_undisturbed(folder)


if __name__ == '__main__':
  absltest.main()
