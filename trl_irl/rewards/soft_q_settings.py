"""How a model was trained, in a file beside its weights: what its reward depends on."""

import json
from pathlib import Path


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
