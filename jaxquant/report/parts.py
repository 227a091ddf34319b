"""The pieces of HTML that the page is put together from. Every text that comes from a file is escaped here."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxquant.report import frame
from jaxquant.report import tables

# A cell is fully shaded where quantization multiplies the perplexity, or divides the accuracy, by these factors.
_FULL_SHADE, _FULL_SHADE_OF_ACCURACY = 10.0, 2.0
_STRONGEST_SHADE = 0.5


def section(title: str, body: str, lead: str = '') -> str:
  """A titled part of the page, with a line of text under the title. Empty if `body` (HTML) is."""
  if not body:
    return ''
  anchor = ''.join(letter if letter.isalnum() else '-' for letter in title.lower())
  lead = f'<p class="lead">{html.escape(lead)}</p>' if lead else ''
  return f'<section id="{html.escape(anchor)}"><h2>{html.escape(title)}</h2>{lead}{body}</section>\n'


def details(title: str, body: str, opened: bool = False) -> str:
  """A part that readers can fold. Empty if `body` (HTML) is."""
  return f'<details{" open" * opened}><summary>{html.escape(title)}</summary>{body}</details>\n' if body else ''


def grid(figures: Sequence[str], kind: str = 'small') -> str:
  """Figures side by side: 'small' in three columns, 'large' in two,
  'tiny' in four; fewer on a narrow screen. Empty if none."""
  return f'<div class="grid {kind}">{"".join(figures)}</div>' if figures else ''


def figure(title: str, chart: str, detail: str = '') -> str:
  """A chart (SVG) under its title; `detail` says more in smaller type."""
  small = f' <small>{html.escape(detail)}</small>' if detail else ''
  return f'<figure><figcaption>{html.escape(title).replace("/", "/<wbr>")}{small}</figcaption>{chart}</figure>'


def legend(colors: Mapping[str, int]) -> str:
  """Names with their colours, for a group of charts without legends of their own."""
  items = (
      f'<span><i class="{frame.line_class(color)}"></i>{html.escape(name)}</span>' for name, color in colors.items())
  return f'<p class="legend">{"".join(items)}</p>'


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
  """A plain table of texts, whose first `text_columns` columns are aligned to the left. Empty without rows."""
  if not rows:
    return ''

  def line(tag: str, cells: Sequence[str]) -> str:
    classes = (' class="text"' * (index < text_columns) for index in range(len(cells)))
    return ''.join(f'<{tag}{kind}>{html.escape(cell)}</{tag}>' for kind, cell in zip(classes, cells))

  body = ''.join(f'<tr>{line("td", row)}</tr>' for row in rows)
  return f'<div class="scroll"><table><thead><tr>{line("th", headers)}</tr></thead><tbody>{body}</tbody></table></div>'


def mapping(values: Mapping[str, Any]) -> str:
  """A table of names and values. Empty without any."""
  return table(('', ''), [(str(key), value if isinstance(value, str) else json.dumps(value))
                          for key, value in values.items()], text_columns=2)


def precision_table(found: tables.Table) -> str:
  """A precision table: the best value of each column in bold, cells shaded by what quantization costs the variant."""
  if not found.rows:
    return ''
  better = max if found.more_is_better else min
  means = lambda column: [row.cells[column].mean for row in found.rows if column in row.cells]
  best = {column: better((mean for mean in means(column) if not math.isnan(mean)), default=math.nan)
          for column in found.columns} if len(found.rows) > 1 else {}
  headers = ''.join(f'<th>{html.escape(column)}</th>' for column in found.columns)
  if found.target:
    headers += f'<th>{html.escape(found.ratio_label)}</th>'
  lines = []
  for row in found.rows:
    cells = ''
    for column, cell in zip([*found.columns, found.ratio_label], tables.row_cells(found, row)):
      shade = _shade(row.ratios.get(column), found.more_is_better)
      style = f' style="background:rgb(var(--heat)/{shade:.2f})"' if shade else ''
      mean, *rest = html.escape(tables.format_cell(cell, found.seeds, '\n')).split('\n')
      mean = f'<b>{mean}</b>' if cell is not None and cell.mean == best.get(column) else mean
      cells += f'<td{style}>{mean}{"".join(f" <small>{part}</small>" for part in rest)}</td>'
    lines.append(f'<tr><th class="text">{html.escape(row.label)}</th>{cells}</tr>')
  return (
      f'<p class="caption">{html.escape(tables.caption(found))}</p><div class="scroll"><table class="precision">'
      f'<thead><tr><th></th>{headers}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
  )


def _shade(ratio: tables.Cell | None, more_is_better: bool) -> float:
  if ratio is None or math.isnan(ratio.mean):
    return 0.0
  cost, full = ratio.mean, _FULL_SHADE
  if more_is_better:
    cost, full = 1 / ratio.mean if ratio.mean else math.inf, _FULL_SHADE_OF_ACCURACY
  return _STRONGEST_SHADE * min(math.log(cost) / math.log(full), 1.0) if cost > 1 else 0.0
