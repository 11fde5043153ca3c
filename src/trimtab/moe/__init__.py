"""Gates of mixture-of-experts models: routing, training without an auxiliary loss, adaptation to traffic."""
