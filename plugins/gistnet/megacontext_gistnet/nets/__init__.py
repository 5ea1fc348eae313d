"""The networks behind the learned encoders: torch modules, and no data, training or session."""
