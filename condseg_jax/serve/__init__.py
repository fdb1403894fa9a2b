"""HTTP service: a web process that receives requests and a worker process that predicts."""
