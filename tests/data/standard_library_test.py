"""The standard library gives enough text, the same at every call, and no text of one split in the other."""

import pathlib
import re
import sysconfig
from unittest import mock

from absl.testing import absltest

from jaxquant import errors
from jaxquant.data import standard_library

_MODULE = '''# A comment of at least eight words is prose,
# even over two lines.
"""Docstring of the module. It shares this with nobody."""

import os
# x = os.path.join(a[0], b[1]) + c['key'] + d(e, f, g)

class A:
  """Docstring of the class.

  Return the value.
  """

  try:
    def f(self):
      r"""A method's docstring \\d.

      Return the value.
      """
  except OSError:
    def g(self):
      """Docstring under a condition:
      # a line in a docstring that only looks like a comment of eight words
      """
  finally:
    if os:
      class B:
        "Docstring of the innermost class."
    os.getcwd()  # A comment behind code is left out, however long it may be.
'''


class StandardLibraryTest(absltest.TestCase):

  def test_splits_are_large_disjoint_and_clean(self):
    train = standard_library.documents('train')
    validation = standard_library.documents('validation')
    num_train, num_validation = (sum(map(len, documents)) for documents in (train, validation))
    self.assertGreater(num_train, 1_500_000)
    self.assertBetween(num_validation / (num_train + num_validation), 0.04, 0.15)
    paragraphs = [
        [paragraph.split() for document in documents for paragraph in re.split(r'\n\s*\n', document)]
        for documents in (train, validation)]
    unique = [set(map(tuple, split)) for split in paragraphs]
    self.assertEmpty(unique[0] & unique[1])
    self.assertEqual([len(split) for split in unique], [len(split) for split in paragraphs])

  def _documents(self, files):
    root = pathlib.Path(self.create_tempdir().full_path)
    for name, content in files.items():
      (root / name).parent.mkdir(parents=True, exist_ok=True)
      (root / name).write_text(content, encoding='utf-8')
    with mock.patch.object(sysconfig, 'get_path', return_value=str(root)):
      found = {}
      for split in ('train', 'validation'):
        try:
          found[split] = standard_library.documents(split)
        except errors.UserError as error:
          self.assertRegex(str(error), f"no text for the split '{split}' in the standard library at {root}")
      return found

  def test_takes_docstrings_and_prose_comments_in_order_and_each_paragraph_once(self):
    found = self._documents({'module.py': _MODULE, 'zz/copy.py': _MODULE})
    self.assertEqual(sum(found.values(), []), [
        'A comment of at least eight words is prose,\neven over two lines.\n\n'
        'Docstring of the module. It shares this with nobody.\n\n'
        "Docstring of the class.\n\nReturn the value.\n\nA method's docstring \\d.\n\n"
        'Docstring under a condition:\n# a line in a docstring that only looks like a comment of eight words\n\n'
        'Docstring of the innermost class.\n'])

  def test_topics_are_documents_of_their_own(self):
    topics = {'assert': 'The assert statement.\n', 'break': 'The break statement.\n', 'del': 'The assert statement.\n'}
    found = self._documents({'pydoc_data/topics.py': f'# Generated.\ntopics = {topics!r}\n'})
    self.assertCountEqual(sum(found.values(), []), ['The assert statement.\n', 'The break statement.\n'])

  def test_skips_tests_packages_and_files_that_do_not_parse(self):
    found = self._documents({
        'test/test_a.py': '"""A test."""', 'a/tests/b.py': '"""A test."""', 'site-packages/c.py': '"""A package."""',
        'bad.py': '"""Unfinished', 'good.py': '"""Good."""'})
    self.assertEqual(sum(found.values(), []), ['Good.\n'])

  def test_library_without_source_is_refused(self):
    self.assertEmpty(self._documents({'only.pyc': ''}))

  def test_unknown_split_is_refused(self):
    with self.assertRaisesRegex(errors.UserError, "not 'test'"):
      standard_library.documents('test')


if __name__ == '__main__':
  absltest.main()
