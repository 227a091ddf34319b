"""A chart as a file of its own, for a README or a slide."""

import xml.etree.ElementTree as ElementTree

from jaxquant.report import frame
from jaxquant.report import style

_NAMESPACE = 'http://www.w3.org/2000/svg'
_MARGIN = 8
_TITLE, _SUBTITLE = 18, 15  # Heights of their lines.
_STYLE = f""":root {{ {style.LIGHT} {frame.LIGHT} }}
{frame.SHAPES}
svg.chart {{ font: 11px {style.FONT}; }}
.chart .ground {{ fill: var(--card); }}
.chart .title {{ font-size: 14px; font-weight: 600; fill: var(--text); }}
"""


def standalone(chart: str, title: str, lines: tuple[str, ...] = ()) -> str:
  """A chart with its colours and a title.

  It is light wherever it stands, on a ground of its own: what embeds a picture does not tell it whether it is dark.

  Args:
    chart: what `svg.line_chart` or `svg.histogram` returned.
    title: written above it.
    lines: written under the title, smaller.

  Returns:
    The text of an SVG file that needs no other.
  """
  root = ElementTree.fromstring(chart)
  _, _, width, height = (float(number) for number in root.get('viewBox').split())
  above = _TITLE + _SUBTITLE * len(lines) + _MARGIN
  left, top, width, height = -_MARGIN, -above - _MARGIN, width + 2 * _MARGIN, height + above + 2 * _MARGIN
  root.attrib |= {'xmlns': _NAMESPACE, 'viewBox': f'{left} {top} {width:g} {height:g}', 'width': f'{width:g}',
                  'height': f'{height:g}'}
  inserted = [_element('style', _STYLE),
              _element('rect', x=left, y=top, width=f'{width:g}', height=f'{height:g}', rx=6, **{'class': 'ground'}),
              _element('text', title, x=0, y=_TITLE - 4 - above, **{'class': 'title'})]
  inserted += [_element('text', line, x=0, y=_TITLE + _SUBTITLE * (index + 1) - 4 - above)
               for index, line in enumerate(lines)]
  root[:0] = inserted
  return ElementTree.tostring(root, 'unicode') + '\n'


def _element(tag: str, text: str = '', **attributes) -> ElementTree.Element:
  element = ElementTree.Element(tag, {name: str(value) for name, value in attributes.items()})
  element.text = text
  return element
