"""Numbers of Trainer's arguments that are below what makes sense."""

# Least values of inherited keys that would otherwise fail only once the model is there, or run and do nothing.
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "save_total_limit": 1,
    "max_length": 2,
    "ddp_timeout": 1,
}


def check_at_least(args) -> None:
    """
    Raises:
        `ValueError`: a number of Trainer's is below what makes sense.
    """
    for name, least in _AT_LEAST.items():
        value = getattr(args, name, None)
        if value is not None and not value >= least:
            raise ValueError(f"`{name}={value}` is out of range. Set it to {least} or more.")
