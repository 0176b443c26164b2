"""Warnings of this package: kept until the table has been printed, in yellow on a terminal, and never lost."""

import logging
import re
import subprocess
import sys
import warnings

import pytest
from transformers import AutoTokenizer

from tests.commands.test_irl import write_recipe
from trl_irl.commands import irl
from trl_irl.commands.console import advice
from trl_irl.tasks.arithmetic import make_arithmetic


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert not [h for h in logging.getLogger("trl_irl").handlers if type(h).__module__ == advice.__name__]


def test_held_until_there_is_a_place_for_it(capfd):
    log = logging.getLogger("trl_irl.some.module")
    advice.hold_advice()
    log.warning("first %d", 1)
    log.info("not this")
    assert capfd.readouterr().err == ""
    advice.give_advice()
    log.warning("second")
    assert capfd.readouterr().err == "Warning: first 1\nWarning: second\n"
    advice.hold_advice()
    log.warning("third")
    advice.drop_advice()
    assert capfd.readouterr().err == "Warning: third\n"


@pytest.mark.parametrize("terminal, no_colour, yellow", [(True, "", True), (True, "1", False), (False, "", False)])
def test_yellow_where_somebody_sees_it(terminal, no_colour, yellow, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert ("\033[33m" in advice.in_yellow("x")) is yellow


def test_a_training_says_it_below_its_table(model_folder, tmp_path, capfd):
    """Rows whose prompt alone fills `max_length` are dropped, which is found before there is a table."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompts = [len(tokenizer(row["prompt"]).input_ids) for row in make_arithmetic(num_train=40)["train"]]
    recipe = write_recipe(tmp_path, model_folder, max_length=sorted(prompts)[20], output_dir=str(tmp_path / "run"))
    assert irl.run(["--config", str(recipe)]) == 0
    told = capfd.readouterr()
    dropped = [line for line in told.err.splitlines() if "were dropped" in line]
    assert len(dropped) == 1 and re.match(r"Warning: \d+ of 40 rows", dropped[0])


def test_what_was_said_before_a_training_that_cannot_begin_is_not_lost(model_folder, tmp_path, capfd, monkeypatch):
    def fails(*arguments):
        logging.getLogger("trl_irl.trainer").warning("it may say why")
        raise ValueError("no training")

    monkeypatch.setattr(irl, "make_trainer", fails)
    recipe = write_recipe(tmp_path, model_folder, output_dir=str(tmp_path / "run"))
    assert irl.run(["--config", str(recipe)]) == 2
    told = capfd.readouterr().err
    assert told.index("Warning: it may say why") < told.index("error: no training")


def test_warnings_of_this_package_are_one_line_and_others_as_ever(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    advice.plain_warnings()
    ours = warnings.formatwarning("do this", UserWarning, advice.__file__, 7)
    assert ours == "Warning: do this\n"
    others = warnings.formatwarning("do that", UserWarning, subprocess.__file__, 7)
    assert others.startswith(f"{subprocess.__file__}:7: UserWarning: do that")
    assert "DeprecationWarning" in warnings.formatwarning("old", DeprecationWarning, advice.__file__, 7)
