"""The style sheet of the page: light, dark where the reader's system asks for it, and readable on a narrow screen."""

# The colours on a light ground, as custom properties.
LIGHT = """--page: #f6f7f9; --card: #fff; --text: #1c2733; --muted: #5b6875; --grid: #e8ebef;
  --axis: #aab4be; --edge: #dfe4e9; --accent: #0b5cad; --heat: 213 94 0; --note: #fff4e5; --note-edge: #e69f00;"""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

STYLE = """
:root { color-scheme: light dark; """ + LIGHT + """ }
@media (prefers-color-scheme: dark) { :root { --page: #12171d; --card: #1a2129; --text: #e3e8ed; --muted: #9aa7b3;
  --grid: #27303a; --axis: #55616d; --edge: #2c3641; --accent: #6cb6ff; --note: #33291a; --note-edge: #b07d1c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 """ + FONT + """; }
header, main { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
.kicker { margin: 0; color: var(--muted); font-size: 12px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 2px 0 8px; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 6px; font-size: 19px; }
h3 { margin: 22px 0 4px; font-size: 15px; }
h4 { margin: 16px 0 4px; font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
header > p { max-width: 78ch; }
section { margin: 18px 0; padding: 18px 20px 20px; background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; }
.lead { margin: 0 0 10px; color: var(--muted); font-size: 13.5px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 14px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
dl { display: flex; flex-wrap: wrap; gap: 6px; margin: 12px 0; }
dl div { display: flex; gap: 6px; padding: 2px 9px; background: var(--card); border: 1px solid var(--edge);
  border-radius: 99px; font-size: 12.5px; }
dt { color: var(--muted); }
dd { margin: 0; font-weight: 600; }
.notes { margin: 12px 0; padding: 8px 12px 8px 30px; background: var(--note); border-left: 4px solid var(--note-edge);
  border-radius: 4px; font-size: 14px; overflow-wrap: anywhere; }
.grid { display: grid; gap: 16px 22px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.grid + .grid { margin-top: 20px; }
.grid.tiny { grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
.grid.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; justify-content: flex-end; }
figcaption { font-size: 13.5px; font-weight: 600; margin-bottom: 2px; overflow-wrap: anywhere; }
figcaption small { white-space: nowrap; }
.tiny figcaption { font-size: 12.5px; }
.grid + .legend .dashed { background: repeating-linear-gradient(90deg, var(--c) 0 5px, transparent 5px 8px); }
.scroll { margin-top: 22px; }
small { color: var(--muted); font-weight: 400; font-size: 12px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0 10px; font-size: 13px; }
.legend span { display: inline-flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
.legend i { flex: none; width: 16px; height: 4px; border-radius: 2px; background: var(--c); }
.legend .dashed { background: repeating-linear-gradient(90deg, var(--c) 0 5px, transparent 5px 8px); }
.scroll { overflow-x: auto; margin: 6px 0 14px; }
table { border-collapse: separate; border-spacing: 0; min-width: 50%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
.caption { color: var(--muted); font-size: 13px; margin: 12px 0 0; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--edge); white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; font-size: 12.5px; vertical-align: bottom; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 6em; max-width: 26em; }
table.precision th.text { min-width: min(14em, 40vw); }
table.precision { width: 100%; }
table.precision thead th { white-space: normal; max-width: 9em; }
tbody th { position: sticky; left: 0; background: var(--card); font-weight: 600; }
details { margin: 10px 0 0; }
summary { cursor: pointer; font-weight: 600; font-size: 14.5px; }
pre { overflow-x: auto; padding: 12px; background: var(--page); border-radius: 6px; font-size: 12.5px;
  line-height: 1.4; }
@media (max-width: 600px) {
  header, main { padding-left: 10px; padding-right: 10px; }
  section { padding: 14px 12px; border-radius: 8px; }
  h1 { font-size: 23px; }
  th, td { padding: 5px 7px; }
  table { font-size: 13px; }
  .precision small { display: block; font-size: 11px; }
  .large .chart { font-size: 12px; }
}
@media print { section { break-inside: auto; } figure { break-inside: avoid; } }
"""
