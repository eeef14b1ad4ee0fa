"""The frame of the sandbox's own pages: the start page of the stand-in for Stripe, and the messages."""

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
:root {{
  color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --text: #14171f; --faint: #535b6b; --line: #d5d9e0; --control: #858c99;
  --strong: #1d4ed8; --good: #dcf5e3; --on-good: #0d4f23; --low: #fff3d6; --on-low: #5c3c00; --plain: #e6e9ef;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #11141a; --card: #1b1f28; --text: #eceff4; --faint: #a8b0bf; --line: #363c49; --control: #7b8494;
    --strong: #8fb0ff; --good: #14391f; --on-good: #b9f2c9; --low: #43320a; --on-low: #ffe6a8; --plain: #2b303c;
  }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page); color: var(--text);
        font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ margin: .5rem 0; font-size: 1.75rem; line-height: 1.2; }}
h2 {{ margin: 0 0 .75rem; font-size: 1.25rem; }}
a {{ color: var(--strong); }}
.faint {{ color: var(--faint); font-size: .9rem; }}
.card {{ margin: 0 0 1rem; padding: 1rem 1.25rem; border: 1px solid var(--line); border-radius: .75rem;
         background: var(--card); }}
.card > :last-child {{ margin-bottom: 0; }}
:focus-visible {{ outline: 3px solid var(--strong); outline-offset: 2px; }}
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
</body>
</html>
"""


def framed(title: str, content: str, *, style: str = "") -> str:
    """A whole page of this HTML, in light and dark and for any width, with further rules of CSS."""
    return _FRAME.format(title=title, content=content, style=style)
