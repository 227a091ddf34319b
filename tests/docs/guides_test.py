"""What the guides of docs/ show runs as it stands there, on a tiny model; and what they link to is there."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from pydoc_data import topics

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant.interop import tensor_file
from tests import compiling
from tests import guides
from tests import model_directories
from tests import source

_GUIDES = ('quantize_your_model', 'compose_transforms', 'add_a_method', 'add_a_family', 'cluster')
# As wide as the groups of published settings ask for, and one block deep, since it is compiled many times.
_SIZES = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=1, max_position_embeddings=128)
_LINK = re.compile(r'\]\(([^)#:]+)\)')
_CODE = re.compile(r'`((?:jaxquant|kernels|launch|configs|tests|docs)/[\w/.]*)`')


@functools.cache
def _scratch() -> pathlib.Path:
  """The folder of what the guides ask a reader for: a model, a text to calibrate on and one to score."""
  folder = pathlib.Path(absltest.get_default_test_tmpdir()) / 'guides'
  shutil.rmtree(folder, ignore_errors=True)
  model = model_directories.write(folder / 'model', 'llama', **_SIZES)
  arrays = model_directories.tensors({**model_directories.CONFIGS['llama'], **_SIZES})
  tensor_file.write(model / 'model.safetensors', arrays, {'format': 'pt'})
  text = '\n'.join(topics.topics[name] for name in sorted(topics.topics))
  (folder / 'calibration.txt').write_text(text[:60_000], encoding='utf-8')
  (folder / 'text.txt').write_text(text[60_000:61_500], encoding='utf-8')
  return folder


def _environment() -> dict[str, str]:
  folder = _scratch()
  return {
      **os.environ, 'PYTHONPATH': str(source.ROOT),
      'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
      'MODEL': str(folder / 'model'), 'CALIBRATION': str(folder / 'calibration.txt'), 'TEXT': str(folder / 'text.txt'),
      # One program after the other, compiled fast and once: they run for a moment.
      'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': compiling.FAST, 'OPENBLAS_NUM_THREADS': '1',
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}


class GuidesTest(parameterized.TestCase):

  @parameterized.parameters(*_GUIDES)
  def test_blocks_run(self, name):
    folder = _scratch() / name
    folder.mkdir()
    (folder / 'configs').symlink_to(source.ROOT / 'configs')  # the guides are followed in a checkout
    guide = source.ROOT / 'docs' / f'{name}.md'
    languages = [block.language for block in guides.blocks(guide)]
    self.assertNotEmpty(set(languages) & {'python', 'sh'})
    self.assertContainsSubset(languages, ['python', 'sh', 'text'])  # a word that is misspelled would not be run
    finished = subprocess.run(
        [sys.executable, '-m', 'tests.guides', str(guide)], cwd=folder, env=_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    self.assertEqual(finished.returncode, 0, finished.stdout)

  def test_every_guide_is_run_and_linked_from_the_readme(self):
    linked = _LINK.findall((source.ROOT / 'README.md').read_text(encoding='utf-8'))
    shown = {path.stem for path in (source.ROOT / 'docs').glob('*.md') if guides.blocks(path)}
    self.assertContainsSubset(shown, _GUIDES)
    self.assertContainsSubset([f'docs/{name}.md' for name in _GUIDES], linked)

  @parameterized.parameters('README', *(f'docs/{name}' for name in _GUIDES))
  def test_files_that_are_named_exist(self, name):
    path = source.ROOT / f'{name}.md'
    text = path.read_text(encoding='utf-8')
    self.assertEmpty([link for link in _LINK.findall(text) if not (path.parent / link).exists()])
    self.assertEmpty([file for file in _CODE.findall(text) if not (source.ROOT / file).exists()])


if __name__ == '__main__':
  absltest.main()
