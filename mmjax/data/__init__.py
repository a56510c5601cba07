"""Sources, media decoding, conversations, the token plan and batches: numpy and grain, no models."""
