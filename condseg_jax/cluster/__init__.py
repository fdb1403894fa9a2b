"""Work of one task per case or per trial, in this process or on a Dask cluster."""
