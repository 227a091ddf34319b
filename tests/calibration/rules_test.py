"""Rules: the first match of the whole name wins, and nothing is left over silently."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxquant import errors
from jaxquant.calibration import rules

_NAMES = ('layers/0/q', 'layers/0/up', 'layers/1/q', 'layers/10/q', 'head')


class RulesTest(parameterized.TestCase):

  def test_the_first_rule_that_matches_wins(self):
    owners = rules.assign([('layers/0/.*', 'a'), ('.*/q', 'b'), ('.*', 'c')], _NAMES, 'rules')
    self.assertEqual(
        owners, {'layers/0/q': 'a', 'layers/0/up': 'a', 'layers/1/q': 'b', 'layers/10/q': 'b', 'head': 'c'})
    self.assertEqual(tuple(owners), _NAMES)

  def test_a_pattern_has_to_match_the_whole_name(self):
    owners = rules.assign([('layers/1/q', 'a'), ('.*', 'b')], _NAMES, 'rules')
    self.assertEqual([name for name, owner in owners.items() if owner == 'a'], ['layers/1/q'])
    with self.assertRaisesRegex(errors.UserError, "'layers' wins none"):
      rules.assign([('layers', 'a'), ('.*', 'b')], _NAMES, 'rules')

  def test_none_is_an_owner_and_equal_owners_may_have_several_rules(self):
    owners = rules.assign([('head', None), ('layers/0/.*', 'a'), ('.*', 'a')], _NAMES, 'rules')
    self.assertIsNone(owners['head'])
    self.assertEqual([owners[name] for name in _NAMES[:4]], ['a'] * 4)

  def test_names_that_no_rule_matches_may_be_left_out_on_request(self):
    self.assertEqual(rules.assign([('head', 1)], iter(_NAMES), 'rules', every=False), {'head': 1})

  @parameterized.parameters(
      # an idle rule, a rule shadowed by those before it, a name without owner, four of them, a bad pattern
      ([('layer/.*', 1), ('.*', 2)],
       "my rules: 'layer/.*' wins none of 5 names such as layers/0/q, layers/0/up, layers/1/q"),
      ([('.*', 1), ('head', 2)], "my rules: 'head' wins none of 5 names such as layers/0/q, layers/0/up, layers/1/q"),
      ([('layers/.*', 1)], 'my rules: no rule claims head'),
      ([('head', 1)], 'my rules: no rule claims layers/0/q, layers/0/up, layers/1/q ...'),
      ([], 'my rules: no rule claims layers/0/q, layers/0/up, layers/1/q ...'),
      ([('.*', 1), ('layers/(0', 2)],
       "my rules: 'layers/(0' is not a regular expression (missing ), unterminated subpattern at position 7)"))
  def test_mistakes_are_named(self, pairs, message):
    with self.assertRaises(errors.UserError) as caught:
      rules.assign(pairs, _NAMES, 'my rules')
    self.assertEqual(str(caught.exception), message)

  def test_a_tree_without_names(self):
    with self.assertRaisesRegex(errors.UserError, '^my rules: there is nothing to claim; a tree is nested dicts'):
      rules.assign([('.*', 1)], [], 'my rules')
    self.assertEqual(rules.assign([], [], 'my rules'), {})


if __name__ == '__main__':
  absltest.main()
