"""IRL for encoder-decoder models: the prompt is the encoder's, the completion the decoder's."""
