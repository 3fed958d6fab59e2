"""HTML pages that need nothing else: no script, no address outside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #22272e; --faint: #57606a; --line: #d8dee4; --soft: #f6f8fa; --good: #1a7f37; --bad: #b3261e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 1150px;
  padding: 1.5rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.small, .small { color: var(--faint); font-size: .87rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .65rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--faint); font-weight: 600; border-bottom: 2px solid var(--line); }
table.text td { white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; vertical-align: top;
  min-width: 9rem; }
table.text th { text-align: left; }
ul.say li { margin: .25rem 0; }
img { max-width: 100%; height: auto; display: block; margin: .4rem 0; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; border-radius: 6px; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin: .6rem 0; } summary { cursor: pointer; }
"""


def document(title: str, body: str) -> str:
    """A whole page around its body."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def bullets(texts: Sequence[str]) -> str:
    return "<ul class='say'>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    opening = f"<table class='{kind}'>" if kind else "<table>"
    return f"<div class='wide'>{opening}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
