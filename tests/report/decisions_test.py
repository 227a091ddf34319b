"""The section of decisions: errors and choices by kind over the layers, and everything in a table."""

from absl.testing import absltest

from jaxquant.report import decisions
from jaxquant.report import records

_DECISIONS = {
    **{f'layers/{i}/attention/q': {
        'gptq': {'error': 0.1 * (i + 1), 'error_rtn': 0.2 * (i + 1), 'axis': i % 2},
        'clip_search': {'error': 0.3 * (i + 1)}, 'allocation': {'grid': 'int4 g64'}} for i in range(3)},
    **{f'layers/{i}/attention/input': {'awq': {'error': 1.0 + i, 'exponent': 0.5, 'seen': [1, 2]}} for i in range(3)},
    'head': {'round_to_nearest': {'relative_error': 0.01}},
}


def _section(found, notes=None):
  return decisions.decisions(records.Run('run', {}, {}, [], [], found), [] if notes is None else notes)


class DecisionsTest(absltest.TestCase):

  def test_a_chart_for_each_kind_and_for_each_choice(self):
    page = _section(_DECISIONS)
    for title in ('Errors of layers/*/attention/q', 'Errors of layers/*/attention/input', 'Errors of head',
                  'gptq axis by layer', 'awq exponent by layer'):
      self.assertIn(title, page)
    self.assertEqual(page.count('<figure>'), 5)
    self.assertIn('gptq error_rtn ends at 0.6', page)

  def test_methods_on_one_linear_are_lines_of_their_own(self):
    page = _section(_DECISIONS)
    self.assertIn('gptq error ends at 0.3', page)
    self.assertIn('clip_search error ends at 0.9', page)

  def test_everything_is_in_the_table_of_its_method(self):
    page = _section(_DECISIONS)
    for method in ('gptq', 'clip_search', 'allocation', 'awq', 'round_to_nearest'):
      self.assertIn(f'Everything of {method}, by path', page)
    self.assertEqual(page.count('>int4 g64<'), 3)
    for path in _DECISIONS:
      self.assertIn(f'>{path}<', page)
    self.assertIn('[1, 2]', page)
    self.assertIn('0.6', page)

  def test_numbers_that_are_not_finite_and_missing_ones_are_shown(self):
    page = _section({
        'layers/0/x': {'gptq': {'error': float('nan')}},
        'layers/1/x': {'gptq': {'error': None, 'other': float('inf')}}})
    self.assertIn('nan', page)
    self.assertIn('inf', page)

  def test_nothing_decided_is_no_section(self):
    self.assertEqual(_section({}), '')

  def test_too_many_kinds_are_noted(self):
    notes = []
    _section({f'part{chr(97 + i)}/x': {'gptq': {'error': 1.0}} for i in range(20)}, notes)
    self.assertIn('Of 20 kinds (errors) the page shows 12, without partm/x, partn/x, parto/x ...', notes)


if __name__ == '__main__':
  absltest.main()
