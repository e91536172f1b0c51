"""The pipeline, a file a step: inputs, rollout, rank, reference, train, answer, diagnostics."""
