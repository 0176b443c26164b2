"""The ground: how rows become token ids, the same for training, rewards and evaluation. Imports nothing of ours."""
