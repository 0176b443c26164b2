"""What the reward objects and commands are given, looked at before anything loads."""

from ..text.local_paths import check_is_there


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
