"""The report as one HTML file that needs no other: text by jinja2, charts by matplotlib as inline SVG."""

import io
import json
import re
from typing import Any

from raydistill.core.records import canonical_json
from raydistill.evaluation.summary import ARMS, NAMES, headings, percent, sentences, table_rows

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ model.name }} {{ model.version }} - raydistill report</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #f5f6f8; margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
.sub { color: #5b6876; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; }
.card, .box { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.2; }
.card span { color: #5b6876; font-size: .85rem; }
.slow { background: #fff4e0; border-color: #e0a84a; }
ul.box { padding-left: 2rem; }
table { border-collapse: collapse; width: 100%; background: #fff; }
th, td { border: 1px solid #dfe3e8; padding: .4rem .65rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child, .texts th, .texts td { text-align: left; white-space: pre-wrap; }
th { background: #eceff3; font-weight: 600; }
.texts td { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; min-width: 9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .75rem; }
.charts svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
</style>
</head>
<body>
<main>
<h1>{{ model.name }} {{ model.version }}</h1>
<p class="sub">Base {{ model.base_model }}, teacher {{ model.teacher.model }} with P in front.
{{ held_out.queries }} held-out queries, {{ "{:,}".format(held_out.teacher_tokens) }} teacher tokens. {{ time }}</p>
<div class="cards">
{% for value, what in cards %}<div class="card"><b>{{ value }}</b><span>{{ what }}</span></div>
{% endfor %}</div>
<h2>Numbers</h2>
<div class="scroll"><table>
<tr><th></th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<ul class="box{% if slower %} slow{% endif %}">
{% for sentence in said %}<li>{{ sentence }}</li>
{% endfor %}</ul>
<h2>Charts</h2>
<div class="charts">
{% for chart in charts %}<div class="box">{{ chart|safe }}</div>
{% endfor %}</div>
<h2>Examples</h2>
<div class="scroll"><table class="texts">
<tr><th>query</th><th>teacher, with P</th><th>student</th><th>student, plain text</th><th>base, no P</th></tr>
{% for example in examples %}<tr>{% for key in ("query", "teacher", "student", "student_raw", "base") -%}
<td>{{ example[key] }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<h2>Everything</h2>
<details class="box"><summary>report.json</summary><pre class="scroll">{{ text }}</pre></details>
</main>
</body>
</html>
"""
_COLOURS = ("#8a97a6", "#c9a66b", "#2f6fb0")


def render_page(report: dict[str, Any]) -> str:
    """Return the report as one self-contained HTML page."""
    import jinja2

    kl, latency, validity = report["kl"], report["latency"], report["validity"]
    cards = [(percent(validity["student"]), f"valid answers (teacher {percent(validity['teacher'])})")]
    if report["agreement"]["student"] is not None:
        majority = percent(report["agreement"]["majority"])
        cards.append((percent(report["agreement"]["student"]), f"same labels as the teacher (constant: {majority})"))
    if kl["gap_closed"] is not None:
        low, high = map(percent, kl["gap_closed_interval"])
        cards.append((percent(kl["gap_closed"]), f"of the KL gap closed ({low} to {high})"))
    cards.append((percent(report["tokens"]["reduction"]), "fewer prompt tokens"))
    said = sentences(report)
    names = headings(report)
    shares = [100 * validity[key] for key in ("teacher", "base", "student")]
    rates = [latency[f"{arm}_tokens_per_second"] for arm in ARMS]
    charts = [
        _bars("valid answers, %", (names[0], *NAMES[1:]), shares),
        _bars(f"tokens/s, {latency['at_once']} at once", NAMES, rates),
    ]
    if kl["student"] is not None:
        charts.insert(1, _bars("KL to the teacher, nats per token", NAMES[1:], [kl["base"], kl["student"]]))
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE)
    return page.render(
        **report,
        cards=cards,
        names=names,
        rows=table_rows(report),
        said=said,
        slower=any(sentence.startswith("SLOWER") for sentence in said),
        charts=charts,
        text=_pretty(report),
    )


def _pretty(report: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in report.items() if key != "examples"}, indent=2, ensure_ascii=False)


def _bars(title: str, names: tuple[str, ...], values: list[float]) -> str:
    """Return a bar chart as an SVG element; drawn without pyplot, which would keep global state."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2.8), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(names, values, color=_COLOURS[-len(names) :], width=0.6)
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.set_title(title, fontsize=11)
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    target = io.BytesIO()
    with rc_context({"svg.hashsalt": canonical_json([title, *values])}):
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    svg = target.getvalue().decode()
    return re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
