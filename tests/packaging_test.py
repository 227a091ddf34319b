"""setup.cfg declares what is imported, and `run` finds or refuses an interpreter as its usage text says."""

import configparser
import importlib.util
from importlib import metadata
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv

from absl.testing import absltest

from tests import source

# All that `run` may call; a PATH of these alone has no uv and no other Python.
_TOOLS = ('sh', 'cat', 'cksum', 'mkdir', 'mv', 'rm')
# Prints what a command must receive from `run`, and fails in its own way.
_PROBE = 'import os, sys; print(sys.argv[1:], os.getcwd(), os.environ["PYTHONPATH"]); sys.exit(7)'


def _setup() -> configparser.ConfigParser:
  """Returns setup.cfg."""
  config = configparser.ConfigParser()
  config.read(source.ROOT / 'setup.cfg')
  return config


def _distributions(requirements: str) -> set[str]:
  """Returns the normalized names in a list of requirements."""
  return {_normalized(re.match(r'[\w.-]+', line).group()) for line in requirements.split()}


def _normalized(name: str) -> str:
  """Returns the name under which the index knows a distribution."""
  return re.sub(r'[-_.]+', '-', name).lower()


class RequirementsTest(absltest.TestCase):

  def _imported(self, *folders: str) -> dict[str, set[str]]:
    """Returns the distributions that files below `folders` import, each with the lines that do."""
    providers = metadata.packages_distributions()
    found = {}
    for path in source.python_files(*folders):
      for line, module in source.imports(path):
        top = module.partition('.')[0]
        if top not in sys.stdlib_module_names and top not in source.FOLDERS:
          for name in providers.get(top, [top]):
            found.setdefault(_normalized(name), set()).add(f'{path}:{line}')
    return found

  def test_packages_import_what_is_required_and_all_of_it(self):
    required = _distributions(_setup()['options']['install_requires'])
    imported = self._imported(*source.PACKAGES, 'configs')
    extras = set().union(*(_distributions(_setup()['options.extras_require'][name]) for name in ('parquet', 'eval')))
    self.assertEmpty({name: lines for name, lines in imported.items() if name not in required | extras})
    self.assertEmpty(required - set(imported))

  def test_tests_import_what_is_required_or_in_the_extra(self):
    required = _distributions(_setup()['options']['install_requires'])
    names = 'test', 'peers', 'eval'
    extra = set().union(*(_distributions(_setup()['options.extras_require'][name]) for name in names))
    imported = self._imported('tests')
    self.assertEmpty({name: lines for name, lines in imported.items() if name not in required | extra})

  def test_requirements_have_the_form_that_run_reads(self):
    lines = _setup()['options']['install_requires'].split() + _setup()['options.extras_require']['test'].split()
    for line in lines:
      self.assertRegex(line, r'^[\w-]+(>=[\d.]+)?$')
    self.assertRegex(_setup()['options']['python_requires'], r'^>=[\d.]+$')

  def test_gpu_extras_are_extras_of_jax(self):
    for extra in ('cuda12', 'cuda13'):
      self.assertEqual(_setup()['options.extras_require'][extra].strip(), f'jax[{extra}]')
      self.assertIn(extra, metadata.metadata('jax').get_all('Provides-Extra'))


class RunTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.create_tempdir().full_path).resolve()
    self.root = folder / 'a checkout'
    self.root.mkdir()
    for name in ('run', 'setup.cfg', 'pyproject.toml'):
      shutil.copy(source.ROOT / name, self.root)
    self.bin = folder / 'bin'
    self.bin.mkdir()
    for tool in _TOOLS:
      (self.bin / tool).symlink_to(shutil.which(tool))
    self.environment = {'PATH': str(self.bin), 'LD_LIBRARY_PATH': os.environ.get('LD_LIBRARY_PATH', '')}

  def _python(self, *options: str):
    """Puts a python3 on PATH: this interpreter, with `options`."""
    python = self.bin / 'python3'
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" {" ".join(options)} "$@"\n')
    python.chmod(0o755)

  def _run(self, *command: str, cwd=None, **environment: str) -> subprocess.CompletedProcess:
    """Calls `run` with nothing but `environment`, and the tools on PATH."""
    return subprocess.run(
        [self.root / 'run', *command], cwd=cwd or self.root, env={**self.environment, **environment},
        capture_output=True, text=True)

  def _assert_refused(self, result, expected: str):
    self.assertEqual(result.returncode, 1)
    self.assertRegex(result.stderr, rf'\Arun: .*{expected}.*\n\Z')
    self.assertEqual(result.stdout, '')

  def test_command_gets_its_arguments_and_folder_and_returns_its_status(self):
    arguments = ['a b', '', '*', '$HOME', "it's", '--flag=x y', '\\']
    elsewhere = self.create_tempdir().full_path
    result = self._run(
        'python', '-c', _PROBE, *arguments, cwd=elsewhere, JAXQUANT_PYTHON=sys.executable, PYTHONPATH='/p')
    self.assertEqual(result.stdout, f'{arguments} {os.path.realpath(elsewhere)} {self.root}:/p\n')
    self.assertEqual(result.returncode, 7)

  def test_interpreter_on_path_is_used_where_it_satisfies_setup(self):
    self._python()
    result = self._run('pytest', '--version', PYTHONPATH=os.pathsep.join(sys.path))
    self.assertIn('pytest', result.stdout)
    self.assertFalse((self.root / '.venv').exists())

  def test_interpreter_of_the_tests_is_named(self):
    self._python()
    result = self._run('--python', PYTHONPATH=os.pathsep.join(sys.path))
    self.assertEqual((result.stdout, result.stderr), (f'{sys.executable}\n', ''))
    named = self._run('--python', JAXQUANT_PYTHON=str(self.bin / 'python3'), PYTHONPATH=os.pathsep.join(sys.path))
    self.assertEqual((named.stdout, named.stderr), (f'{sys.executable}\n', ''))

  def test_named_interpreter_is_used_whatever_it_lacks_and_run_says_so(self):
    self._python('-S')
    result = self._run('python', '-c', 'print("ran")', JAXQUANT_PYTHON=str(self.bin / 'python3'))
    self.assertEqual(result.stdout, 'ran\n')
    self.assertRegex(result.stderr, r'\Arun: warning: .* has no [\w-]+\n\Z')
    self._assert_refused(self._run('python', JAXQUANT_PYTHON='/nowhere'), '/nowhere is not a command')

  def test_machine_without_a_fit_python_is_told_in_one_line(self):
    self._assert_refused(self._run('python'), 'no Python')
    self._python()
    setup = (self.root / 'setup.cfg').read_text()
    (self.root / 'setup.cfg').write_text(re.sub('python_requires = .*', 'python_requires = >=99.1', setup))
    self._assert_refused(self._run('python'), r'python3 is Python \d\.\d+, older than 99.1')

  def test_machine_without_venv_is_told_the_package_in_one_line(self):
    self._python('-S')
    hidden = self.create_tempdir()
    hidden.create_file('ensurepip.py', content='raise ImportError')
    self._assert_refused(self._run('python', PYTHONPATH=hidden.full_path), 'apt-get install -y python3-venv')

  @absltest.skipUnless(importlib.util.find_spec('ensurepip'), 'this Python cannot make an environment with pip')
  def test_set_up_that_was_killed_or_failed_is_not_trusted(self):
    self._python('-S')
    offline = {'PIP_NO_INDEX': '1', 'PIP_CONFIG_FILE': os.devnull}
    killed = subprocess.Popen(
        [self.root / 'run', 'python', '-c', ''], env=self.environment | offline, stderr=subprocess.DEVNULL,
        start_new_session=True)
    while not (self.root / '.venv/bin/python').exists() and killed.poll() is None:
      time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    result = self._run('python', '-c', 'print("ran")', **offline)
    self.assertEqual(result.returncode, 1)
    self.assertEqual(result.stdout, '')
    self.assertRegex(result.stderr.splitlines()[-1], r'^run: .*failed')

  def test_environment_made_by_hand_is_used_where_it_satisfies_setup_and_never_replaced(self):
    self._python('-S')
    folder = self.root / '.venv'
    venv.create(folder, symlinks=True)
    self._assert_refused(self._run('python'), 'not of this script')
    site = pathlib.Path(sysconfig.get_path('purelib', 'venv', {'base': folder}))
    (site / 'here.pth').write_text('\n'.join(path for path in sys.path if path.endswith('-packages')))
    result = self._run('python', '-c', 'import sys; print(sys.prefix)')
    self.assertEqual(result.stdout, f'{folder}\n')


if __name__ == '__main__':
  absltest.main()
