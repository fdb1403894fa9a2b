"""nnU-Net at equal minutes."""
