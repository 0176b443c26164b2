"""Of other packages' messages only those are left out that are named, and TRL_IRL_VERBOSE brings them back."""

import logging
import warnings

import pytest

from trl_irl.commands.console import noise


@pytest.mark.parametrize("verbose, heard", [("", 1), ("0", 1), ("1", 3)])
def test_by_exact_source(verbose, heard, monkeypatch, caplog):
    monkeypatch.setenv("TRL_IRL_VERBOSE", verbose)
    names = list(noise._LOGGED)
    before = {name: list(logging.getLogger(name).filters) for name in names}
    for name in names:  # a command that ran in this process has left its own
        logging.getLogger(name).filters.clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            noise.silence()
            logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
            logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "no kernels")
            logger.warning("Something that matters")
            logging.getLogger("accelerate.commands.launch").warning(
                "The following values were not passed to `accelerate launch` and had defaults used instead:\n..."
            )
            said = "`gradient_checkpointing` is deprecated and will be removed"
            for module in ("transformers.training_args", "mine"):
                warnings.warn_explicit(said, FutureWarning, f"{module}.py", 1, module=module)
            for end in ("_enable", "_disable"):  # one that was caught, and is passed on without its module
                said = f"`gradient_checkpointing{end}` is deprecated and will be removed"
                warnings.warn_explicit(said, FutureWarning, "/lib/transformers/modeling_utils.py", 1)
    finally:
        for name in names:
            logging.getLogger(name).filters[:] = before[name]
    assert [record.getMessage() for record in caplog.records].count("Something that matters") == 1
    assert len(caplog.records) == heard
    assert len(caught) == (4 if verbose == "1" else 1)
