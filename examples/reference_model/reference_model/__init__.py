"""How the reference language model is made: tokenizer, data, model, training, figures, files."""
