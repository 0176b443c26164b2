"""
E2E, restaurants in words (Novikova, Dušek and Rieser, SIGDIAL 2017, arXiv 1706.09254): a meaning representation such
as `name[The Mill], food[English], area[riverside]`, and several texts that people wrote for it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict

from .files import load_from_hub_or_path
from .slots import slot_errors, slots_of
from .task import Task


PROMPT_TEMPLATE = "Describe this place, with all that is said of it: {source}\n\nDESCRIPTION:"
REPRESENTATION = "meaning_representation"

# The columns as the challenge has them, and as the Hub's copies do: the representation, and a text.
_NAMES = (("mr", REPRESENTATION), ("ref", "human_reference", "target"))
_FILES = {"train": "trainset*.csv", "validation": "devset*.csv", "test": "testset*.csv"}


def load_e2e(path: str, validation_size: int = 100, seed: int = 42) -> DatasetDict:
    """
    E2E as prompt-completion rows: of the training data a row per text; of the other splits a row per representation,
    with all of its texts as `references`. Training and test rows are shuffled: the first so many are a fair part.

    Args:
        path (`str`):
            A folder with the challenge's `trainset.csv`, `devset.csv` and `testset_w_refs.csv`, or any data with a
            `train` split of such rows: columns `mr` and `ref`, or `meaning_representation` and `human_reference` or
            `target`. Where there is no training data, that of `validation` is it.
        validation_size (`int`, *optional*, defaults to `100`):
            Representations to carve off as `validation`, with all of their texts, where there is no such split.
        seed (`int`, *optional*, defaults to `42`):
            Of the order of the training and test rows, and of what is carved off.

    Returns:
        [`~datasets.DatasetDict`] with `train`, `validation` and, where the source has one, `test`; columns `prompt`,
        `completion`, `meaning_representation` and, but for `train`, `references`.

    Raises:
        `FileNotFoundError`: `path` looks like a local path and is not there.
        `ValueError`: there is no such column, a row without a text or with a representation that cannot be read, or
            not enough rows.
    """
    splits = {name: _texts(split, name) for name, split in _splits(path).items()}
    learned = splits.pop("train", None) or splits.pop("validation", None)
    if learned is None:
        raise ValueError(f"`dataset_name: {path}` has no `train` split to learn from, but {', '.join(splits)}.")
    if "validation" not in splits:
        if len(learned) <= validation_size:
            raise ValueError(
                f"`dataset_name: {path}` has {len(learned)} representations to learn from, and {validation_size} of "
                "them would be the validation split. Bring more, or a validation split."
            )
        order = Dataset.from_dict({"i": range(len(learned))}).shuffle(seed=seed)["i"]
        held_out = {list(learned)[i] for i in order[:validation_size]}
        splits = {"validation": {mr: learned.pop(mr) for mr in list(learned) if mr in held_out}, **splits}
    rows = [_row(mr, text) for mr, texts in learned.items() for text in texts]
    held_out = {
        name: Dataset.from_list([_row(mr, texts[0]) | {"references": texts} for mr, texts in split.items()])
        for name, split in splits.items()
    }
    if "test" in held_out:  # its file is sorted by name, so that the first rows are of one place
        held_out["test"] = held_out["test"].shuffle(seed=seed)
    return DatasetDict({"train": Dataset.from_list(rows).shuffle(seed=seed), **held_out})


def _splits(path: str) -> Mapping[str, Iterable[dict]]:
    """By the challenge's own names of files, which `datasets` would take for one split; else as `datasets` says."""
    folder = Path(path)
    files = {split: sorted(folder.glob(pattern)) for split, pattern in _FILES.items()} if folder.is_dir() else {}
    if not any(files.values()):
        return load_from_hub_or_path(path)
    # The release has its test representations twice, and the texts in the file that says so.
    best = {split: next((file for file in of if "w_refs" in file.name), of[0]) for split, of in files.items() if of}
    return {split: load_from_hub_or_path(str(file))["train"] for split, file in best.items()}


def _texts(split: Iterable[dict], name: str) -> dict[str, list[str]]:
    """The texts of each representation, each once, in the order that the data has them."""
    texts: dict[str, list[str]] = {}
    for i, row in enumerate(split):
        where = f"Row {i} of `{name}`"
        (mr, text), several = (_of(row, names, where) for names in _NAMES), row.get("references")
        if not isinstance(mr, str) or not mr.strip():
            raise ValueError(f"{where} has no meaning representation, but {mr!r}.")
        try:
            slots_of(mr)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for one in several or [text]:
            if not isinstance(one, str) or not one.strip():
                raise ValueError(f"{where} has no text for `{mr}`, but {one!r}. Leave such rows out of the data.")
            known = texts.setdefault(mr, [])
            if one.strip() not in known:
                known.append(one.strip())
    return texts


def _of(row: Mapping, names: tuple[str, ...], where: str):
    name = next((name for name in names if name in row), None)
    if name is None:
        missing = " or ".join(f"`{name}`" for name in names)
        raise ValueError(
            f"{where} has the columns {', '.join(row)}, and of E2E's there is no {missing}. "
            "For another dataset leave `task` unset and name its columns with `source_column` and `target_column`."
        )
    return row[name]


def _row(mr: str, text: str) -> dict:
    return {"prompt": PROMPT_TEMPLATE.format(source=mr), "completion": f" {text}", REPRESENTATION: mr}


def _load(data) -> DatasetDict:
    if data.dataset_name is None:
        raise ValueError(
            "`task: e2e` needs `dataset_name`: a folder with the challenge's trainset.csv, devset.csv and "
            "testset_w_refs.csv, or a dataset of that shape."
        )
    return load_e2e(data.dataset_name, seed=data.seed)


def score(completion: str, row: dict) -> dict[str, float]:
    """[`~tasks.slots.SlotErrors.scores`] of a completion."""
    if REPRESENTATION not in row:
        raise ValueError(f"the row has no `{REPRESENTATION}`: leave `source_column` unset, so that E2E's is read")
    return slot_errors(completion, slots_of(row[REPRESENTATION])).scores()


TASK = Task(
    load=_load,
    prompt=PROMPT_TEMPLATE,
    metrics=("bleu", "rouge", "chrf"),
    score=score,
    explained={
        "slots_right": "`slots_right` is the share of the representation's slots that a text names, by rules",
        "slot_error_rate": "`slot_error_rate` is (missing + wrong + invented) / slots, by rules",
    },
)
