"""Training for cappy-lite: regression data, the scorer network, evaluation, and export to a model folder."""
