"""
What other packages say that a user of these commands can do nothing about, each by its exact source, and their bars
where stderr is no terminal. With `TRL_IRL_VERBOSE=1` it is said again.
"""

import logging
import os
import sys
import warnings


# By logger, how the message begins.
_LOGGED = {
    # bitsandbytes has a faster kernel for 4-bit weights on a CPU, in a package of its own.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    # accelerate's list of its defaults, where no config is named.
    "accelerate.commands.launch": "The following values were not passed to `accelerate launch`",
    # DeepSpeed, which TRL imports where it is installed, on a machine without a GPU.
    "DeepSpeed": "Setting accelerator to CPU",
}
# By module, the message: names inside transformers that TRL still uses. A warning that was caught and is passed on has
# its file for a module.
_WARNED = {
    r"(.*[/\\])?transformers[./\\]training_args": "`gradient_checkpointing` is deprecated",
    r"(.*[/\\])?transformers[./\\]modeling_utils": "`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated",
}


def silence() -> None:
    """Leave these out from here on; to be called before the packages are imported."""
    if os.environ.get("TRL_IRL_VERBOSE", "0") not in ("", "0"):
        return
    if not sys.stderr.isatty():  # bars where nobody sees them move; read once, at the import of each package
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of transformers too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name, beginning in _LOGGED.items():
        logging.getLogger(name).addFilter(lambda record, own=beginning: own not in str(record.msg))
    for module, beginning in _WARNED.items():
        warnings.filterwarnings("ignore", beginning, module=module)
