"""One model: loading, tokens, sampling, log-probabilities."""
