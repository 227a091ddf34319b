"""BUILD names every Python file, and each target's dependencies hold what its files import.

A BUILD file without macros is also Python, so it is executed here with rules that write down what they are given.
"""

import functools

from absl.testing import absltest

from tests import source


@functools.cache
def _targets() -> dict[str, dict]:
  """Returns the attributes of each target of BUILD, with its rule under the key `rule`."""
  targets = {}

  def rule(kind):
    def declare(name, **attributes):
      if name in targets:
        raise AssertionError(f'BUILD declares {name} twice')
      targets[name] = {'rule': kind, **attributes}
    return declare

  scope = {kind: rule(kind) for kind in ('py_binary', 'py_library', 'py_test')}
  scope.update(load=lambda *_: None, package=lambda **_: None, glob=lambda patterns: patterns)
  exec(compile((source.ROOT / 'BUILD').read_text(encoding='utf-8'), 'BUILD', 'exec'), scope)
  return targets


@functools.cache
def _reach(name: str) -> frozenset[str]:
  """Returns the source files of a target and of all that it depends on."""
  target = _targets()[name]
  below = [_reach(dep.removeprefix(':')) for dep in target.get('deps', [])]
  return frozenset(target['srcs']).union(*below)


class BuildFileTest(absltest.TestCase):

  def test_every_file_is_in_a_target(self):
    listed = {path for target in _targets().values() for path in target['srcs']}
    files = set(source.python_files(*source.FOLDERS))
    self.assertEmpty(sorted(files - listed), 'not in BUILD')
    self.assertEmpty(sorted(listed - files), 'in BUILD, but there is no such file')

  def test_every_test_file_is_run(self):
    run = {target['main'] for target in _targets().values() if target['rule'] == 'py_test'}
    tests = {path for path in source.python_files('tests') if path.endswith('_test.py')}
    self.assertEmpty(tests ^ run)

  def test_every_launcher_is_a_binary(self):
    binaries = {target['main'] for target in _targets().values() if target['rule'] == 'py_binary'}
    launchers = {path for path in source.python_files('launch') if '__main__' in (source.ROOT / path).read_text()}
    self.assertEmpty(launchers ^ binaries)

  def test_dependencies_hold_what_is_imported(self):
    missing = set()
    for name, target in _targets().items():
      for path in target['srcs']:
        for line, module in source.imports(path):
          file = source.module_file(module)
          if file and file not in _reach(name):
            missing.add(f'{path}:{line} imports {module}, which no dependency of {name} holds')
    self.assertEmpty(sorted(missing))


if __name__ == '__main__':
  absltest.main()
