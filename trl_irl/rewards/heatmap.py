"""One self-contained HTML page of completions, every token coloured by its reward."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np


# Tokens keep dark ink on their own light colours, whatever the page's are. A browser that darkens pages by itself
# leaves alone those that say `color-scheme: light dark`.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #222; --quiet: #5c5c5c; --line: #ddd; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181c; --ink: #e4e6e9; --quiet: #a3a8b0; --line: #3a3f46; }}
}}
body {{ font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem 4rem;
  color: var(--ink); background: var(--page); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; }}
article {{ border-top: 1px solid var(--line); padding: .8rem 0; }}
.prompt {{ color: var(--quiet); white-space: pre-wrap; }}
.completion {{ font-family: ui-monospace, monospace; white-space: pre-wrap; }}
.completion span {{ border-radius: 2px; padding: 1px 0; cursor: pointer; }}
.completion span[style], .scale span {{ color: #111; forced-color-adjust: none; }}
.completion span.told {{ outline: 2px solid var(--ink); }}
.numbers {{ color: var(--quiet); font-size: 13px; }}
.scale span {{ display: inline-block; width: 2.6rem; text-align: center; font-size: 12px;
  overflow-wrap: normal; }}
.unknown {{ border-bottom: 1px dotted #888; }}
.newline::before {{ content: "\\21b5"; color: #777; }}
.part::before {{ content: "\\b7"; color: #777; }}
#told {{ position: fixed; left: 0; right: 0; bottom: 0; padding: .6rem 1rem; background: var(--page);
  border-top: 1px solid var(--line); text-align: center; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Reward of each token in nats: <span class="scale">{scale}</span> dotted: not known; ↵: a new line;
·: a part of the character after it. Hover over a token, or tap it, for its numbers.</p>
<p><label>Order: <select id="order">
<option value="position">as given</option><option value="descending">highest return first</option>
<option value="ascending">lowest return first</option></select></label></p>
<main>
{articles}
</main>
<div id="told" role="status" hidden></div>
<script>
const main = document.querySelector("main");
const order = document.getElementById("order");
const told = document.getElementById("told");
function sort() {{
  const key = order.value === "position" ? "position" : "return";
  const sign = order.value === "descending" ? -1 : 1;
  const last = child => child.dataset[key] === "";  // a return that is not known
  const compare = (a, b) => last(a) - last(b) || sign * (a.dataset[key] - b.dataset[key]);
  [...main.children].sort(compare).forEach(child => main.append(child));
}}
order.addEventListener("change", () => {{ location.hash = order.value; }});
// The order is part of the address, so that a link can show the worst completions first.
function follow() {{
  const named = location.hash.slice(1);
  order.value = [...order.options].some(option => option.value === named) ? named : "position";
  sort();
}}
window.addEventListener("hashchange", follow);
follow();
// What hovering shows, where there is only a finger.
document.addEventListener("click", event => {{
  document.querySelector(".told")?.classList.remove("told");
  const token = event.target.closest(".completion span");
  told.hidden = !token;
  if (token) {{
    token.classList.add("told");
    told.textContent = JSON.stringify(token.textContent) + ": " + token.title;
  }}
}});
</script>
</body>
</html>
"""


def write_heatmap(rows: Sequence[dict], path: Path, title: str) -> None:
    """
    Write the page; `page.html#ascending` opens it with the lowest return first, `#descending` with the highest.

    Args:
        rows (`Sequence[dict]`):
            With `prompt` (text), `tokens` (`list[str]`, see [`~rewards.token_pieces.token_pieces`]), `rewards`, `q`,
            `v` (`list[float]`, nats), `has_reward` (`list[bool]`), and `sum` and `log_likelihood` (nats).
        path (`Path`):
            Its folder is made where it is not there.
        title (`str`)
    """
    known = [reward for row in rows for reward, there in zip(row["rewards"], row["has_reward"], strict=True) if there]
    largest = full_colour(known)
    steps = np.linspace(-largest, largest, 5)
    scale = "".join(f'<span style="background:{colour(x / largest)}">{x:+.2f}</span>' for x in steps)
    articles = "\n".join(_article(i, row, largest) for i, row in enumerate(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _PAGE.format(title=html.escape(title), scale=scale, articles=articles)
    as_it_is = path.is_symlink() or (path.exists() and not path.is_file())  # /dev/stdout, or what it is a link to
    written = path if as_it_is else path.with_name(f"{path.name}.part")
    try:
        written.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")  # half a surrogate pair, as JSON holds
        if written != path:
            written.replace(path)
    except OSError:
        if written != path:
            written.unlink(missing_ok=True)
        raise


def full_colour(rewards: Sequence[float]) -> float:
    """The reward from which on a token has the whole colour, above 0."""
    # One outlier, such as a stop token whose V is far from 0, would leave all others white.
    return (float(np.quantile(np.abs(rewards), 0.95)) if rewards else 0.0) or 1.0


def colour(share: float) -> str:
    """Red for -1, white for 0, blue for 1 (and beyond): told apart by those who do not see red and green apart."""
    share = max(-1.0, min(1.0, share))
    ends = (33, 102, 172) if share > 0 else (178, 24, 43)
    return "#" + "".join(f"{round(255 + abs(share) * 0.65 * (end - 255)):02x}" for end in ends)


def _article(position: int, row: dict, largest: float) -> str:
    spans = []
    for token, reward, there, q, v in zip(
        *(row[k] for k in ("tokens", "rewards", "has_reward", "q", "v")), strict=True
    ):
        numbers = f"r {reward:+.3f}" if there else "r not known"
        title = f"{numbers}, Q {q:.3f}, V {v:.3f}, log π {q - v:.3f}"
        classes = " ".join(["unknown"] * (not there) + ["part"] * (not token))
        style = f' style="background:{colour(reward / largest)}"' if there else ""
        style = f' class="{classes}"{style}' if classes else style
        text = html.escape(token).replace("\n", '<i class="newline"></i>\n')
        spans.append(f'<span{style} title="{title}">{text}</span>')
    told, exact = ("not known", "") if row["sum"] is None else (f"{row['sum']:+.3f}", repr(row["sum"]))
    numbers_line = f"return {told}, log-likelihood {row['log_likelihood']:.3f}, {len(row['tokens'])} tokens"
    return (
        f'<article data-position="{position}" data-return="{exact}">\n<div class="prompt" dir="auto">'
        f'{html.escape(row["prompt"])}</div>\n<div class="completion" dir="auto">{"".join(spans)}</div>\n'
        f'<div class="numbers">{numbers_line}</div>\n</article>'
    )
