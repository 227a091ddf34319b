"""Rules: which setting or transform owns which linear or site. Full match, first wins, nothing left over silently."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxquant import errors


def assign(rules: Sequence[tuple[str, Any]], names: Iterable[str], where: str, *, every: bool = True) -> dict[str, Any]:
  """Gives every name the value of the first rule whose pattern matches the whole name.

  Args:
    rules: (regular expression, value) pairs.
    names: paths of linears or names of sites.
    where: what the rules are called, for messages.
    every: whether a name that no rule matches is an error; otherwise it is left out.

  Returns:
    {name: value}, in the order of `names`.

  Raises:
    UserError: an invalid pattern, a rule that wins no name (shadowed rules included), or an unclaimed name.
  """
  compiled = []
  for pattern, value in rules:
    try:
      compiled.append((re.compile(pattern), value))
    except re.error as error:
      raise errors.UserError(f'{where}: {pattern!r} is not a regular expression ({error})') from None
  owners, winners, names = {}, set(), list(names)
  for name in names:
    for i, (pattern, value) in enumerate(compiled):
      if pattern.fullmatch(name):
        owners[name] = value
        winners.add(i)
        break
  if rules and not names:
    raise errors.UserError(f'{where}: there is nothing to claim; a tree is nested dicts, whose linears hold a kernel')
  if idle := [pattern for i, (pattern, _) in enumerate(rules) if i not in winners]:
    raise errors.UserError(f'{where}: {idle[0]!r} wins none of {len(names)} names such as {", ".join(names[:3])}')
  if every and (lost := [name for name in names if name not in owners]):
    raise errors.UserError(f'{where}: no rule claims {", ".join(lost[:3])}' + (' ...' if len(lost) > 3 else ''))
  return owners
