"""The dense U-Net and what it is built of: layers, conditioning, the network."""
