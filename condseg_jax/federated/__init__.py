"""Federated learning: hospitals train one network together, and no image leaves any of them."""
