"""Every node that takes a MODEL on every model family."""
