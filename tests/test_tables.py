"""The tables of the documentation are what `results/` gives, and no table of measured numbers stands by itself."""

import re

import pytest

from benchmarks.tables import PAGES, ROOT, TABLES, filled, named_in


TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
# What a measured number looks like in a cell: a spread, an interval, a share, a ratio, a difference.
_MEASURED = re.compile(r"\d ± \d|[+-]?\d[\d.]* \[[+-]?\d|\d\.\d+ %|\d\.\d+x\b|\| \d\.\d{3} \||\de-\d")


@pytest.mark.parametrize("name", TEXTS)
def test_tables_are_what_the_results_give(name):
    assert filled(TEXTS[name]) == TEXTS[name], "run `python -m benchmarks.tables`"


def test_every_table_is_somewhere():
    assert sorted(table for text in TEXTS.values() for table in named_in(text)) == sorted(TABLES)


@pytest.mark.parametrize("name", TEXTS)
def test_no_measured_table_without_its_numbers(name):
    text = re.sub(r"<!-- table: \w+ -->.*?<!-- end -->", "", TEXTS[name], flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    measured = [table for table in tables if _MEASURED.search(table) and "| default |" not in table]
    assert measured == []


def test_a_changed_number_is_seen():
    name, text = next((name, text) for name, text in TEXTS.items() if "<!-- table: online -->" in text)
    assert filled(text.replace("| MLE | 7", "| MLE | 8")) == text, name
