"""Text as it is generated: what each further token adds to it."""

import functools
from collections.abc import Iterable

from jaxquant.data import tokenizers

_UNFINISHED = '\ufffd'  # what bytes that begin a character decode to
_CONTEXT_TOKENS = 8


class TextStream:
  """Decodes one token after the other; the pieces, joined, are the text.

  What a token adds depends on those before it: a character may be spread over several, and some tokenizers drop the
  space in front of the first. So the tokens of the last piece are decoded again with the new one, and a character is
  held back until it is whole.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, context: Iterable[int] = (), special: bool = True):
    """Starts behind the tokens `context`, a prompt that is not repeated; `special` tokens are text, or left out."""
    self._decode = functools.partial(tokenizer.decode, special=special)
    self._tokens = [int(token) for token in context][-_CONTEXT_TOKENS:]
    self._remember()

  def add(self, token: int) -> str:
    """The text that one more token finishes: often a word, nothing in the middle of a character."""
    self._tokens.append(int(token))
    text = self._decode(self._tokens)
    return '' if text.endswith(_UNFINISHED) else self._piece(text)

  def rest(self) -> str:
    """What was held back at the end, decoded as far as it can be."""
    return self._piece(self._decode(self._tokens))

  def _piece(self, text):
    piece = text[self._said:]
    if piece:
      self._tokens = self._tokens[self._context:]
    self._remember()
    return piece

  def _remember(self):
    """All tokens so far are context from now on, whose text has been said."""
    self._context, self._said = len(self._tokens), len(self._decode(self._tokens))
