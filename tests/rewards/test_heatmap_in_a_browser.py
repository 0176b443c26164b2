"""The heatmap page in a real browser: sorted by its own script, coloured, nothing fetched from elsewhere."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from trl_irl.rewards.heatmap import colour, write_heatmap


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.any_trl,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium: .ci/run installs Debian's where it may (`apt-get install chromium`)"
    ),
]

RETURNS = [-1.0, 3.0, -2.5]
ROWS = [
    {
        "prompt": f"prompt {i} <b>&",
        "tokens": [" a", " <i>", "é\n"],
        "rewards": [total - 1.0, 1.0, 0.0],
        "q": [1.0, 2.0, 3.0],
        "v": [2.0, 2.5, 3.5],
        "has_reward": [True, True, False],
        "sum": total,
        "log_likelihood": -2.0,
    }
    for i, total in enumerate(RETURNS)
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_heatmap(ROWS, path, "Rewards of <model>")
    return path


def browse(page, *flags, part=""):
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,700"]
    # Without any network: what the page needs is in it.
    common += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}"]
    command = [CHROMIUM, *common, *flags, f"{page.as_uri()}{part}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize(
    "part, order", [("", [0, 1, 2]), ("#descending", [1, 0, 2]), ("#ascending", [2, 0, 1]), ("#nonsense", [0, 1, 2])]
)
def test_sorted_by_return(part, order, page):
    document = browse(page, "--dump-dom", part=part)
    assert [int(i) for i in re.findall(r'<div class="prompt" dir="auto">prompt (\d)', document)] == order


@pytest.mark.parametrize("part, order", [("#descending", [2, 0, 1, 3]), ("#ascending", [0, 2, 1, 3])])
def test_returns_that_are_not_known_come_last(part, order, tmp_path):
    totals = [-1.0, None, 3.0, None]
    rows = [{**ROWS[0], "prompt": f"prompt {i}", "sum": total} for i, total in enumerate(totals)]
    write_heatmap(rows, tmp_path / "page.html", "Rewards")
    document = browse(tmp_path / "page.html", "--dump-dom", part=part)
    assert [int(i) for i in re.findall(r'<div class="prompt" dir="auto">prompt (\d)', document)] == order


def test_what_is_on_the_page(page):
    document = browse(page, "--dump-dom")
    assert "<title>Rewards of &lt;model&gt;</title>" in document
    assert document.count("<article") == 3 and document.count('class="unknown"') >= 3
    assert 'title="r +1.000, Q 2.000, V 2.500, log π -0.500"> &lt;i&gt;</span>' in document
    assert 'title="r not known, Q 3.000, V 3.500, log π -0.500">é<i class="newline"></i>\n</span>' in document


def test_a_tap_tells_the_numbers_of_a_token(page):
    """On a phone nothing hovers; a tap beside the tokens takes them away again."""
    tap = """<script>
        const seen = [], tokens = document.querySelectorAll(".completion span");
        for (const where of [tokens[0], tokens[1], document.querySelector("h1")]) {
          where.click();
          const box = document.getElementById("told");
          seen.push(box.hidden ? "" : box.textContent, document.querySelectorAll(".told").length);
        }
        document.title = JSON.stringify([seen, tokens[0].title, tokens[1].title]);</script>"""
    tapped = page.parent / "tapped.html"
    tapped.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{tap}</body>"), encoding="utf-8")
    title = html.unescape(re.search(r"<title>(.*?)</title>", browse(tapped, "--dump-dom"))[1])
    (first, one, second, other, none, nobody), *titles = json.loads(title)
    assert first.endswith(": " + titles[0]) and second.endswith(": " + titles[1]) and titles[0] != titles[1]
    assert (one, other, none, nobody) == (1, 1, "", 0)


@pytest.mark.parametrize("dark", [False, True])
def test_readable_on_light_and_on_dark(dark, page):
    """Every text differs in lightness from what it stands on: 4.5 to 1, what WCAG asks of text."""
    measure = """<script>
        const light = colour => {
          const [r, g, b] = colour.match(/[\\d.]+/g).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = e => {
          const colour = getComputedStyle(e).backgroundColor;
          return colour === "rgba(0, 0, 0, 0)" ? behind(e.parentElement) : colour;
        };
        const texts = "h1, p, .prompt, .numbers, .completion span, .scale span";
        const found = [...document.querySelectorAll(texts)].map(e => {
          const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05);
        });
        document.title = JSON.stringify([found.length, Math.min(...found), light(behind(document.body))]);</script>"""
    measured = page.parent / "measured.html"
    measured.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{measure}</body>"), encoding="utf-8")
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    count, least, ground = json.loads(re.search(r"<title>(.*?)</title>", browse(measured, *flags, "--dump-dom"))[1])
    assert count > 15 and least >= 4.5
    assert ground < 0.1 if dark else ground > 0.9


def test_long_words_and_right_to_left(tmp_path):
    """What the browser lays out: nothing is wider than the window, and Arabic begins at the right."""
    numbers = {name: [0.0] for name in ("rewards", "q", "v")} | {
        "has_reward": [True],
        "sum": 0.0,
        "log_likelihood": 0.0,
    }
    texts = {"long": "x" * 2000, "arabic": "صباح الخير", "latin": "Good morning"}
    path = tmp_path / "page.html"
    write_heatmap([{"prompt": text, "tokens": [text], **numbers} for text in texts.values()], path, "y" * 500)
    measure = """<script>document.title = JSON.stringify([document.documentElement.scrollWidth <= innerWidth,
        ...[...document.querySelectorAll(".prompt, .completion")].map(e => getComputedStyle(e).direction)])</script>"""
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{measure}</body>"), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(path, "--dump-dom"))[1]
    assert json.loads(title) == [True, "ltr", "ltr", "rtl", "rtl", "ltr", "ltr"]


def test_colours_as_painted(page):
    from PIL import Image

    picture = page.parent / "page.png"
    browse(page, f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    known = [reward for row in ROWS for reward in row["rewards"][:2]]
    largest = np.quantile(np.abs(known), 0.95)
    for reward in known:
        painted = [int(colour(reward / largest)[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == painted).all(axis=1).sum() > 20, reward
