"""The federation in the processes of NVIDIA FLARE, which brings identities, TLS and messages."""
