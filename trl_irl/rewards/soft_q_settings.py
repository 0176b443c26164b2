"""How a model was trained, in a file beside its weights: what its reward depends on."""

import json
from pathlib import Path

from ..text.local_paths import check_is_there


SETTINGS_FILE = "soft_q.json"


def save_settings(folder: str, settings: dict) -> None:
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def saved_settings(path: str) -> dict:
    """
    What [`IRLTrainer`] wrote beside a model: `objective`, `gamma`, `terminal_value`, `value_temperature`,
    `value_origin`, `lambda_td`, `rows_per_step` and what its first step measured; nothing for a model of others.

    Args:
        path (`str`):
            Folder or Hub id.
    """
    if Path(path).is_dir():
        file = Path(path) / SETTINGS_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return json.loads(Path(hf_hub_download(path, SETTINGS_FILE)).read_text(encoding="utf-8"))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return {}


def is_number(value) -> bool:
    return isinstance(value, int | float)


def check_model_and_tokenizer(model, tokenizer) -> None:
    """
    Raises:
        `FileNotFoundError`: the model's name is that of a folder, and there is none.
        `TypeError`: they are something else than a model, or its name, and its tokenizer.
        `ValueError`: a model that is not given by name has no tokenizer.
    """
    if isinstance(model, str):
        check_is_there(model, "model")
    elif not hasattr(model, "config"):
        raise TypeError(
            f"`model` is a {type(model).__name__}. Give a folder, a Hub id, or a model of transformers or PEFT."
        )
    elif tokenizer is None:
        raise ValueError("A model that is not given by name needs its `tokenizer`.")
    if tokenizer is not None and not hasattr(tokenizer, "eos_token"):
        raise TypeError(
            f"`tokenizer` is a {type(tokenizer).__name__}. Give the tokenizer itself: "
            "`AutoTokenizer.from_pretrained(...)`."
        )


def check_batch_size(batch_size: int) -> None:
    """
    Raises:
        `ValueError`: it is none.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size: {batch_size}` must be 1 or more: as many completions are read together.")


def check_discount(gamma: float | None) -> None:
    """
    Raises:
        `ValueError`: it is none.
    """
    if gamma is not None and not (is_number(gamma) and 0 <= gamma <= 1):
        raise ValueError(f"`gamma: {gamma}` is out of range. It is a discount, from 0 to 1.")
