"""A grid of training runs: tune on validation documents, then compare objectives over seeds on test documents."""
