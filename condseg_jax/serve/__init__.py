"""The network as a service over HTTP: a web process that never predicts, a worker that does."""
