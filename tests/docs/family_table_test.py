"""The table of families in docs/results.md names them all, and each of them is among the parameters of its tests."""

import re

from absl.testing import absltest

from jaxquant.interop import families
from tests import networks
from tests import peering
from tests import source

_COLUMNS = ['family', 'import', 'folds', 'RTN', 'GPTQ', 'AWQ', 'OS+', 'export']
# The same blocks as those of another family: for them the table points there.
_ALIKE = {'xlm-roberta': 'roberta'}


class FamilyTableTest(absltest.TestCase):

  def test_every_cell_is_of_a_family_that_its_test_runs_on(self):
    text = (source.ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    section = text.partition('\n## Families of models\n')[2].partition('\n## ')[0]
    header, _, *rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if line.startswith('|')]
    self.assertEqual(header, _COLUMNS)
    self.assertCountEqual([row[0] for row in rows], [*families.FAMILIES, 'opt, post-norm'])
    for family, imported, *methods, exported in rows:
      self.assertIn(family, peering.FAMILIES)
      self.assertRegex(imported, r'^\d\.\de-\d+$')
      if family in _ALIKE:
        self.assertIs(families.FAMILIES[family], families.FAMILIES[_ALIKE[family]])
      self.assertIn(_ALIKE.get(family, family), networks.FAMILIES)
      self.assertEqual(methods, [f'as {_ALIKE[family]}' if family in _ALIKE else 'holds'] * 5)
      self.assertEqual(family in peering.EXPORTED, re.fullmatch(r'\d\.\de-\d+', exported) is not None, family)
      self.assertNotEmpty(exported)


if __name__ == '__main__':
  absltest.main()
