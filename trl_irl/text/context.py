"""How many tokens fit into a model."""

from transformers import PretrainedConfig


def context_length(config: PretrainedConfig) -> int | None:
    """Prompt and completion together, in tokens, if the model says how many; of a wrapper, its text model's."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
