"""The report's page: one template, with its own style, that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jinja2
from markupsafe import Markup

LIGHT: Final = {
    "paper": "#ffffff",
    "card": "#f4f6f8",
    "ink": "#1b2430",
    "muted": "#66717f",
    "line": "#dde2e8",
    "main": "#2563a8",
    "second": "#b45309",
    "alert": "#b4232f",
    "good": "#1c7a4a",
}
DARK: Final = {
    "paper": "#14181e",
    "card": "#1e242c",
    "ink": "#e4e8ed",
    "muted": "#97a2af",
    "line": "#333c47",
    "main": "#6fb1f2",
    "second": "#f0a04b",
    "alert": "#f2777f",
    "good": "#5cc48f",
}


def _variables(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


STYLE: Final = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""
    + """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0; color: var(--muted); }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; }
.headline { font-size: 1.55rem; line-height: 1.35; font-weight: 600; margin: .6rem 0 .8rem; max-width: none; }
.muted, figcaption, footer { color: var(--muted); font-size: .92rem; }
.caution { border-left: 4px solid var(--alert); background: var(--card); padding: .7rem 1rem; margin: 1rem 0; }
.caution p { margin: .2rem 0; }
.verdict { border-left: 4px solid var(--muted); background: var(--card); padding: .7rem 1rem; font-weight: 600;
  max-width: none; }
.verdict.claim { border-color: var(--good); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; margin: 1.4rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tile span { color: var(--muted); font-size: .85rem; }
figure { margin: 1.2rem 0; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: .4rem; }
.scroll { overflow: auto; max-height: 32rem; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; position: sticky; top: 0; background: var(--paper); white-space: nowrap; }
td.number, th.number { text-align: right; }
tr.failed td { color: var(--alert); }
code { font: .86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--main); margin: .8rem 0; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media print { .scroll { max-height: none; overflow: visible; } }
"""
)

TEMPLATE: Final = """
{%- macro grid(table) %}
<div class="scroll"><table>
<thead><tr>
{%- for head in table.heads %}<th{% if loop.index0 in table.numbers %} class="number"{% endif %}>{{ head }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr{% if row.failed %} class="failed"{% endif %}>
{%- for cell in row.cells %}<td{% if loop.index0 in table.numbers %} class="number"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}</tbody></table></div>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body><main>
<h1>{{ title }}</h1>
{% for line in headlines %}<p class="headline">{{ line }}</p>
{% endfor %}
{%- for line in lead %}<p class="muted">{{ line }}</p>
{% endfor %}
{%- for verdict in verdicts %}<p class="verdict{% if verdict.claim %} claim{% endif %}">{{ verdict.text }}</p>
{% endfor %}
{%- if cautions %}<div class="caution" role="note">{% for line in cautions %}<p>{{ line }}</p>{% endfor %}</div>
{% endif %}
{%- if tiles %}<div class="tiles">
{%- for tile in tiles %}<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.name }}</span></div>{% endfor -%}
</div>
{% endif %}
{%- for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for part in section.parts %}
{%- if part.kind == "text" %}<p>{{ part.text }}</p>
{% elif part.kind == "heading" %}<h3>{{ part.text }}</h3>
{% elif part.kind == "figure" %}<figure role="img" aria-label="{{ part.text }}">{{ part.drawing.svg | safe }}
<figcaption>{{ part.text }}</figcaption></figure>
{% elif part.kind == "table" %}{{ grid(part) }}
{% elif part.kind == "folded" %}<details><summary>{{ part.text }}</summary>{{ grid(part) }}</details>
{% endif %}
{%- endfor %}
</section>
{% endfor %}
<footer>{{ footer }}</footer>
</main></body>
</html>
"""


def render(**values: Any) -> str:
    """Fill the template; every text is escaped, figures are put in as they are."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = environment.from_string(TEMPLATE.lstrip("\n")).render(style=Markup(STYLE), **values)
    return text.replace(" %", "\u00a0%")  # no line ends between a number and its unit
