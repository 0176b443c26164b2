"""Configuration of [`Seq2SeqIRLTrainer`]."""

import dataclasses
from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments

from ..irl.config import IRLConfig


# Keys of SFTConfig that are of one text, prompt and completion, with the value that says nothing.
_OF_ONE_TEXT = {
    "padding_free": (False, None),
    "packing_strategy": ("bfd",),
    "assistant_only_loss": (False,),
    "completion_only_loss": (None, True),
    "activation_offloading": (False,),
    "chat_template_path": (None,),
    "truncation_mode": ("keep_start", None),
    "dataset_text_field": ("text",),
}


@dataclass
class Seq2SeqIRLConfig(IRLConfig, Seq2SeqTrainingArguments):
    r"""
    Configuration class for the [`Seq2SeqIRLTrainer`].

    [`Seq2SeqIRLConfig`] inherits every parameter from [`IRLConfig`] and [`~transformers.Seq2SeqTrainingArguments`];
    keys that are about a text of prompt and completion together are refused. `max_length` is the longest prompt and
    the longest completion, each in tokens: what is longer is cut at its end. With `packing` it is the room of a packed
    row in the encoder and in the decoder, and a batch has `per_device_train_batch_size` packed rows.

    Parameters:
        max_completion_length (`int`, *optional*):
            Longest completion in tokens, and the decoder's room in a packed row; `max_length` if unset.

    > [!NOTE]
    > These parameters have default values different from [`IRLConfig`]:
    > - `learning_rate`: Defaults to `1e-4` instead of `2e-5`.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate for AdamW."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens, and the decoder's room; max_length if unset."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_sides()

    @property
    def max_lengths(self) -> tuple[int | None, int | None]:
        """Longest prompt and longest completion, in tokens."""
        return self.max_length, self.max_completion_length or self.max_length

    def check_sides(self) -> None:
        """
        Raises:
            `ValueError`: a key is of a text of prompt and completion together, or out of range.
        """
        for key, nothing in _OF_ONE_TEXT.items():
            value = getattr(self, key, nothing[0])
            if value not in nothing:
                raise ValueError(
                    f"`{key}={value!r}` is about a text of prompt and completion together, and an encoder-decoder "
                    "model reads them apart. Leave it unset."
                )
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise ValueError(f"`max_completion_length={self.max_completion_length}` must be 1 or more.")
        if self.packing and self.max_length is None:
            raise ValueError("`packing=True` fills rows of `max_length` tokens. Set it, 512 for example.")
        if self.eval_packing not in (None, self.packing):
            raise ValueError(
                f"`eval_packing={self.eval_packing}` with `packing={self.packing}`: rows of the evaluation are packed "
                "as those of training are. Leave it unset."
            )
        if self.packing and self.predict_with_generate:
            raise ValueError(
                "`packing=True` with `predict_with_generate=True`: a packed row has several prompts, and `generate` "
                "goes on from one. Set `packing=False`, or leave the texts to `eval_generations` (`trl-irl irl`) or "
                "`trl-irl evaluate`."
            )

    @classmethod
    def of(cls, args: IRLConfig, **own_values) -> "Seq2SeqIRLConfig":
        """The same arguments for an encoder-decoder model, those of its own at `own_values` or at their defaults."""
        new = object.__new__(cls)
        own = {one.name: one for one in dataclasses.fields(cls)}
        for name in own.keys() - {one.name for one in dataclasses.fields(args)}:
            new.__dict__[name] = own[name].default
        new.__dict__.update(args.__dict__ | own_values)
        new.check_sides()
        return new
