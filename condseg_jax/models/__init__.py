"""The dense U-Net and its building blocks: layers, class conditioning, heads, decoders."""
