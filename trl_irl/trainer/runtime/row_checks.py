"""What a trainer refuses of its rows before it prepares them: each error says which row, what it has, what to do."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset, Json

from ...text.encode import seam_message
from ...text.messages import as_messages, checked, is_messages, read_as_date
from .row_maps import OF_TOKENS, as_array, columns_of


logger = get_logger(__name__)

AS_SFT = "as_sft"  # a column: whether SFTTrainer would have made the same tokens of a row
_TRL_COLUMNS = {"prompt", "completion", "messages", "conversations", "chosen", "rejected"}


def check_not_empty(dataset: Dataset | IterableDataset, name: str) -> None:
    # A stream's first row is read here, as SFTTrainer reads it.
    empty = len(dataset) == 0 if isinstance(dataset, Dataset) else next(iter(dataset), None) is None
    if empty:
        raise ValueError(f"The {name} dataset has no rows. Check the split and any filter applied before.")


def check_rows(dataset: Dataset | IterableDataset, text_field: str, name: str) -> Dataset | IterableDataset:
    """
    Refuse a dataset without columns to train on, or with a row in them that is neither text nor messages.

    Returns:
        The dataset, without columns that TRL could take for those to train on; a stream with the same check of its
        later rows, each when it is read.

    Raises:
        `ValueError`: with the column, the row's number and what it has.
    """
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            f"The {name} dataset has a transform (`Dataset.with_transform()`), which would run when rows are read, "
            "and their tokens are made before. Apply it first: `dataset.with_transform(None).map(...)`."
        )
    dataset = dataset.with_format(None)  # as numpy's arrays or pandas' series, rows are neither text nor lists
    columns = columns_of(dataset)
    accepted = [{"input_ids"}, {"messages"}, {"conversations"}, {"prompt", "completion"}, {text_field}]
    trained_on = next((wanted for wanted in accepted if wanted <= set(columns)), None)
    if trained_on is None:
        raise ValueError(
            f"The {name} dataset has the columns {columns}, and none of these sets to train on: 'prompt' and "
            f"'completion'; 'messages'; '{text_field}' (`dataset_text_field`); 'input_ids'. Rename its columns, set "
            "`dataset_text_field`, or pass a `formatting_func`."
        )
    if trained_on == {"prompt"}:
        raise ValueError(
            f"`dataset_text_field='prompt'` of the {name} dataset: TRL takes rows with a 'prompt' for prompts and "
            "completions. Rename the column: `dataset.rename_column('prompt', 'text')`, and leave "
            "`dataset_text_field` unset."
        )
    if trained_on == {"input_ids"}:
        if isinstance(dataset, Dataset):
            check_token_rows(dataset, name)
        return dataset
    beside = (_TRL_COLUMNS | OF_TOKENS) & set(columns) - trained_on
    if trained_on == {"prompt", "completion"}:
        beside |= {"text"} & set(columns)  # to which TRL 1.12 would add the EOS; this can go with it
    if "prompt" in beside:
        own = "', '".join(sorted(trained_on))
        raise ValueError(
            f"The {name} dataset has a 'prompt' beside '{own}'. TRL takes rows with a 'prompt' "
            "for prompts and completions. Remove or rename the one that is not to be trained on, such as with "
            "`dataset.remove_columns('prompt')`."
        )
    if beside:
        # TRL (1.12 to 1.16) decides by any one of these whether rows are messages: which one differs from run to run.
        dataset = dataset.remove_columns(sorted(beside))
    if not isinstance(dataset, Dataset):
        options = {"columns": sorted(trained_on), "name": name}
        _check_row(next(iter(dataset)), 0, **options)
        return dataset.map(_check_row, with_indices=True, fn_kwargs=options)
    for column in sorted(trained_on):
        for row in _rows_to_look_at(dataset, column):
            _check_value(dataset[row][column], column, f"Row {row} of the {name} dataset")
    return dataset


def _check_row(row: dict, i: int, columns: Sequence[str], name: str) -> dict:
    """
    Nothing to change in row `i` of a dataset, in the form that `map` takes.

    Raises:
        `ValueError`: one of the columns is neither text nor messages.
    """
    for column in columns:
        _check_value(row.get(column), column, f"Row {i} of the {name} dataset")
    return {}


def _check_value(value, column: str, where: str) -> None:
    if value is None:
        raise ValueError(
            f"{where} has nothing (null) as its '{column}', where text or a list of messages is needed. Remove such "
            f"rows: `dataset.filter(lambda row: row['{column}'] is not None)`."
        )
    if isinstance(value, str):
        if column in ("messages", "conversations"):
            raise ValueError(
                f"{where} has text as its '{column}' ({value[:40]!r}), where a list of messages is needed. If it is "
                f"JSON, read it first: `dataset.map(lambda row: {{'{column}': json.loads(row['{column}'])}})`."
            )
        return
    if value == []:
        raise ValueError(
            f"{where} has an empty list as its '{column}', where text or a list of messages is needed. Remove such "
            f"rows: `dataset.filter(lambda row: row['{column}'])`."
        )
    if is_messages(value) and column not in _TRL_COLUMNS:
        raise ValueError(
            f"{where} has messages as its '{column}', where text is needed. Name the column 'messages'; a "
            "`formatting_func` must return text."
        )
    if not is_messages(value):
        raise ValueError(
            f"{where} has {value!r} as its '{column}', which is neither text nor a list of messages. Convert the "
            f"column (numbers become text with `dataset.cast_column`), or name another.{read_as_date(value)}"
        )
    for message in as_messages(value):
        content = message.get("content")
        if not (isinstance(content, str | list) or message.get("tool_calls")):
            what = "nothing (null)" if content is None else repr(content)
            raise ValueError(
                f"{where} has a message in its '{column}' with {what} as its content, where text is needed. Remove "
                "such rows, or give the message its text."
            )


def check_token_rows(dataset: Dataset, name: str, aligned: bool = True) -> None:
    """
    Rows that come as token ids: each is a list of whole numbers, as long as its `attention_mask` and, if `aligned`, as
    its labels and other masks.

    Raises:
        `ValueError`: with the column, the row's number and what it has.
    """
    columns = [
        column
        for column in ("input_ids", "labels", "completion_mask", "assistant_masks", "attention_mask")
        if column in dataset.column_names
    ]
    start = 0
    for batch in dataset.select_columns(columns).with_format("arrow").iter(10_000):
        lengths = {}
        for column in columns:
            values = as_array(batch.column(column))
            kind = getattr(values.type, "value_type", None)
            is_mask = "mask" in column and kind == pa.bool_()
            if kind is None or not (pa.types.is_integer(kind) or pa.types.is_null(kind) or is_mask):
                raise ValueError(
                    f"The column '{column}' of the {name} dataset is of the type {values.type}, and token ids, labels "
                    "and masks are lists of whole numbers. Convert it, or remove it and give the text."
                )
            if values.null_count:
                row = start + pc.indices_nonzero(values.is_null())[0].as_py()
                raise ValueError(f"Row {row} of the {name} dataset has nothing (null) as its '{column}'. Remove it.")
            lengths[column] = pc.list_value_length(values)
        for column in columns[1:] if aligned else {"attention_mask"} & set(columns):
            differs = pc.indices_nonzero(pc.not_equal(lengths[column], lengths["input_ids"]))
            if len(differs):
                i = differs[0].as_py()
                raise ValueError(
                    f"Row {start + i} of the {name} dataset has {lengths['input_ids'][i]} 'input_ids' and "
                    f"{lengths[column][i]} '{column}'. There is one for each token (the trainer shifts them itself)."
                )
        start += len(lengths["input_ids"])


def check_token_ids(
    dataset: Dataset | IterableDataset, size: int, name: str, given: Dataset | IterableDataset | None = None
) -> None:
    """
    Args:
        dataset (`Dataset`):
            Rows that are made ready.
        size (`int`):
            How many embeddings the model has.
        name (`str`):
            The dataset's, for the message.
        given (`Dataset`, *optional*):
            The rows that they were made of, which the message is about, where they are others or in another order.

    Raises:
        `ValueError`: a row of `input_ids` has one that a model with `size` embeddings has not, or a row of `labels`
            one that is neither such a token nor -100.
    """
    if not isinstance(dataset, Dataset):
        return
    for column in ("input_ids", "labels"):
        if column not in dataset.column_names:
            continue
        start = 0
        for batch in dataset.select_columns([column]).with_format("arrow").iter(10_000):
            values = as_array(batch.column(column))
            ids = values.flatten()
            wrong = pc.or_(pc.less(ids, 0), pc.greater_equal(ids, size))
            if column == "labels":
                wrong = pc.and_(wrong, pc.not_equal(ids, -100))
            if pc.any(wrong).as_py():
                at = pc.indices_nonzero(wrong)[0].as_py()
                row, token = start + pc.list_parent_indices(values)[at].as_py(), ids[at].as_py()
                if given is not None:
                    row = _row_given(given, column, token)
                which = "A row" if row is None else f"Row {row}"
                raise ValueError(_wrong_id(f"{which} of the {name} dataset", column, token, size))
            start += len(values)


def _row_given(given: Dataset | IterableDataset, column: str, token: int) -> int | None:
    """The only row that has this token, if there is one."""
    if not isinstance(given, Dataset) or column not in given.column_names:
        return None
    rows = given.select_columns([column]).with_format("arrow")
    found, start = [], 0
    for batch in rows.iter(10_000):
        values = as_array(batch.column(column))
        of_token = pc.list_parent_indices(values).filter(pc.equal(values.flatten(), token))
        found += [start + i for i in of_token.unique().to_pylist()]
        start += len(values)
    return found[0] if len(found) == 1 else None


def _wrong_id(where: str, column: str, token: int, size: int) -> str:
    if column == "labels" and token < 0:
        return f"{where} has the label {token}. A token that is not to be learned has the label -100."
    among = f" among its `{column}`" if column == "labels" else ""
    return (
        f"{where} has the token id {token}{among}, and the model has {size} embeddings. The ids are of "
        "another tokenizer, or tokens were added to it and the model was not resized "
        "(`model.resize_token_embeddings(len(tokenizer))`)."
    )


def _rows_to_look_at(dataset: Dataset, column: str) -> list[int]:
    """
    The first row, for what the column is; those that have nothing (null), an empty list, or a message without
    content; and, where each row may be of another type (Json), all.
    """
    if isinstance(dataset.features[column], Json):
        return list(range(len(dataset)))
    numbers, start = [0], 0
    for batch in dataset.select_columns([column]).with_format("arrow").iter(10_000):
        values = batch.column(column).combine_chunks()
        for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
            numbers += [start + i for i in _with_nulls(chunk)]
            start += len(chunk)
    return numbers


def _with_nulls(values: pa.Array) -> list[int]:
    numbers = set(pc.indices_nonzero(values.is_null()).to_pylist()) if values.null_count else set()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        numbers |= set(pc.indices_nonzero(pc.equal(pc.list_value_length(values), 0)).to_pylist())
        messages, parents = values.flatten(), pc.list_parent_indices(values)
        if pa.types.is_struct(messages.type):
            for key in ("content", "value"):
                if messages.type.get_field_index(key) >= 0:
                    numbers |= set(parents.filter(pc.struct_field(messages, key).is_null()).to_pylist())
    return sorted(numbers)


def checked_row(row: dict, where: str) -> dict:
    """
    The row, with its `prompt` and `completion` as text or as messages in the form that templates read.

    Raises:
        `ValueError`: they are neither.
    """
    return {**row, **{key: checked(row[key], key, where) for key in ("prompt", "completion")}}


def warned_of_seams(dataset: Dataset, name: str) -> Dataset:
    """The dataset without its column `AS_SFT`; warns, with a count, if some rows are not as SFTTrainer makes them."""
    count = len(dataset) - sum(dataset[AS_SFT])
    if count:
        logger.warning(seam_message(f"{count} of {len(dataset)} rows of the {name} dataset"))
    return dataset.remove_columns(AS_SFT)
