"""Ways to quantise the scorer, side by side: time, size, accuracy, and what neighbours do to scores."""
