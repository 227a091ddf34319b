"""The rules of the house that a reader relies on and that no single package can test."""

import ast
import re
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from tests import source

# What a room may import of this checkout. A room that is not named may import all but `launch`, `configs` and `tests`.
_NUMERICS = ('jaxquant.errors', 'jaxquant.numerics')
_LAYERS = _NUMERICS + ('kernels', 'jaxquant.layers')
_MAY_IMPORT = {
    'kernels': ('kernels',),
    'jaxquant/numerics': _NUMERICS,
    'jaxquant/layers': _LAYERS,
    'jaxquant/models': _LAYERS + ('jaxquant.models', 'jaxquant.calibration.sites'),
    'jaxquant/interop': _NUMERICS + ('jaxquant.models', 'jaxquant.interop', 'jaxquant.calibration.sites'),
    'jaxquant/calibration': _NUMERICS + ('jaxquant.calibration', 'jaxquant.compilation'),
    'jaxquant/transforms': _NUMERICS + ('jaxquant.calibration', 'jaxquant.transforms'),
}
_MOST_LINES, _MOST_COLUMNS = 350, 120


def _within(module: str, packages) -> bool:
  """Whether `module` is one of `packages` or inside one."""
  return any(module == package or module.startswith(f'{package}.') for package in packages)


def _modules_after(statement: str) -> set[str]:
  """Returns the top-level names in sys.modules of a new interpreter that has run `statement` in this checkout."""
  program = f'import sys; {statement}; print(*{{name.partition(".")[0] for name in sys.modules}})'
  result = subprocess.run([sys.executable, '-c', program], cwd=source.ROOT, capture_output=True, text=True, check=True)
  return set(result.stdout.split())


class LayoutTest(parameterized.TestCase):

  @parameterized.parameters(*_MAY_IMPORT)
  def test_room_imports_only_the_rooms_below_it(self, room):
    files = source.python_files(room)
    self.assertNotEmpty(files)
    self.assertEmpty([
        f'{path}:{line} imports {module}' for path in files for line, module in source.imports(path)
        if source.module_file(module) and not _within(module, _MAY_IMPORT[room])
    ])

  def test_kernels_depend_on_jax_alone(self):
    self.assertEmpty([
        f'{path}:{line} imports {module}' for path in source.python_files('kernels')
        for line, module in source.imports(path)
        if not _within(module, ('jax', 'kernels', *sys.stdlib_module_names))
    ])

  def test_library_imports_neither_launchers_nor_configs_nor_tests(self):
    self.assertEmpty([
        f'{path}:{line} imports {module}' for path in source.python_files('jaxquant', 'kernels')
        for line, module in source.imports(path) if _within(module, ('launch', 'configs', 'tests'))
    ])

  def test_imports_are_absolute(self):
    self.assertEmpty([
        f'{path}:{line} imports {module}' for path in source.python_files(*source.FOLDERS)
        for line, module in source.imports(path) if module.startswith('.')
    ])

  def test_what_a_module_imports_it_uses(self):
    unused = []
    for path in source.python_files(*source.FOLDERS):
      if not path.endswith('__init__.py'):
        tree = source.parse(path)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        unused += [f'{path}:{node.lineno} imports {alias.name}' for node in tree.body
                   if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
                   if (alias.asname or alias.name.partition('.')[0]) not in used]
    self.assertEmpty(unused)

  def test_import_of_jaxquant_is_light(self):
    heavy = {'orbax', 'grain', 'tokenizers', 'matplotlib'}
    self.assertEmpty(_modules_after('import jaxquant') & heavy)

  def test_report_needs_no_jax(self):
    modules = [path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
               for path in source.python_files('jaxquant/report')]
    self.assertEmpty(_modules_after(f'import {", ".join(modules)}') & {'jax', 'jaxlib', 'flax'})

  def test_every_folder_of_a_package_is_a_package(self):
    folders = {(source.ROOT / path).parent for path in source.python_files(*source.PACKAGES)}
    self.assertEmpty([str(folder) for folder in folders if not (folder / '__init__.py').exists()])

  def test_modules_and_public_names_have_docstrings(self):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    missing = []
    for path in source.python_files(*source.PACKAGES, 'configs'):
      tree = source.parse(path)
      missing += [] if ast.get_docstring(tree) else [path]
      if path.startswith(source.PACKAGES):
        missing += [f'{path}:{node.lineno} {node.name}' for node in tree.body
                    if isinstance(node, kinds) and not node.name.startswith('_') and not ast.get_docstring(node)]
    self.assertEmpty(missing)

  def test_files_and_lines_are_short_and_indented_by_spaces(self):
    for path in source.python_files(*source.FOLDERS):
      lines = (source.ROOT / path).read_text(encoding='utf-8').splitlines()
      with self.subTest(path):
        self.assertLessEqual(len(lines), _MOST_LINES)
        self.assertEmpty([number for number, line in enumerate(lines, 1) if re.match(r' *\t', line)])
        self.assertEmpty([number for number, line in enumerate(lines, 1) if len(line) > _MOST_COLUMNS])

  def test_no_text_names_a_folder_of_one_machine(self):
    files = [source.ROOT / path for path in source.python_files(*source.FOLDERS)]
    files += [path for path in source.ROOT.iterdir()
              if path.is_file() and path.name not in ('.git', 'LICENSE')]
    files += (source.ROOT / '.ci').iterdir()
    folder = re.compile(r'(?<![\w.])/(work|root|home|Users)/')
    self.assertEmpty([
        f'{path.relative_to(source.ROOT)}:{number}' for path in files
        for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').splitlines(), 1)
        if folder.search(line)
    ])


if __name__ == '__main__':
  absltest.main()
